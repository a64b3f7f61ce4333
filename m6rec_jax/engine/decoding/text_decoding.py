"""How generated texts are decoded, for evaluation, files of requests and conversation alike.

Decoding.method = 'beam_search'        # in gin; greedy unless said otherwise
Decoding.num_beams = 4
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import gin
import numpy as np

from m6rec_jax.engine.decoding.generation import GeneratedText, Generator, TextRequest
from m6rec_jax.engine.decoding.graphs import TextChoices
from m6rec_jax.engine.decoding.sampling import SamplingOptions, check_sampling
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.rows import Text


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """What one request wants of its texts, where they grow one by one.

    Attributes:
      max_tokens: most tokens after the prefix, `[EOS]` included; None: what there is room for.
      stop: texts that end it and are no part of it, none of them empty.
      temperature, top_p: in place of those of `Decoding`; temperature 0 takes the likeliest token.
    """

    max_tokens: int | None = None
    stop: Sequence[str] = ()
    temperature: float | None = None
    top_p: float | None = None


# Requests with less take the likeliest token.
_LEAST_TEMPERATURE, _LEAST_TOP_P = 1e-3, 1e-6
METHODS = ("greedy", "beam_search", "sample")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are decoded.

    Attributes:
      method: 'greedy', 'beam_search' or 'sample'.
      num_beams, length_penalty: of beam search, whose best text counts.
      temperature, top_k, top_p, seed: of sampling, one text for each source, drawn with a seed of
        its own.
      true_only: a text whose template tells what an item shares with what the user liked says only
        what holds: it is put together from the item's own values and the user's own items, as the
        model chooses (`engine.decoding.graphs`). Otherwise the model writes freely.
    """

    method: str = "greedy"
    num_beams: int = 4
    length_penalty: float = 0.6
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    true_only: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"Decoding.method = {self.method!r} is none of {', '.join(map(repr, METHODS))}"
            )
        check_sampling(self)

    @property
    def one_by_one(self) -> bool:
        """Whether a text can grow beside others: beam search keeps several for each source."""
        return self.method != "beam_search"

    def request(
        self,
        source: Sequence[Text],
        prefix: str,
        task: str,
        key: Sequence[int],
        choices: TextChoices | None = None,
        wanted: TextOptions | None = None,
    ) -> TextRequest:
        """A request for one text.

        Args:
          source, prefix, task, choices: see `TextRequest`.
          key: numbers that distinguish the source from all others, whichever share a call; with the
            seed they decide what is sampled.
          wanted: by who asks.
        """
        samples = self.method == "sample"
        temperature, top_p = (self.temperature, self.top_p) if samples else (0.0, 1.0)
        if wanted is not None and wanted.temperature is not None:
            temperature = wanted.temperature
        if wanted is not None and wanted.top_p is not None:
            top_p = wanted.top_p
        # float32 would overflow, or keep no token.
        temperature = temperature if temperature >= _LEAST_TEMPERATURE else 0.0
        top_k, top_p = self.top_k if samples else 0, max(top_p, _LEAST_TOP_P)
        sampling = SamplingOptions(temperature, top_k, top_p)
        return TextRequest(source, prefix, task, sampling, _mixed(self.seed, *key), choices)

    def write(self, generator: Generator, requests: Sequence[TextRequest]) -> list[GeneratedText]:
        """One text for each request, of `request`; errors are those of the generator."""
        if self.one_by_one:
            return generator.write(requests)
        beams, penalty = self.num_beams, self.length_penalty
        beams_of_rows = generator.beam_search(requests, num_beams=beams, length_penalty=penalty)
        return [texts[0] for texts in beams_of_rows]


def _mixed(*numbers: int) -> int:
    """A seed, uint32, that looks like no other numbers' seed; the same on every machine."""
    words = np.array(numbers, np.int64).view(np.uint32)
    return int(np.random.SeedSequence(words.tolist()).generate_state(1)[0])

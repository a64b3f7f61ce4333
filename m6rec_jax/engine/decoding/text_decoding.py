"""How generated texts are decoded, for evaluation, files of requests and conversation alike.

Decoding.method = 'beam_search'        # in gin; greedy unless said otherwise
Decoding.num_beams = 4
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import numpy as np

from m6rec_jax.engine.decoding.generation import GeneratedText, Generator
from m6rec_jax.engine.decoding.sampling import check_sampling
from m6rec_jax.engine.decoding.text_choices import TextChoices
from m6rec_jax.errors import ConfigError
from m6rec_jax.text.rows import Text


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """What one request wants of its texts, where they grow one by one (`Decoding.for_one`).

    Attributes:
      max_tokens: most tokens after the prefix, `[EOS]` included; None: what there is room for.
      stop: texts that end it and are no part of it, none of them empty.
      temperature, top_p: in place of those of `Decoding`; temperature 0 takes the likeliest token.
    """

    max_tokens: int | None = None
    stop: Sequence[str] = ()
    temperature: float | None = None
    top_p: float | None = None


# Requests with less take the likeliest token: float32 would overflow.
_LEAST_TEMPERATURE = 1e-3
# float32 would make smaller ones zero, and keep no token.
_LEAST_TOP_P = 1e-6
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
        model chooses (`engine.decoding.text_choices`). Otherwise the model writes freely.
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
        check_sampling(self.temperature, self.top_k, self.top_p)

    def generate(
        self,
        generator: Generator,
        sources: Sequence[Sequence[Text]],
        prefixes: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        keys: Sequence[Sequence[int]] | None = None,
        choices: Sequence[TextChoices | None] | None = None,
    ) -> list[GeneratedText]:
        """One text for each source.

        Args:
          generator: of the model.
          sources, prefixes, tasks: errors, too, as of `Generator`.
          keys: numbers that distinguish each source from all others, whichever share a call; with
            the seed they decide what is sampled. None: its index among the sources.
          choices: see `Generator`.
        """
        if self.method == "greedy":
            return generator.greedy(sources, prefixes, choices=choices, tasks=tasks)
        if self.method == "beam_search":
            found = generator.beam_search(
                sources,
                prefixes,
                num_beams=self.num_beams,
                length_penalty=self.length_penalty,
                choices=choices,
                tasks=tasks,
            )
        else:
            found = generator.sample(
                sources,
                prefixes,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                seed=self._seeds(len(sources), keys),
                choices=choices,
                tasks=tasks,
            )
        return [texts[0] for texts in found]

    @property
    def one_by_one(self) -> bool:
        """Whether a text can grow beside others: beam search keeps several for each source."""
        return self.method != "beam_search"

    def for_one(self, key: Sequence[int], wanted: TextOptions) -> Mapping[str, Any]:
        """Arguments of `ContinuousGenerator.submit` for the text that `generate` gives a source.

        Args:
          key: of the source, see `generate`.
          wanted: by its request.
        """
        samples = self.method == "sample"
        temperature, top_p = wanted.temperature, wanted.top_p
        if temperature is not None:
            temperature = 0.0 if temperature < _LEAST_TEMPERATURE else temperature
        else:
            temperature = self.temperature if samples else 0.0
        if top_p is None:
            top_p = self.top_p if samples else 1.0
        return {
            "temperature": temperature,
            "top_k": self.top_k if samples else 0,
            "top_p": max(top_p, _LEAST_TOP_P),
            "seed": _mixed(self.seed, *key),
            "stop": wanted.stop,
        }

    def _seeds(self, number: int, keys: Sequence[Sequence[int]] | None) -> list[int]:
        if keys is None:
            return [self.seed + index for index in range(number)]
        return [_mixed(self.seed, *key) for key in keys]


def _mixed(*numbers: int) -> int:
    """A seed, uint32, that looks like no other numbers' seed; the same on every machine."""
    words = np.array(numbers, np.int64).view(np.uint32)
    return int(np.random.SeedSequence(words.tolist()).generate_state(1)[0])

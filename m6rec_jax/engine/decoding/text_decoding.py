"""How generated texts are decoded, for evaluation, files of requests and conversation alike.

Decoding.temperature = 0.7             # in gin; the likeliest tokens unless said otherwise
Decoding.top_p = 0.9
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import gin
import numpy as np

from m6rec_jax.engine.decoding.generation import TextRequest
from m6rec_jax.engine.decoding.graphs import TextChoices
from m6rec_jax.engine.decoding.sampling import SamplingOptions, check_sampling
from m6rec_jax.text.rows import Text

# Requests with less take the likeliest token: float32 would overflow, or keep no token.
_LEAST_TEMPERATURE, _LEAST_TOP_P = 1e-3, 1e-6


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """What one request wants of its texts.

    Attributes:
      max_tokens, stop: see `TextRequest`.
      temperature, top_p: in place of those of `Decoding`.
    """

    max_tokens: int | None = None
    stop: Sequence[str] = ()
    temperature: float | None = None
    top_p: float | None = None


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are decoded.

    Attributes:
      temperature, top_p: see `SamplingOptions`; by itself the likeliest tokens are taken.
      seed: of sampling, from which each source has a seed of its own.
      true_only: a text whose template tells what an item shares with what the user liked says only
        what holds: it is put together from the item's own values and the user's own items, as the
        model chooses (`engine.decoding.graphs`). Otherwise the model writes freely.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    true_only: bool = True

    def __post_init__(self) -> None:
        check_sampling(self)

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
        wanted = wanted or TextOptions()
        temperature = self.temperature if wanted.temperature is None else wanted.temperature
        top_p = max(self.top_p if wanted.top_p is None else wanted.top_p, _LEAST_TOP_P)
        temperature = temperature if temperature >= _LEAST_TEMPERATURE else 0.0
        # A seed that looks like no other numbers' seed; the same on every machine.
        words = np.array([self.seed, *key], np.int64).view(np.uint32).tolist()
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        return TextRequest(
            source,
            prefix,
            task,
            SamplingOptions(temperature, top_p),
            seed,
            choices,
            max_tokens=wanted.max_tokens,
            stop=wanted.stop,
        )

"""How written texts are decoded, for evaluation, files of requests and conversation alike.

Decoding.method = 'beam_search'        # in gin; greedy unless said otherwise
Decoding.num_beams = 4
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import gin

from m6rec_jax.errors import ConfigError
from m6rec_jax.inference.generation import GeneratedText, Generator

METHODS = ("greedy", "beam_search", "sample")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are decoded.

    Attributes:
      method: 'greedy', 'beam_search' or 'sample'.
      num_beams, length_penalty: of beam search, whose best text counts.
      temperature, top_k, top_p, seed: of sampling, one text for each source.
    """

    method: str = "greedy"
    num_beams: int = 4
    length_penalty: float = 0.6
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"Decoding.method = {self.method!r} is none of {', '.join(map(repr, METHODS))}"
            )

    def write(
        self,
        generator: Generator,
        sources: Sequence[Sequence[str]],
        prefixes: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> list[GeneratedText]:
        """One text for each source; arguments and errors as `Generator`'s verbs."""
        if self.method == "greedy":
            return generator.greedy(sources, prefixes, tasks=tasks)
        if self.method == "beam_search":
            found = generator.beam_search(
                sources,
                prefixes,
                num_beams=self.num_beams,
                length_penalty=self.length_penalty,
                tasks=tasks,
            )
        else:
            found = generator.sample(
                sources,
                prefixes,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                seed=[self.seed + place for place in range(len(sources))],
                tasks=tasks,
            )
        return [texts[0] for texts in found]

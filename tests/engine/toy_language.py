"""A language over a handful of tokens, small enough to enumerate every text."""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID

VOCAB = 5
NUM_CODES = 4999  # a prime, so that prefixes rarely share a code


class Cache(NamedTuple):
    """Each row's prefix as one number: what the next token's distribution depends on."""

    code: Any

    def take_rows(self, rows: Any) -> "Cache":
        return Cache(self.code[rows])


class Language(NamedTuple):
    """Logits `[codes, vocab]`, unlike for every prefix and every source."""

    logits: Any

    def start(self, num_sources: int, rows_per_source: int = 1) -> Cache:
        return Cache(jnp.repeat(1 + 17 * jnp.arange(num_sources), rows_per_source))

    def step(
        self, cache: Cache, tokens: Any, position: Any, column: Any = None
    ) -> tuple[Any, Cache]:
        code = (cache.code * 31 + tokens + 1) % NUM_CODES
        return self.logits[code], Cache(code)

    def log_probability(self, source: int, text: tuple[int, ...], given: int = 0) -> float:
        """Of a text's tokens from number `given` on, in plain Python."""
        code, last, total = 1 + 17 * source, PAD_ID, 0.0
        for position, token in enumerate(text):
            code = (code * 31 + last + 1) % NUM_CODES
            logits = np.asarray(self.logits[code], np.float64)
            if position >= given:
                total += logits[token] - np.log(np.exp(logits).sum())
            last = token
        return float(total)


def random_language(seed: int, end: float = 0.0, vocab: int = VOCAB) -> Language:
    """`end` is added to the logit of `[EOS]`."""
    logits = np.random.default_rng(seed).normal(size=(NUM_CODES, vocab)) * 1.5
    logits[:, EOS_ID] += end
    return Language(jnp.asarray(logits, jnp.float32))


def all_but_pad(vocab: int = VOCAB) -> Automaton:
    return Automaton(jnp.arange(vocab) != PAD_ID)


def every_text(length: int, vocab: int = VOCAB) -> list[tuple[int, ...]]:
    """Every text of up to `length` tokens: those with `[EOS]` at the end, then those cut off."""
    words = [token for token in range(vocab) if token not in (PAD_ID, EOS_ID)]
    ended = [
        (*text, EOS_ID) for size in range(length) for text in itertools.product(words, repeat=size)
    ]
    return ended + list(itertools.product(words, repeat=length))


def until_end(tokens: Any) -> tuple[int, ...]:
    """A row `[length]` without its padding."""
    return tuple(int(token) for token in tokens if token != PAD_ID)

"""Which tokens may come next: masks over the vocabulary that depend on the tokens before.

A constraint is a tree of arrays (so that it is an argument of the compiled program, not a part of
it) with a state per row, itself a tree of arrays `[rows, ...]`, which beam search can reorder.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

Array = jax.Array


class Constraint(Protocol):
    """How decoding asks what may come next."""

    def start(self, num_rows: int) -> Any:
        """The state before the first token, leaves `[rows, ...]`."""

    def mask(self, state: Any, log_probs: Array) -> Array:
        """log_probs `[rows, vocab]` with -inf at every token that must not come next."""

    def advance(self, state: Any, tokens: Array) -> Any:
        """The state after tokens `[rows]`; any token may come, those of a prefix too."""


class AllowedTokens(NamedTuple):
    """The same tokens are allowed everywhere.

    Attributes:
      allowed: bool `[vocab]`.
    """

    allowed: Array

    def start(self, num_rows: int) -> Array:
        """Nothing to remember."""
        return jnp.zeros((num_rows,), jnp.int32)

    def mask(self, state: Array, log_probs: Array) -> Array:
        return jnp.where(self.allowed, log_probs, -jnp.inf)

    def advance(self, state: Array, tokens: Array) -> Array:
        return state


class AfterPrefix(NamedTuple):
    """Another constraint, which holds only after the first tokens of each source.

    The state is that of the constraint, and how many of the first tokens are still to come, int32
    `[rows]`; rows of one source lie next to one another.

    Attributes:
      constraint: of what comes after.
      length: int32 `[sources]`, how many tokens are free of it.
    """

    constraint: Any
    length: Array

    def start(self, num_rows: int) -> tuple[Any, Array]:
        """The constraint's own start."""
        rows_per_source = num_rows // self.length.shape[0]
        return self.constraint.start(num_rows), jnp.repeat(self.length, rows_per_source)

    def mask(self, state: tuple[Any, Array], log_probs: Array) -> Array:
        """See `Constraint`; means nothing within the first tokens."""
        return self.constraint.mask(state[0], log_probs)

    def advance(self, state: tuple[Any, Array], tokens: Array) -> tuple[Any, Array]:
        own, to_come = state
        moved = self.constraint.advance(own, tokens)
        return where_rows(to_come > 0, own, moved), jnp.maximum(to_come - 1, 0)

    def entries(self, state: tuple[Any, Array]) -> Array:
        """See `TokenTrie.entries`, where the constraint is a trie."""
        return self.constraint.entries(state[0])


def any_text(vocabulary: Vocabulary, vocab_size: int) -> AllowedTokens:
    """Text and `[EOS]`, no control ids, sentinels or spare rows of the embedding `[vocab_size]`."""
    allowed = np.zeros(vocab_size, bool)
    allowed[[*vocabulary.text_ids, EOS_ID]] = True
    return AllowedTokens(jax.device_put(allowed))


def where_rows(condition: Array, then: Any, otherwise: Any) -> Any:
    """`jnp.where` with a condition `[rows]` over trees of arrays `[rows, ...]`."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, then, otherwise)

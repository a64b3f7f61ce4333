"""What decoding may write next: masks over the vocabulary that depend on what was written.

A constraint is a tree of arrays (so that it is an argument of the compiled program, not a part of
it) with a state per row, itself a tree of arrays `[rows, ...]`, which beam search can reorder.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        """The state after tokens `[rows]`; any token may come, forced ones too."""


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
        """See `Constraint`."""
        return jnp.where(self.allowed, log_probs, -jnp.inf)

    def advance(self, state: Array, tokens: Array) -> Array:
        """See `Constraint`."""
        return state


class AfterGiven(NamedTuple):
    """Another constraint on what comes after each source's given tokens, which are free of it.

    The state is that of the constraint, and how many given tokens are still to come, int32
    `[rows]`; rows of one source lie next to one another.

    Attributes:
      constraint: of what comes after.
      num_given: int32 `[sources]`.
    """

    constraint: Any
    num_given: Array

    def start(self, num_rows: int) -> tuple[Any, Array]:
        """The constraint's own start."""
        rows_per_source = num_rows // self.num_given.shape[0]
        return self.constraint.start(num_rows), jnp.repeat(self.num_given, rows_per_source)

    def mask(self, state: tuple[Any, Array], log_probs: Array) -> Array:
        """See `Constraint`; means nothing where a given token comes next."""
        return self.constraint.mask(state[0], log_probs)

    def advance(self, state: tuple[Any, Array], tokens: Array) -> tuple[Any, Array]:
        """See `Constraint`."""
        own, to_come = state
        moved = self.constraint.advance(own, tokens)
        kept = jax.tree.map(
            lambda old, new: jnp.where(to_come.reshape(-1, *(1,) * (new.ndim - 1)) > 0, old, new),
            own,
            moved,
        )
        return kept, jnp.maximum(to_come - 1, 0)

    def entries(self, state: tuple[Any, Array]) -> Array:
        """See `TokenTrie.entries`, where the constraint is a trie."""
        entries: Array = self.constraint.entries(state[0])
        return entries


def any_text(vocabulary: Vocabulary, vocab_size: int, also: Sequence[int] = ()) -> AllowedTokens:
    """Text and `[EOS]`: of control ids, sentinels and spare rows only those in `also`.

    Args:
      vocabulary: says which ids are text.
      vocab_size: rows of the model's embedding, at least the vocabulary's.
      also: further ids, such as sentinels for filling in blanks.
    """
    allowed = np.zeros(vocab_size, bool)
    allowed[[*vocabulary.text_ids, EOS_ID, *also]] = True
    return AllowedTokens(jnp.asarray(allowed))

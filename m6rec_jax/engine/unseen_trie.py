"""Titles without those a user has seen: a trie in which every row has dead branches of its own.

A branch is dead when all sequences below it are excluded. Those below a node have consecutive
ranks, so two binary searches in a row's sorted excluded ranks tell how many of them are. No beam is
spent on a title that would have to be thrown away, however many of the likeliest ones are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.catalogue_index import excluded_widths
from m6rec_jax.engine.title_trie import TitleTrie
from m6rec_jax.engine.token_trie import TokenTrie
from m6rec_jax.errors import DataError

Array = jax.Array

# Above all ranks: fills up rows that exclude less than others.
NO_RANK = np.iinfo(np.int32).max


class UnseenTrie(NamedTuple):
    """A `TokenTrie` for several sources, a `constraints.Constraint`.

    The state is the node of each row and its source, int32 `[rows]` each; rows of one source lie
    next to one another.

    Attributes:
      trie: of all sequences.
      excluded: int32 `[sources, width]`, ascending ranks, filled up with `NO_RANK`.
    """

    trie: TokenTrie
    excluded: Array

    def start(self, num_rows: int) -> tuple[Array, Array]:
        """The root, before the first token."""
        rows_per_source = num_rows // self.excluded.shape[0]
        source = jnp.arange(num_rows, dtype=jnp.int32) // rows_per_source
        return self.trie.start(num_rows), source

    def mask(self, state: tuple[Array, Array], log_probs: Array) -> Array:
        """See `constraints.Constraint`."""
        node, source = state
        children, present = self.trie.children(node)
        first, end = self.trie.first_rank[children], self.trie.end_rank[children]
        search = jax.vmap(jnp.searchsorted)
        own = self.excluded[source]
        dead = search(own, end) - search(own, first) == end - first
        return self.trie.mask_of(children, present & ~dead, log_probs)

    def advance(self, state: tuple[Array, Array], tokens: Array) -> tuple[Array, Array]:
        """See `constraints.Constraint`."""
        node, source = state
        return self.trie.advance(node, tokens), source

    def entries(self, state: tuple[Array, Array]) -> Array:
        """See `TokenTrie.entries`."""
        return self.trie.entries(state[0])


def excluded_ranks(trie: TitleTrie, seen: Sequence[Sequence[int]], number: int) -> np.ndarray:
    """Ranks that each history excludes, int32 `[histories, width]`, for `UnseenTrie`.

    The width is one of `excluded_widths`, so that few shapes are compiled.

    Args:
      trie: of the catalogue.
      seen: per history, places in the catalogue.
      number: of histories.

    Raises:
      DataError: another number of lists than of histories, or a place outside the catalogue.
    """
    if len(seen) != number:
        raise DataError(f"{len(seen)} lists of seen items for {number} histories")
    ranks = [trie.seen_ranks(places) for places in seen]
    longest = max(map(len, ranks), default=0)
    width = next(width for width in excluded_widths(len(trie)) if width >= longest)
    found = np.full((number, width), NO_RANK, np.int32)
    for row, own in enumerate(ranks):
        found[row, : len(own)] = own
    return found

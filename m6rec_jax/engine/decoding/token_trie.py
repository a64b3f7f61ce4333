"""A trie of token sequences as arrays on the device: a constraint that allows only these.

Nodes are numbered level by level, the children of a node by ascending token. A node's children are
then consecutive, and the edge that leads to node n can be called n itself, so three arrays hold all
(compressed sparse rows whose target column is implied):

    children of n     nodes first_child[n] … first_child[n + 1] - 1
    token[n]          the token on the way to n
    entry[n]          which sequence ends at n, or NO_ENTRY
    below n           the sequences of ranks first_rank[n] … end_rank[n] - 1, sorted by their tokens

Every sequence ends with `[EOS]`, so only leaves have an entry, and a text that has ended is one.

A mask is made from the children of the current node alone: gathered into as many slots as the
widest node has, then scattered into the vocabulary. For R rows that takes R x width memory, and no
node has more children than the vocabulary has ids, so it stays in the order of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.text.vocabulary import EOS_ID

Array = jax.Array

NO_ENTRY = -1
# Above all ranks: fills up sources that exclude less than others.
NO_RANK = np.iinfo(np.int32).max


class TokenTrie(NamedTuple):
    """The arrays, a `constraints.Constraint`; the state is the node of each row, int32 `[rows]`.

    Their lengths are rounded up to powers of two, so that a catalogue which grows a little compiles
    nothing anew. The last node is always such a spare one, without children: that is where a row
    stands whose tokens no sequence has.

    Attributes:
      first_child: int32 `[nodes + 1]`.
      token, entry, first_rank, end_rank: int32 `[nodes]`.
      slots: int32 `[width]`, 0, 1, 2, …; its length carries the number of children of the widest
        node into compiled code.
    """

    first_child: Array
    token: Array
    entry: Array
    first_rank: Array
    end_rank: Array
    slots: Array

    def start(self, num_rows: int) -> Array:
        """The root, before the first token."""
        return jnp.zeros((num_rows,), jnp.int32)

    def mask(self, state: Array, log_probs: Array) -> Array:
        return self.mask_of(*self.children(state), log_probs)

    def mask_of(self, children: Array, present: Array, log_probs: Array) -> Array:
        """log_probs `[rows, vocab]`, -inf at all tokens but those on the way to present children.

        Args:
          children, present: of `children`.
          log_probs: see `constraints.Constraint`.
        """
        # Out of range, so that the scatter below drops it.
        tokens = jnp.where(present, self.token[children], log_probs.shape[-1])
        own = jnp.take_along_axis(log_probs, tokens, axis=-1, mode="clip")
        rows = jnp.arange(children.shape[0])[:, None]
        return jnp.full_like(log_probs, -jnp.inf).at[rows, tokens].set(own, mode="drop")

    def advance(self, state: Array, tokens: Array) -> Array:
        children, present = self.children(state)
        taken = present & (self.token[children] == tokens[:, None])
        found = jnp.max(jnp.where(taken, children, -1), axis=-1)
        return jnp.where(found < 0, self.token.shape[0] - 1, found)

    def entries(self, state: Array) -> Array:
        """Which sequence each row has generated, `NO_ENTRY` where none is complete."""
        return self.entry[state]

    def children(self, state: Array) -> tuple[Array, Array]:
        """Nodes in the slots of each row `[rows, width]`, and whether they are children."""
        first, end = self.first_child[state], self.first_child[state + 1]
        children = first[:, None] + self.slots
        present = children < end[:, None]
        return jnp.where(present, children, 0), present


class UnseenTrie(NamedTuple):
    """A `TokenTrie` without the sequences that each source excludes, a `constraints.Constraint`.

    A branch is dead when all sequences below it are excluded. Those below a node have consecutive
    ranks, so two binary searches in a source's sorted excluded ranks count them. No
    beam is spent on a sequence that would have to be thrown away.

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
        node, source = state
        children, present = self.trie.children(node)
        first, end = self.trie.first_rank[children], self.trie.end_rank[children]
        search = jax.vmap(jnp.searchsorted)
        own = self.excluded[source]
        dead = search(own, end) - search(own, first) == end - first
        return self.trie.mask_of(children, present & ~dead, log_probs)

    def advance(self, state: tuple[Array, Array], tokens: Array) -> tuple[Array, Array]:
        node, source = state
        return self.trie.advance(node, tokens), source

    def entries(self, state: tuple[Array, Array]) -> Array:
        return self.trie.entries(state[0])


def build_trie(sequences: Sequence[Sequence[int] | np.ndarray]) -> TokenTrie:
    """The trie of some token sequences.

    Args:
      sequences: some, none of them empty or there twice, without `[EOS]`, which is added; sequence
        i becomes entry i.
    """
    matrix = _padded(sequences)
    order = np.lexsort(matrix.T[::-1])
    ordered = matrix[order]
    num_rows, depth = ordered.shape

    # A row differs from the one before in its first d + 1 tokens: there a node begins at depth d.
    differs = np.ones((num_rows, depth), bool)
    differs[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
    parents, tokens, entries = [], [np.array([-1])], [np.array([NO_ENTRY])]
    firsts, ends = [np.array([0])], [np.array([num_rows])]
    above = np.zeros(num_rows, np.int64)  # the node of each row one level up
    num_nodes = 1
    for level in range(depth):
        begins = differs[:, level] & (ordered[:, level] >= 0)
        here = num_nodes + np.cumsum(begins) - 1
        token = ordered[begins, level]
        parents.append(above[begins])
        tokens.append(token)
        entries.append(np.where(token == EOS_ID, order[begins], NO_ENTRY))
        # A node's sequences go until the next row that differs, whether or not a node begins there.
        others = np.append(np.flatnonzero(differs[:, level]), num_rows)
        firsts.append(np.flatnonzero(begins))
        ends.append(others[np.searchsorted(others, firsts[-1], side="right")])
        num_nodes += int(begins.sum())
        above = here
    number_of_children = np.bincount(np.concatenate(parents), minlength=num_nodes)

    size = _power_of_two(num_nodes + 1)
    first_child = np.full(size + 1, num_nodes, np.int32)
    first_child[: num_nodes + 1] = 1 + np.concatenate([[0], np.cumsum(number_of_children)])

    def padded(parts: list[np.ndarray], value: int) -> Array:
        joined = np.pad(np.concatenate(parts), (0, size - num_nodes), constant_values=value)
        return jax.device_put(joined.astype(np.int32))

    # Not `jnp.asarray`, which compiles a program for each shape.
    return TokenTrie(
        jax.device_put(first_child),
        padded(tokens, -1),
        padded(entries, NO_ENTRY),
        padded(firsts, 0),
        padded(ends, 0),
        jax.device_put(np.arange(_power_of_two(int(number_of_children.max())), dtype=np.int32)),
    )


def _padded(sequences: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """`[sequences, longest + 1]` with `[EOS]` at the end of each, then -1."""
    lengths = [len(tokens) for tokens in sequences]
    matrix = np.full((len(sequences), max(lengths) + 1), -1, np.int64)
    for i, tokens in enumerate(sequences):
        matrix[i, : len(tokens)] = tokens
        matrix[i, len(tokens)] = EOS_ID
    return matrix


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()

"""A trie of token sequences as a graph of `automaton`.

Nodes are numbered level by level, the children of a node by ascending token. A node's children are
then consecutive, and the edge that leads to node n is number n. Every sequence ends with `[EOS]`,
so only leaves have an entry.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from m6rec_jax.engine.decoding.automaton import NO_ENTRY, Graphs
from m6rec_jax.text.vocabulary import EOS_ID


def build_trie(sequences: Sequence[Sequence[int] | np.ndarray]) -> Graphs:
    """One graph of distinct sequences of tokens, at least one; entry i is sequence i.

    Sizes are rounded up to powers of two, so that a catalogue which grows a little compiles nothing
    anew.
    """
    depth = max(map(len, sequences)) + 1
    matrix = np.full((len(sequences), depth), -1, np.int64)
    for i, sequence in enumerate(sequences):
        matrix[i, : len(sequence)], matrix[i, len(sequence)] = sequence, EOS_ID
    order = np.lexsort(matrix.T[::-1])
    ordered = matrix[order]
    num_rows = len(ordered)

    # A row differs from the one before in its first d + 1 tokens: there a node begins at depth d.
    differs = np.ones((num_rows, depth), bool)
    differs[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)
    parents: list[np.ndarray] = []
    tokens, entries = [np.array([-1])], [np.array([NO_ENTRY])]
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
    first_edge = np.full((1, size + 1), num_nodes, np.int32)
    first_edge[0, : num_nodes + 1] = 1 + np.concatenate([[0], np.cumsum(number_of_children)])

    def padded(parts: list[np.ndarray], value: int) -> np.ndarray:
        joined = np.pad(np.concatenate(parts), (0, size - num_nodes), constant_values=value)
        return joined.astype(np.int32)[None]

    graphs = Graphs(
        first_edge=first_edge,
        token=padded(tokens, -1),
        target=np.arange(size, dtype=np.int32)[None],
        slots=np.arange(_power_of_two(int(number_of_children.max())), dtype=np.int32),
        entry=padded(entries, NO_ENTRY),
        first_rank=padded(firsts, 0),
        end_rank=padded(ends, 0),
    )
    # Not `jnp.asarray`, which compiles a program for each shape.
    return jax.device_put(graphs)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()

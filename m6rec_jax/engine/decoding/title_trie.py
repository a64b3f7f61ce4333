"""The titles of a catalogue, so that what the model recommends always exists.

    trie = TitleTrie(vocabulary, titles)                # once
    generator.recommend(requests, trie, 10)             # titles, scores *and* indices of items

A title may belong to several items: films are remade and re-released, and texts that differ only
in what the vocabulary normalises away have the same tokens. All of them are returned, in the
catalogue's order.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.errors import DataError
from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary


class TitleTrie:
    """The graph of titles, and the items that each of them belongs to.

    Args:
      vocabulary: the model's.
      titles: of each item, at least one, in the catalogue's order: what the model was trained to
        generate.
      max_tokens: longest title in tokens, `[EOS]` included; longer ones lose their end, as training
        cuts them, and may come to share it. None: no limit.

    Raises:
      DataError: a title without words.

    Attributes:
      automaton: of `build_trie`; its entries are distinct titles, sorted by their tokens.
      titles: the text of each entry.
      length: tokens of the longest entry, `[EOS]` included: steps that decoding may need.
    """

    def __init__(
        self, vocabulary: Vocabulary, titles: Sequence[str], max_tokens: int | None = None
    ) -> None:
        items_of: dict[tuple[int, ...], list[int]] = {}
        for index, title in enumerate(titles):
            tokens = vocabulary.encode(title)
            if not tokens:
                raise DataError(f"item {index} has no title to generate: {title!r}")
            kept = tokens if max_tokens is None else tokens[: max_tokens - 1]
            items_of.setdefault(tuple(kept), []).append(index)
        sequences = sorted(items_of)
        self.automaton = build_trie(sequences)
        self._items = [items_of[sequence] for sequence in sequences]
        self._entry_of_item = np.zeros(len(titles), np.int64)
        for entry, items in enumerate(self._items):
            self._entry_of_item[items] = entry
        self._num_items_of = np.bincount(self._entry_of_item)
        self.titles = [titles[items[0]] for items in self._items]
        self.length = 1 + max(map(len, sequences))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """What compiled programs depend on."""
        leaves = tuple(leaf.shape for leaf in jax.tree.leaves(self.automaton))
        return *leaves, self.excluded([()]).shape

    def __len__(self) -> int:
        """Distinct titles."""
        return len(self.titles)

    def excluded(self, seen: Sequence[Sequence[int]]) -> np.ndarray:
        """Which titles must not come, since all of their items were seen: bool `[histories, width]`
        by entry; the width is that of the trie's arrays.

        Args:
          seen: per history, indices into the catalogue.
        """
        excluded = np.zeros((len(seen), _power_of_two(len(self))), bool)
        for row, items in zip(excluded, seen, strict=True):
            entries = self._entry_of_item[np.unique(np.asarray(items, np.int64))]
            counts = np.bincount(entries, minlength=len(self))
            row[: len(self)] = counts == self._num_items_of
        return excluded

    def indices(self, entry: int) -> list[int]:
        """Indices into the catalogue, ascending, of all items that have a title, one of
        `Automaton.entries`.
        """
        return self._items[entry]


def build_trie(sequences: Sequence[Sequence[int] | np.ndarray]) -> Automaton:
    """The graph of distinct, sorted sequences of tokens, at least one; entry i is sequence i.

    Nodes are numbered level by level, the children of a node by ascending token. A node's children
    are then consecutive, and the edge that leads to node n is number n. Every sequence ends with
    `[EOS]`, so only leaves have an entry. Sizes are rounded up to powers of two, so that a
    catalogue which grows a little compiles nothing anew.
    """
    depth, number = max(map(len, sequences)) + 1, len(sequences)
    tokens = np.full((depth, number), -1, np.int32)
    for i, sequence in enumerate(sequences):
        tokens[: len(sequence), i], tokens[len(sequence), i] = sequence, EOS_ID

    # A sequence differs from the one before in its first d + 1 tokens: there a node of depth d
    # begins, unless it has ended.
    differs = np.ones(tokens.shape, bool)
    differs[:, 1:] = np.logical_or.accumulate(tokens[:, 1:] != tokens[:, :-1], axis=0)
    begins = differs & (tokens >= 0)
    level, first = np.nonzero(begins)  # of each node but node 0
    node = np.cumsum(begins, dtype=np.int32).reshape(begins.shape)
    parent = np.where(level > 0, node[level - 1, first], 0)
    # A node's sequences go until the next one that differs, whether or not a node begins there.
    next_ = np.full(differs.shape, number, np.int32)
    next_[:, :-1][differs[:, 1:]] = np.nonzero(differs[:, 1:])[1] + 1
    next_ = np.minimum.accumulate(next_[:, ::-1], axis=1)[:, ::-1]
    num_nodes = 1 + len(level)
    number_of_children = np.bincount(parent, minlength=num_nodes)
    size = _power_of_two(num_nodes + 1)
    first_edge = np.full(size + 1, num_nodes, np.int32)
    first_edge[: num_nodes + 1] = 1 + np.concatenate([[0], np.cumsum(number_of_children)])

    def padded(root: int, others: np.ndarray) -> np.ndarray:
        rest = np.full(size - num_nodes, -1)
        return np.concatenate([[root], others, rest]).astype(np.int32)

    automaton = Automaton(
        first_edge=first_edge,
        token=padded(-1, tokens[level, first]),
        target=np.arange(size, dtype=np.int32),
        slots=np.arange(_power_of_two(int(number_of_children.max())), dtype=np.int32),
        first_entry=padded(0, first),
        end_entry=padded(number, next_[level, first]),
    )
    # Not `jnp.asarray`, which compiles a program for each shape.
    return jax.device_put(automaton)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()

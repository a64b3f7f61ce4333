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

from m6rec_jax.engine.decoding.automaton import NO_RANK
from m6rec_jax.engine.decoding.graphs import build_trie
from m6rec_jax.engine.index.catalogue_index import excluded_widths
from m6rec_jax.errors import DataError
from m6rec_jax.text.vocabulary import Vocabulary


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
      automaton: of `build_trie`; its entries are distinct titles.
      titles: the text of each entry.
      ranks: int64 `[titles]`, of each entry among all sorted by their tokens.
      num_items: how many items the catalogue has.
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
        sequences = list(items_of)
        self.automaton = build_trie(sequences)
        self._items = [np.array(items, np.int64) for items in items_of.values()]
        self._entry_of_item = np.zeros(len(titles), np.int64)
        for entry, items in enumerate(self._items):
            self._entry_of_item[items] = entry
        self._num_items_of = np.bincount(self._entry_of_item)
        ending = np.asarray(self.automaton.entry)
        first_rank = np.asarray(self.automaton.first_rank)
        leaves = np.flatnonzero(ending >= 0)
        self.ranks = np.zeros(len(sequences), np.int64)
        self.ranks[ending[leaves]] = first_rank[leaves]
        self.titles = [titles[items[0]] for items in items_of.values()]
        self.num_items = len(titles)
        self.length = 1 + max(map(len, sequences))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """What compiled programs depend on."""
        return tuple(leaf.shape for leaf in jax.tree.leaves(self.automaton))

    def __len__(self) -> int:
        """Distinct titles."""
        return len(self.titles)

    def excluded_ranks(self, seen: Sequence[Sequence[int]], widest: bool = False) -> np.ndarray:
        """Ranks of the titles all of whose items were seen, ascending, int32 `[histories, width]`.

        For `Automaton`. The width is one of `excluded_widths`, so that few shapes are compiled,
        and the last one where only the `widest` is. `seen` are, per history, indices into the
        catalogue.

        Raises:
          DataError: an item outside the catalogue.
        """
        ranks = []
        for items in (np.unique(np.asarray(one, np.int64)) for one in seen):
            if len(items) and not 0 <= items[0] <= items[-1] < self.num_items:
                raise DataError(
                    f"a seen item is outside the catalogue of {self.num_items} items: {items[0]} "
                    f"or {items[-1]}"
                )
            entries, counts = np.unique(self._entry_of_item[items], return_counts=True)
            ranks.append(np.sort(self.ranks[entries[self._num_items_of[entries] == counts]]))
        longest = len(self) if widest else max(map(len, ranks), default=0)
        width = next(width for width in excluded_widths(len(self)) if width >= longest)
        excluded = np.full((len(seen), width), NO_RANK, np.int32)
        for row, ranks_of_row in zip(excluded, ranks, strict=True):
            row[: len(ranks_of_row)] = ranks_of_row
        return excluded

    def warm_up_seen(self) -> list[list[int]]:
        """Seen items for each of the shapes that `excluded_ranks` may have."""
        widths = excluded_widths(len(self))
        return [[int(i) for items in self._items[:width] for i in items] for width in widths]

    def indices(self, entry: int) -> list[int]:
        """Indices into the catalogue, ascending, of all items that have a title, one of
        `Automaton.entries`.
        """
        return self._items[entry].tolist()

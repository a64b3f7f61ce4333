"""The titles of a catalogue, so that what the model recommends always exists.

    trie = TitleTrie(vocabulary, titles)                # once
    generator.recommend(histories, trie, 10)            # titles, scores *and* places

A title may belong to several items: films are remade and re-released, and texts that differ only
in what the vocabulary normalises away have the same tokens. All of them are returned, in an order
that the caller decides (by retrieval, say).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from m6rec_jax.engine.catalogue_index import excluded_widths
from m6rec_jax.engine.token_trie import build_trie
from m6rec_jax.errors import DataError
from m6rec_jax.text.vocabulary import Vocabulary

# Scores of the whole catalogue, or a function from places in it to their scores.
ItemScores = np.ndarray | Callable[[np.ndarray], np.ndarray]


class TitleTrie:
    """A `TokenTrie` of titles, and the items that each of them belongs to.

    Args:
      vocabulary: the model's.
      titles: of each item, in the catalogue's order: what generation was trained to write.
      max_tokens: longest title in tokens, `[EOS]` included; longer ones lose their end, as training
        cuts them, and may come to share it. None: no limit.

    Raises:
      DataError: no titles, or one without words.

    Attributes:
      arrays: the `TokenTrie`; its entries are distinct titles.
      titles: the text of each entry.
      num_items: how many items the catalogue has.
      length: tokens of the longest entry, `[EOS]` included: steps that decoding may need.
    """

    def __init__(
        self, vocabulary: Vocabulary, titles: Sequence[str], max_tokens: int | None = None
    ) -> None:
        places: dict[tuple[int, ...], list[int]] = {}
        for place, title in enumerate(titles):
            tokens = vocabulary.encode(title)
            if not tokens:
                raise DataError(f"item {place} has no title to write: {title!r}")
            kept = tokens if max_tokens is None else tokens[: max_tokens - 1]
            places.setdefault(tuple(kept), []).append(place)
        sequences = list(places)
        self.arrays = build_trie(sequences)
        # On the host as well, to check prefixes without a round trip.
        self._first_child = np.asarray(self.arrays.first_child)
        self._token = np.asarray(self.arrays.token)
        self._places = [np.array(items, np.int64) for items in places.values()]
        self._entry_of_place = np.zeros(len(titles), np.int64)
        for entry, items in enumerate(self._places):
            self._entry_of_place[items] = entry
        ending, first_rank = np.asarray(self.arrays.entry), np.asarray(self.arrays.first_rank)
        leaves = np.flatnonzero(ending >= 0)
        self._rank = np.zeros(len(sequences), np.int64)
        self._rank[ending[leaves]] = first_rank[leaves]
        self.titles = [titles[items[0]] for items in places.values()]
        self.num_items = len(titles)
        self.length = 1 + max(map(len, sequences))

    def __len__(self) -> int:
        """Distinct titles."""
        return len(self.titles)

    def has_prefix(self, tokens: Sequence[int]) -> bool:
        """Whether a title begins with these tokens."""
        node = 0
        for token in tokens:
            first, end = self._first_child[node : node + 2]
            children = self._token[first:end]
            place = int(np.searchsorted(children, token))
            if place == len(children) or children[place] != token:
                return False
            node = int(first) + place
        return True

    def seen_ranks(self, seen: Sequence[int] | np.ndarray) -> np.ndarray:
        """Ranks (see `TokenTrie`) of the titles all of whose items were seen, ascending.

        Args:
          seen: places in the catalogue.

        Raises:
          DataError: a place outside the catalogue.
        """
        items = np.unique(np.asarray(seen, np.int64))
        if len(items) and not 0 <= items[0] <= items[-1] < self.num_items:
            raise DataError(
                f"a seen item is outside the catalogue of {self.num_items} items: {items[0]} or "
                f"{items[-1]}"
            )
        entries, counts = np.unique(self._entry_of_place[items], return_counts=True)
        whole = [len(self._places[entry]) == n for entry, n in zip(entries, counts, strict=True)]
        return np.sort(self._rank[entries[np.asarray(whole, bool)]])

    def warm_up_seen(self) -> list[list[int]]:
        """Seen items for each of the shapes that `unseen_trie.excluded_ranks` may have."""
        widths = excluded_widths(len(self))
        return [[int(i) for items in self._places[:width] for i in items] for width in widths]

    def shared_places(self) -> np.ndarray:
        """Places of all items that share their title with another one, ascending, int64."""
        shared = [items for items in self._places if len(items) > 1]
        return np.sort(np.concatenate(shared)) if shared else np.zeros(0, np.int64)

    def places(self, entry: int, scores: ItemScores | None = None) -> list[int]:
        """Places in the catalogue of all items that have this title.

        Args:
          entry: of `TokenTrie.entries`.
          scores: best first by these, float `[items]` or a function from places to scores; equal
            ones, and None, leave the catalogue's order.

        Raises:
          DataError: scores of another number of items.
        """
        items = self._places[entry]
        if scores is None or len(items) == 1:
            return [int(item) for item in items]
        if callable(scores):
            own = np.asarray(scores(items))
        else:
            if len(scores) != self.num_items:
                raise DataError(f"{len(scores)} scores for {self.num_items} items")
            own = scores[items]
        if own.shape != items.shape:
            raise DataError(f"scores of shape {list(own.shape)} for {len(items)} items")
        return [int(items[i]) for i in np.argsort(-own, kind="stable")]

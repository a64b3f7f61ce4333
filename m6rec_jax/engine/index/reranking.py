"""The hybrid retriever: candidates of five sources, ordered by all that is known of them.

    reranker = Reranker(co_occurrence, ease, catalogue.texts, catalogue.train_counts)
    users = retriever.embed_users(histories)
    found = index.top_k(users, 100, seen)
    best = reranker.rerank(past, seen, found, similarities)  # ids *and* scores

The two towers find items by what is said of users and items; co-occurrence (`co_occurrence`)
knows what others did around the history's last items; EASE (`ease`) what goes with all that a
user had; words (`item_words`) find what is called alike; and where repeats count, people come back
to what they had. Each finds what the others miss, so candidates are the best of each, and popular
items where they find little. They are ordered by the weighted sum of their features
(`ranking_weights`), which `m6rec calibrate` learns on validation rows. An item that nobody has
acted on has weights of its own, of its text and of this user alone. A user without a past is
recommended what is popular, spread over kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from m6rec_jax.data.features.co_occurrence import CoOccurrence, RelatedItems
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.engine.index.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.index.item_words import ItemWords
from m6rec_jax.engine.index.ranking_weights import (
    KNOWN,
    LEAST_EASE,
    LEAST_MATCH,
    LEAST_SHARE,
    NEW,
    UNLEARNT,
    RankingWeights,
)
from m6rec_jax.errors import DataError

# Items `[users, k]` to the towers' similarities, float32; anything at `NO_ITEM`.
Similarities = Callable[[np.ndarray], np.ndarray]


class Candidates(NamedTuple):
    """Items that may be recommended, and what is known of them.

    Attributes:
      ids: int64 `[users, n]`, the towers' in their order, then those of the others; `NO_ITEM` where
        a user has fewer.
      features: float32 `[users, n, features]`: `KNOWN`, 0 for new items, then `NEW`, 0 for known
        ones.
    """

    ids: np.ndarray
    features: np.ndarray


class PastItems(NamedTuple):
    """What a user had, most often first; of equals what it had last.

    Attributes:
      items: int64 `[n]`, each once.
      times: int64 `[n]`, how often.
      since: int64 `[n]`, how many items ago last: 1 is the last one of all.
    """

    items: np.ndarray
    times: np.ndarray
    since: np.ndarray

    @classmethod
    def of(cls, past: Sequence[int] | np.ndarray) -> PastItems:
        """Counts items, oldest first."""
        latest_first = np.asarray(past, np.int64)[::-1]
        items, first, times = np.unique(latest_first, return_index=True, return_counts=True)
        order = np.lexsort((first, -times))
        return cls(items[order], times[order], first[order] + 1)

    def look_up(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Times and since of some items `[n]`; 0 and 1 of what the user never had."""
        same = items[:, None] == self.items
        had = same.any(axis=1)
        places = same.argmax(axis=1) if len(self.items) else np.zeros(len(items), np.int64)
        times, since = np.append(self.times, 0), np.append(self.since, 1)
        places = np.where(had, places, len(self.items))
        return times[places], since[places]


class Reranker:
    """Finds more candidates than the towers did, and orders all.

    Args:
      co_occurrence: of the training events.
      ease: of the training events.
      texts: of the catalogue, in the order of the items table; items that are newer than the
        counts may follow.
      counts: training events of each item `[items]`, or of the first ones; items with none are new.
      weights: by which items are ordered; None: those of `UNLEARNT`.
      depth: how many items co-occurrence, EASE, words and what the user had add, each, at most;
        the most popular ones follow where all together are fewer.
      offered: which items may be recommended, bool `[items]`; None: all.
      kinds: of each item, or of the first ones, such as genres; None: nothing is said of them, and
        users without a past are recommended to as others are.

    Raises:
      DataError: counts of more items than there are.
    """

    def __init__(
        self,
        co_occurrence: CoOccurrence,
        ease: Ease,
        texts: Sequence[str],
        counts: np.ndarray,
        weights: RankingWeights | None = None,
        *,
        depth: int = 100,
        offered: np.ndarray | None = None,
        kinds: Sequence[Sequence[str]] | None = None,
    ) -> None:
        if max(co_occurrence.num_items, len(counts)) > len(texts):
            raise DataError(
                f"co-occurrence was counted over {co_occurrence.num_items} items, the catalogue "
                f"has {len(texts)}: they belong to different data"
            )
        self._co_occurrence, self._ease = co_occurrence, ease
        self._depth, self._words = depth, ItemWords(texts)
        self._kinds = None if kinds is None else _memberships(kinds, len(texts))
        counts = np.pad(counts, (0, len(texts) - len(counts)))
        self.new, self._popularity = counts == 0, np.log1p(counts)
        self._offered = np.ones(len(texts), bool) if offered is None else offered
        popular = np.argsort(-counts, kind="stable")
        self._popular = popular[(self._offered & ~self.new)[popular]]
        self.weights = weights or UNLEARNT

    @property
    def depth(self) -> int:
        """How many items each source adds, at most; the towers should find as many."""
        return self._depth

    def rerank(
        self,
        past: Sequence[Sequence[int] | np.ndarray],
        seen: Sequence[Sequence[int] | np.ndarray],
        towers: TopK,
        similarities: Similarities,
    ) -> TopK:
        """All candidates, best first: as the towers found, and up to four times the depth more.

        Arguments as of `candidates`.

        Returns:
          Items and their scores, weighted sums of their features; -inf at `NO_ITEM`.
        """
        ids, features = self.candidates(past, seen, towers, similarities)
        weights = self.weights.vector().astype(np.float32)
        scores = np.where(ids == NO_ITEM, -np.inf, features @ weights).astype(np.float32)
        if self._kinds is not None:
            number = max(self._depth, towers.ids.shape[1])
            for row, (had, out) in enumerate(zip(past, seen, strict=True)):
                if not len(had):
                    ids[row], scores[row] = self._without_past(
                        self._kinds, out, number, ids.shape[1]
                    )
        order = np.argsort(-scores, axis=1, kind="stable")
        return TopK(
            np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
        )

    def _without_past(
        self, kinds: sparse.csr_matrix, out: Any, number: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Popular items that are not in `out`, and their scores.

        Spread over kinds by D'Hondt's method: a number of them, where there are so many, and
        `NO_ITEM` up to a width.
        """
        ids, scores = np.full(width, NO_ITEM, np.int64), np.full(width, -np.inf, np.float32)
        popular = self._popular[~np.isin(self._popular, np.asarray(out, np.int64))]
        popular = popular[: 4 * self._depth]
        popularity = self._popularity[popular]
        has = kinds[popular].toarray()
        shares = has / np.maximum(1, has.sum(axis=1, keepdims=True))
        before = np.zeros(len(popular))
        for place in range(min(number, len(popular))):
            values = popularity - np.log1p(before)
            best = int(values.argmax())
            ids[place], scores[place] = popular[best], values[best]
            before += shares @ has[best]
            before[best] = np.inf
        return ids, scores

    def candidates(
        self,
        past: Sequence[Sequence[int] | np.ndarray],
        seen: Sequence[Sequence[int] | np.ndarray],
        towers: TopK,
        similarities: Similarities,
        *,
        masked: np.ndarray | None = None,
    ) -> Candidates:
        """The best of the towers and of every other source, and their features.

        `similarity` is the towers'; `co_occurrence` the log of the share; `following_share` that of
        what came after the recent items, `following` the log of it; `ease_sum` the sum of the
        weights of all that the user had, `ease` the log of it; `words` the similarity by words to
        the last items, `word_match` the log of it, `past_words` the similarity to many;
        `popularity` the log of 1 and the training events; `had` 1 of what the user had before,
        `had_times` the log of 1 and how often, `had_since` the log of how many items ago,
        `had_lately` 1 by that number; `offset` 1.

        Args:
          past: per user, the items of the history, oldest first, as catalogue indices. Of the last
            ones co-occurrence and words tell, of all of them EASE, and how often the user had an
            item.
          seen: per user, items that are no candidates; those of the past among them, where they
            cannot come next.
          towers: what the retriever found.
          similarities: the retriever's, of any items.
          masked: items whose events are not to be known, bool `[items]`: their weights are learnt
            so.
        """
        new = self.new if masked is None else self.new | masked
        words, alike = self._words.near(past), self._words.alike(past)
        near, later, implied = (
            [self._near(share, *pair, new) for pair in zip(past, seen, strict=True)]
            for share in (
                self._co_occurrence.related,
                self._co_occurrence.followers,
                self._ease.related,
            )
        )
        had = [PastItems.of(items) for items in past]
        chosen = []
        for row, out in enumerate(seen):
            first, hidden = towers.ids[row][towers.ids[row] != NO_ITEM], np.asarray(out, np.int64)
            again = had[row].items[~np.isin(had[row].items, hidden)]
            by_words = self._by_words(alike, row, hidden)
            sources = (near[row].items, implied[row].items, by_words, again)
            further = np.concatenate(
                [items[self._offered[items]][: self._depth] for items in sources]
            )
            ids = np.concatenate([first, np.setdiff1d(further, first)]).astype(np.int64)
            chosen.append(np.concatenate([ids, self._filling(ids, hidden, new)]))
        ids = np.full((len(chosen), towers.ids.shape[1] + 4 * self._depth), NO_ITEM, np.int64)
        for row, items in enumerate(chosen):
            ids[row, : len(items)] = items
        there = ids != NO_ITEM
        values: dict[str, np.ndarray] = {"similarity": similarities(ids)[there]}
        shares = [_values(*pair) for pair in zip(near, chosen, strict=True)]
        values["co_occurrence"] = np.log(np.concatenate(shares) + LEAST_SHARE)
        shares = [_values(*pair) for pair in zip(later, chosen, strict=True)]
        values["following_share"] = np.concatenate(shares)
        values["following"] = np.log(values["following_share"] + LEAST_SHARE)
        sums = [_values(*pair) for pair in zip(implied, chosen, strict=True)]
        values["ease_sum"] = np.concatenate(sums)
        values["ease"] = np.log(values["ease_sum"] + LEAST_EASE)
        for name, found_by in (("words", words), ("past_words", alike)):
            values[name] = np.concatenate(
                [_values(_row(found_by, row), items) for row, items in enumerate(chosen)]
            )
        values["word_match"] = np.log(values["words"] + LEAST_MATCH)
        values["popularity"] = self._popularity[ids[there]]
        times, since = (
            np.concatenate(numbers)
            for numbers in zip(*map(PastItems.look_up, had, chosen), strict=True)
        )
        values["had"] = (times > 0).astype(np.float64)
        values["had_times"] = np.log1p(times)
        values["had_since"] = np.log(since)
        values["had_lately"] = values["had"] / since
        values["offset"] = np.ones(len(values["words"]))
        features = np.zeros((*ids.shape, len(KNOWN) + len(NEW)), np.float32)
        is_new = new[ids[there]]
        columns = [np.where(is_new, 0.0, values[name]) for name in KNOWN]
        columns += [np.where(is_new, values[name], 0.0) for name in NEW]
        features[there] = np.stack(columns, axis=1)
        return Candidates(ids, features)

    def describe(self) -> dict[str, Any]:
        """What the order depends on beside models and data, for JSON."""
        return {"known": dict(self.weights.known), "new": dict(self.weights.new)}

    def _near(
        self,
        shares: Callable[[np.ndarray, np.ndarray], RelatedItems],
        last: Sequence[int] | np.ndarray,
        out: Any,
        new: np.ndarray,
    ) -> RelatedItems:
        """Items that the past speaks for in one way, but new ones."""
        counted = self._co_occurrence.num_items
        recent, hidden = (np.asarray(items, np.int64) for items in (last, out))
        related = shares(recent[recent < counted], hidden[hidden < counted])
        known = ~new[related.items]
        return RelatedItems(related.items[known], related.shares[known])

    def _filling(self, ids: np.ndarray, out: np.ndarray, new: np.ndarray) -> np.ndarray:
        """The most popular items that are missing to `depth`, but some and new ones."""
        missing = max(0, self._depth - len(ids))
        some = self._popular[: self._depth + len(out)] if new is self.new else self._popular
        some = some[~new[some]] if missing else some[:0]
        return some[~np.isin(some, np.concatenate([ids, out]))][:missing]

    def _by_words(self, alike: sparse.csr_matrix, row: int, out: np.ndarray) -> np.ndarray:
        """The items that are called most alike, but some; of equals those of smaller index."""
        items, values = _row(alike, row)
        left = self._offered[items] & ~np.isin(items, out)
        items, values = items[left], values[left]
        return items[np.lexsort((items, -values))[: self._depth]]


def _memberships(kinds: Sequence[Sequence[str]], num_items: int) -> sparse.csr_matrix:
    """1 where an item is of a kind, `[items, kinds]`."""
    numbers = {kind: number for number, kind in enumerate({k for some in kinds for k in some})}
    pairs = {(item, numbers[kind]) for item, some in enumerate(kinds) for kind in some}
    items, columns = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    shape = (num_items, len(numbers))
    return sparse.csr_matrix((np.ones(len(items)), (items, columns)), shape=shape)


def _row(matrix: sparse.csr_matrix, row: int) -> RelatedItems:
    entries = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return RelatedItems(matrix.indices[entries], matrix.data[entries])


def _values(known: RelatedItems, items: np.ndarray) -> np.ndarray:
    """The shares of some items, 0 for others: float64 `[items]`."""
    if not len(known.items):
        return np.zeros(len(items))
    order = np.argsort(known.items)
    places = np.minimum(np.searchsorted(known.items, items, sorter=order), len(order) - 1)
    places = order[places]
    return np.where(known.items[places] == items, known.shares[places], 0.0)

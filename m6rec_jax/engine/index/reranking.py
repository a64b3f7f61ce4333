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

from collections.abc import Callable, Mapping, Sequence
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

# What speaks for items by the events of others, see `Reranker.candidates`; and by the user's: how
# often, and how many items ago last, where 1 is the last one of all.
_SOURCES, _PAST = ("co_occurrence_share", "following_share", "ease_sum"), ("times", "since")
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


class Reranker:
    """Finds more candidates than the towers did, and orders all.

    Args:
      co_occurrence: of the training events.
      ease: of the training events.
      texts: of the catalogue, in the order of the items table; items that are newer than the
        counts may follow.
      counts: training events of each item `[items]`, or of the first ones; items with none are new.
      weights: by which items are ordered where `rerank` is given none; None: `UNLEARNT`.
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
        self.depth, self._words = depth, ItemWords(texts)
        self._kinds = None if kinds is None else _memberships(kinds, len(texts))
        counts = np.pad(counts, (0, len(texts) - len(counts)))
        self.new, self._popularity = counts == 0, np.log1p(counts)
        self._offered = np.ones(len(texts), bool) if offered is None else offered
        popular = np.argsort(-counts, kind="stable")
        self._popular = popular[(self._offered & ~self.new)[popular]]
        self.weights = weights or UNLEARNT

    def rerank(
        self,
        past: Sequence[Sequence[int] | np.ndarray],
        seen: Sequence[Sequence[int] | np.ndarray],
        found: TopK,
        similarities: Similarities,
        weights: RankingWeights | None = None,
    ) -> TopK:
        """All candidates, best first: as the towers found, and up to four times the depth more.

        Arguments as of `candidates`; `weights`: None: the reranker's.

        Returns:
          Items and their scores, weighted sums of their features; -inf at `NO_ITEM`.
        """
        ids, features = self.candidates(past, seen, found, similarities)
        vector = (weights or self.weights).vector().astype(np.float32)
        scores = np.where(ids == NO_ITEM, -np.inf, features @ vector).astype(np.float32)
        if self._kinds is not None:
            number = max(self.depth, found.ids.shape[1])
            for row, (had, out) in enumerate(zip(past, seen, strict=True)):
                if not len(had):
                    ids[row], scores[row] = NO_ITEM, -np.inf
                    popular, values = self._without_past(self._kinds, out, number)
                    ids[row, : len(popular)], scores[row, : len(popular)] = popular, values
        order = np.argsort(-scores, axis=1, kind="stable")
        return TopK(
            np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
        )

    def _without_past(
        self, kinds: sparse.csr_matrix, out: Any, number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Popular items that are not in `out`, spread over kinds by D'Hondt's method, and their
        scores: a number of them, where there are so many.
        """
        popular = self._popular[~np.isin(self._popular, np.asarray(out, np.int64))]
        popular = popular[: 4 * self.depth]
        has = kinds[popular].toarray()
        shares = has / np.maximum(1, has.sum(axis=1, keepdims=True))
        before, chosen, scores = np.zeros(len(popular)), list[int](), list[float]()
        for _ in range(min(number, len(popular))):
            values = self._popularity[popular] - np.log1p(before)
            chosen.append(int(values.argmax()))
            scores.append(values[chosen[-1]])
            before += shares @ has[chosen[-1]]
            before[chosen] = np.inf
        return popular[chosen], np.array(scores)

    def candidates(
        self,
        past: Sequence[Sequence[int] | np.ndarray],
        seen: Sequence[Sequence[int] | np.ndarray],
        found: TopK,
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
          found: the retriever's.
          similarities: the retriever's, of any items.
          masked: items whose events are not to be known, bool `[items]`: their weights are learnt
            so.
        """
        new = self.new if masked is None else self.new | masked
        near, alike, places = self._words.near(past), self._words.alike(past), np.zeros(len(new))
        chosen, values = [], []
        for row, (had, out) in enumerate(zip(past, seen, strict=True)):
            related = self._related(np.asarray(had, np.int64), np.asarray(out, np.int64), new)
            related |= {"words": _row(near, row), "past_words": _row(alike, row)}
            chosen.append(self._chosen(found.ids[row], np.asarray(out, np.int64), related, new))
            values.append([_values(one, chosen[-1], places) for one in related.values()])
        ids = np.full((len(chosen), found.ids.shape[1] + 4 * self.depth), NO_ITEM, np.int64)
        for row, items in enumerate(chosen):
            ids[row, : len(items)] = items
        there = ids != NO_ITEM
        names = (*_PAST, *_SOURCES, "words", "past_words")
        columns = dict(zip(names, np.concatenate(values, axis=1), strict=True))
        times, since = columns["times"], np.maximum(1, columns["since"])
        columns |= {
            "similarity": similarities(ids)[there],
            "co_occurrence": np.log(columns["co_occurrence_share"] + LEAST_SHARE),
            "following": np.log(columns["following_share"] + LEAST_SHARE),
            "ease": np.log(columns["ease_sum"] + LEAST_EASE),
            "word_match": np.log(columns["words"] + LEAST_MATCH),
            "popularity": self._popularity[ids[there]],
            "had": (times > 0).astype(np.float64),
            "had_times": np.log1p(times),
            "had_since": np.log(since),
            "had_lately": (times > 0) / since,
            "offset": np.ones(len(times)),
        }
        is_new = new[ids[there]]
        features = np.zeros((*ids.shape, len(KNOWN) + len(NEW)), np.float32)
        features[there] = np.stack(
            [np.where(is_new, 0.0, columns[name]) for name in KNOWN]
            + [np.where(is_new, columns[name], 0.0) for name in NEW],
            axis=1,
        )
        return Candidates(ids, features)

    def _related(
        self, past: np.ndarray, out: np.ndarray, new: np.ndarray
    ) -> dict[str, RelatedItems]:
        """Items and what the past says of them, by `_PAST`, most often first, of equals what came
        last; and by `_SOURCES` without new ones and those in `out`.
        """
        items, first, times = np.unique(past[::-1], return_index=True, return_counts=True)
        order = np.lexsort((first, -times))
        by_past = times[order].astype(np.float64), first[order] + 1.0
        related = {n: RelatedItems(items[order], v) for n, v in zip(_PAST, by_past, strict=True)}
        counted = self._co_occurrence.num_items
        past, out = past[past < counted], out[out < counted]
        sources: Sequence[Callable[[np.ndarray, np.ndarray], RelatedItems]] = (
            self._co_occurrence.related,
            self._co_occurrence.followers,
            self._ease.related,
        )
        for name, source in zip(_SOURCES, sources, strict=True):
            items, shares = source(past, out)
            related[name] = RelatedItems(items[~new[items]], shares[~new[items]])
        return related

    def _chosen(
        self,
        by_towers: np.ndarray,
        out: np.ndarray,
        related: Mapping[str, RelatedItems],
        new: np.ndarray,
    ) -> np.ndarray:
        """A user's candidates: the towers', the best of other sources, and popular items."""
        by_words, similarity = related["past_words"]
        again = related["times"].items
        sources = (
            related["co_occurrence_share"].items,
            related["ease_sum"].items,
            by_words[np.lexsort((by_words, -similarity))],  # of equals those of smaller index
            again,
        )
        ids = by_towers[by_towers != NO_ITEM]
        further = []
        for items in sources:
            further.append(items[self._offered[items] & ~np.isin(items, out)][: self.depth])
        ids = np.concatenate([ids, np.setdiff1d(np.concatenate(further), ids)]).astype(np.int64)
        missing = self.depth - len(ids)
        if missing <= 0:
            return ids
        # Without masks the first ones suffice: there are no new items among them.
        popular = self._popular[: self.depth + len(out)] if new is self.new else self._popular
        popular = popular[~new[popular] & ~np.isin(popular, np.concatenate([ids, out]))]
        return np.concatenate([ids, popular[:missing]])


def _memberships(kinds: Sequence[Sequence[str]], num_items: int) -> sparse.csr_matrix:
    """1 where an item is of a kind, `[items, kinds]`."""
    numbers = {kind: number for number, kind in enumerate({k for own in kinds for k in own})}
    pairs = {(item, numbers[kind]) for item, own in enumerate(kinds) for kind in own}
    items, columns = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    shape = (num_items, len(numbers))
    return sparse.csr_matrix((np.ones(len(items)), (items, columns)), shape=shape)


def _row(matrix: sparse.csr_matrix, row: int) -> RelatedItems:
    own = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return RelatedItems(matrix.indices[own], matrix.data[own])


def _values(related: RelatedItems, items: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """The shares of some items, 0 for others, float64 `[items]`; `zeros` `[all items]` stay so."""
    zeros[related.items] = related.shares
    values = zeros[items]
    zeros[related.items] = 0.0
    return values

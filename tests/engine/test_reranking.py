"""The hybrid retriever: candidates of many sources, in the order of all that is known of them."""

from typing import Any

import numpy as np
import pytest

from m6rec_jax.data.features import ease
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.engine.index.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.index.item_words import ItemWords
from m6rec_jax.engine.index.ranking_weights import LEAST_EASE, LEAST_SHARE, RankingWeights
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.errors import DataError

TEXTS = ["Alpha", "Beta", "Gamma", "Delta"]
NO_PAIRS = CoOccurrence.counted(np.zeros(0, int), np.zeros(0, int), 10)
NO_EASE = Ease.fitted(np.zeros(0, int), np.zeros(0, int), 4)


class World:
    """Ten items of two words each, what a hundred events say of eight, and towers."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.num_items = 10
        self.items = rng.integers(0, 8, 100)
        self.counts = np.bincount(self.items, minlength=8)
        acted = np.arange(100) % 12, self.items, 8
        self.co_occurrence = CoOccurrence.counted(*acted)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ease, "PENALTY", 2.0)
            self.ease = Ease.fitted(*acted)
        names = np.array(["red", "nail", "polish", "hair", "oil"])
        self.texts = [" ".join(names[rng.permutation(5)[:2]]) for _ in range(10)]
        vectors = rng.normal(size=(13, 4))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.of_items, self.users = vectors[:10].astype(np.float32), vectors[10:].astype(np.float32)
        self.past = [[3, 0, 1, 1, 2, 3], [4], [9, 6, 5]]
        self.seen = [[1, 2, 3], [4, 0], [5, 9]]
        values = rng.normal(size=14), rng.normal(size=9)
        self.weights = RankingWeights.of_vector(np.concatenate(values))

    def top(self, k: int) -> TopK:
        scores = self.users @ self.of_items.T
        for row, out in enumerate(self.seen):
            scores[row, out] = -np.inf
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, ids, axis=1)
        return TopK(np.where(np.isinf(best), NO_ITEM, ids), best)

    def similarities(self, ids: np.ndarray) -> np.ndarray:
        return np.einsum("ur,ukr->uk", self.users, self.of_items[ids])

    def reranker(self, **asked: Any) -> Reranker:
        known = self.co_occurrence, self.ease, self.texts, self.counts
        return Reranker(*known, weights=self.weights, **asked)

    def by_hand(self, masked: tuple[int, ...] = ()) -> np.ndarray:
        """Scores of all items, one by one; -inf for those that are no candidates."""
        known, new = self.weights.known, self.weights.new
        scores = np.full((3, 10), -np.inf)
        known_words = ItemWords(self.texts)
        words, alike = (
            found(self.past).toarray() for found in (known_words.near, known_words.alike)
        )
        for row, (last, out) in enumerate(zip(self.past, self.seen, strict=True)):
            near = self.co_occurrence.related([item for item in last if item < 8], [])
            shares = dict(zip(near.items.tolist(), near.shares.tolist(), strict=True))
            later = self.co_occurrence.followers([item for item in last if item < 8], [])
            followers = dict(zip(later.items.tolist(), later.shares.tolist(), strict=True))
            found = self.ease.related(last, [])
            sums = dict(zip(found.items.tolist(), found.shares.tolist(), strict=True))
            for item in set(range(10)) - set(out):
                own = {
                    "similarity": float(self.users[row] @ self.of_items[item]),
                    "words": words[row, item],
                    "word_match": np.log(words[row, item] + 0.01),
                    "past_words": alike[row, item],
                    "offset": 1.0,
                    "had": float(item in last),
                    "had_times": np.log(1 + last.count(item)),
                }
                since = last[::-1].index(item) + 1 if item in last else 1
                own |= {"had_since": np.log(since), "had_lately": own["had"] / since}
                if item < 8 and item not in masked:
                    own["co_occurrence"] = np.log(shares.get(item, 0.0) + LEAST_SHARE)
                    own["following_share"] = followers.get(item, 0.0)
                    own["following"] = np.log(own["following_share"] + LEAST_SHARE)
                    own["ease_sum"] = sums.get(item, 0.0)
                    own["ease"] = np.log(own["ease_sum"] + LEAST_EASE)
                    own["popularity"] = np.log(1 + np.sum(self.items == item))
                    scores[row, item] = sum(known[name] * own[name] for name in known)
                else:
                    scores[row, item] = sum(new[name] * own[name] for name in new)
        return scores


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_the_order_of_all_items_is_that_of_their_scores_by_hand(world: World) -> None:
    arguments = (world.past, world.seen, world.top(10), world.similarities)
    best = world.reranker(depth=10).rerank(*arguments)
    expected = world.by_hand()
    for row in range(3):
        order = [item for item in np.argsort(-expected[row]) if np.isfinite(expected[row, item])]
        there = best.ids[row] != NO_ITEM
        assert best.ids[row][there].tolist() == order
        np.testing.assert_allclose(best.scores[row][there], expected[row, order], atol=1e-5)
        assert (best.scores[row][~there] == -np.inf).all()
        assert 8 in order or 8 in world.seen[row]  # new ones are ranked


def test_masked_items_are_scored_as_new_ones(world: World) -> None:
    masked = np.isin(np.arange(10), [0, 6])
    arguments = (world.past, world.seen, world.top(10), world.similarities)
    ids, features = world.reranker(depth=10).candidates(*arguments, masked=masked)
    scores = features @ world.weights.vector()
    expected = world.by_hand(masked=(0, 6))
    for row in range(3):
        there = ids[row] != NO_ITEM
        np.testing.assert_allclose(scores[row][there], expected[row, ids[row][there]], atol=1e-5)


def test_candidates_are_the_best_of_each_source(world: World) -> None:
    arguments = (world.past, world.seen, world.top(1), world.similarities)
    ids, _ = world.reranker(depth=1).candidates(*arguments)
    words = ItemWords(world.texts).alike(world.past).toarray()
    for row, out in enumerate(world.seen):
        words[row, out] = -1
        counted = [item for item in world.past[row] if item < 8]
        near = world.co_occurrence.related(counted, [item for item in out if item < 8])
        implied = world.ease.related(world.past[row], out)
        expected = {world.top(1).ids[row, 0], near.items[0], words[row].argmax()}
        expected |= set(implied.items[:1].tolist())
        again = [item for item in world.past[row] if item not in out]
        expected |= set(again)  # of these rows one at most
        assert ids.shape == (3, 5)
        assert set(ids[row][ids[row] != NO_ITEM].tolist()) == expected
    # Of an index that lacks them, none is.
    offered = np.isin(np.arange(10), world.top(1).ids)
    ids, _ = world.reranker(depth=10, offered=offered).candidates(*arguments)
    assert set(ids.ravel().tolist()) <= {*world.top(1).ids.ravel().tolist(), NO_ITEM}


def test_what_a_user_had_most_comes_first_of_equals_the_latest() -> None:
    # It is found where nothing else finds it, unless it is hidden.
    nothing = TopK(np.full((2, 1), NO_ITEM), np.full((2, 1), -np.inf))
    texts, counts = [f"word{n}" for n in range(10)], np.array([5, 1, 3, 8, 4, 7, 2, 8, 0, 0])
    alone = Reranker(NO_PAIRS, NO_EASE, texts, counts, depth=2)
    arguments = ([[6, 2, 2], [6, 2]], [[], [2]], nothing)
    ids, _ = alone.candidates(*arguments, lambda ids: np.zeros(ids.shape))
    assert [row[row != NO_ITEM].tolist() for row in ids] == [[2, 6], [6, 3]]  # 3 is popular
    # The most popular follow, but those that are hidden, found already, or new.
    filled = Reranker(NO_PAIRS, NO_EASE, texts, counts, depth=9)
    (ids,), _ = filled.candidates([[6, 2]], [[3]], TopK(*(x[:1] for x in nothing)), np.zeros_like)
    assert ids[ids != NO_ITEM].tolist() == [2, 6, 7, 5, 0, 4, 1]


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(DataError, match="10 items, the catalogue has 2"):
        Reranker(NO_PAIRS, NO_EASE, TEXTS[:2], np.ones(2))


def test_without_a_past_what_is_popular_comes_spread_over_kinds(world: World) -> None:
    """By hand: each count, one added, over one more than the mean number of its kinds before it."""
    kinds = [("a",), ("a", "b"), ("b",), ("a",), (), ("a",), ("c", "b"), ("a",)]
    past, seen = [[], world.past[1], []], [[6], world.seen[1], [0, 1, 2]]
    found, reranker = world.top(10), world.reranker(depth=10, kinds=kinds)
    best = reranker.rerank(past, seen, found, world.similarities)
    for row in (0, 2):
        taken: list[int] = []
        while len(taken) < 8 - len(seen[row]):
            left = [item for item in range(8) if item not in (*seen[row], *taken)]
            before = {
                item: np.mean([sum(k in kinds[t] for t in taken) for k in kinds[item] or ("",)])
                for item in left
            }
            quotients = {i: (world.counts[i] + 1) / (before[i] + 1) for i in left}
            taken.append(max(left, key=lambda i: (round(quotients[i], 6), world.counts[i], -i)))
            score = best.scores[row, len(taken) - 1]
            np.testing.assert_allclose(score, np.log(quotients[taken[-1]]), rtol=1e-5)
        assert best.ids[row][best.ids[row] != NO_ITEM].tolist() == taken
    # Who has a past is recommended to as before.
    other = world.reranker(depth=10).rerank(past, seen, found, world.similarities)
    np.testing.assert_array_equal(best.ids[1], other.ids[1])

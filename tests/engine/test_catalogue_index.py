"""Exact search: against a sort, on one device and on eight."""

import subprocess
import sys

import numpy as np
import pytest

from m6rec_jax.engine.index import catalogue_index
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.errors import DataError
from m6rec_jax.metrics import ranking
from m6rec_jax.sharding import make_mesh


def unit(rng, number, width=8):
    x = rng.normal(size=(number, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute_top_k(users, items, k, seen):
    scores = users.astype(np.float64) @ items.T.astype(np.float64)
    for i, own in enumerate(seen):
        scores[i, own] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("meshed", [False, True])
@pytest.mark.parametrize("number", [1, 37])
def test_top_k_equals_a_sort(monkeypatch, number, meshed):
    rng = np.random.default_rng(number)
    users, items = unit(rng, number), unit(rng, 53)
    items[[2, 9, 41]] = users[0]  # ties stay in the order of the catalogue
    seen = [rng.choice(53, size=rng.integers(0, 9), replace=False) for _ in range(number)]
    index = CatalogueIndex(items, make_mesh() if meshed else None)
    found = index.top_k(users, 10, seen)
    ids, scores = brute_top_k(users, items, 10, seen)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    # The same for few users at a time.
    monkeypatch.setattr(catalogue_index, "MOST_SCORES", 7 * 53)
    np.testing.assert_array_equal(index.top_k(users, 10, seen).ids, ids)
    for own, row in zip(seen, found.ids, strict=True):
        assert not set(own.tolist()) & set(row.tolist())


def test_fewer_items_left_than_asked_for():
    index = CatalogueIndex(unit(np.random.default_rng(0), 4))
    found = index.top_k(unit(np.random.default_rng(1), 1), 9, [np.array([0, 2, 3])])
    assert found.ids[0].tolist() == [1, -1, -1, -1]  # no more than the catalogue has
    again = index.top_k(unit(np.random.default_rng(1), 1), 4, [np.array([0, 2, 3] * 9)])
    assert again.ids.tolist() == found.ids.tolist()
    assert np.isneginf(found.scores[0, 1:]).all()


def test_ranks_equal_those_of_the_scores():
    rng = np.random.default_rng(5)
    users, items = unit(rng, 30), unit(rng, 40)
    items[7] = items[3]  # a tie
    targets = rng.integers(-1, 40, (30, 2))
    targets[:3, 0] = [7, 3, 7]
    seen = [np.setdiff1d(rng.choice(40, 6, replace=False), targets[i]) for i in range(30)]
    excluded = np.zeros((30, 40), bool)
    for i, own in enumerate(seen):
        excluded[i, own] = True
    # The similarities of equal vectors are equal bit by bit only within one matrix product.
    index = CatalogueIndex(items)
    expected = ranking.ranks_by_score((users @ items.T).round(6), targets, excluded)
    found = index.ranks(users, targets, seen)
    np.testing.assert_array_equal(found, expected)
    top = index.top_k(users, 40, seen)
    np.testing.assert_array_equal(found, ranking.target_ranks(top.ids, targets))


def test_a_seen_target_still_has_a_rank():
    index = CatalogueIndex(np.eye(3, 4, dtype=np.float32))
    users = np.array([[0.1, 0.9, 0.3, 0]], np.float32)
    assert index.ranks(users, np.array([[1]]), [np.array([1])]).tolist() == [[1]]


def test_sharded_search_on_eight_devices():
    """The same ids and scores when eight devices hold an eighth of the items each."""
    code = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.sharding import make_mesh
rng = np.random.default_rng(0)
users = rng.normal(size=(20, 8)).astype(np.float32)
items = rng.normal(size=(61, 8)).astype(np.float32)
items[40] = items[3]
seen = [rng.choice(61, 5, replace=False) for _ in users]
targets = rng.integers(0, 61, (20, 1))
plain = CatalogueIndex(items)
sharded = CatalogueIndex(items, make_mesh(data=2, fsdp=2, tensor=2))
assert len(sharded._items.sharding.device_set) == 8
assert sharded._items.addressable_shards[0].data.shape[0] == 8
a, b = plain.top_k(users, 30, seen), sharded.top_k(users, 30, seen)
np.testing.assert_array_equal(a.ids, b.ids)
np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
np.testing.assert_array_equal(plain.ranks(users, targets), sharded.ranks(users, targets))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_has_no_rank(value):
    """Nothing would stand before it, so a model that has diverged would find everything first."""
    vectors = np.eye(3, dtype=np.float32)
    broken = vectors.copy()
    broken[1, 2] = value
    with pytest.raises(DataError, match=r"1 of 3 item vectors hold NaN or infinity, .* index 1"):
        CatalogueIndex(broken)
    index = CatalogueIndex(vectors)
    with pytest.raises(DataError, match="1 of 3 user vectors hold NaN"):
        index.ranks(broken, np.array([[0], [1], [2]]))
    with pytest.raises(DataError, match="1 of 3 user vectors hold NaN"):
        index.top_k(broken, 2)

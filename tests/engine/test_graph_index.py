"""Approximate search beside the exact one: what it finds, and that it keeps to the same rules."""

from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.engine.catalogue_index import CatalogueIndex
from m6rec_jax.engine.graph_index import GraphIndex
from m6rec_jax.errors import CheckpointError, DataError

pytest.importorskip("usearch", reason="needs the extra of that name")


def unit(seed: int, number: int, width: int = 24) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(number, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


ITEMS, USERS = unit(0, 3000), unit(1, 50)


@pytest.fixture(scope="module")
def graph() -> GraphIndex:
    return GraphIndex(ITEMS)


@pytest.mark.parametrize("excluded", [0, 40])
def test_it_finds_nearly_all_that_exact_search_finds(graph: GraphIndex, excluded: int) -> None:
    """Random vectors are the hard case: no item is much nearer than the others."""
    exact = CatalogueIndex(ITEMS)
    # The very best items are seen, so leaving them out must bring others.
    seen = list(exact.top_k(USERS, excluded).ids) if excluded else None
    wanted, found = exact.top_k(USERS, 10, seen), graph.top_k(USERS, 10, seen)
    both = [len(set(a) & set(b)) for a, b in zip(wanted.ids, found.ids, strict=True)]
    assert np.mean(both) / 10 > 0.95
    for user, (ids, scores) in enumerate(zip(found.ids, found.scores, strict=True)):
        np.testing.assert_allclose(scores, ITEMS[ids] @ USERS[user], atol=1e-6)
        assert (np.diff(scores) <= 0).all()
        if seen is not None:
            assert not set(ids) & set(seen[user])


def test_few_items_and_one_user(tmp_path: Path) -> None:
    few = GraphIndex(ITEMS[:4])
    found = few.top_k(USERS[:1], 4, [np.array([0, 2, 2])])
    assert sorted(found.ids[0].tolist()) == [-1, -1, 1, 3]
    assert np.isneginf(found.scores[0, 2:]).all()
    assert few.top_k(USERS[:1], 2).ids.shape == (1, 2)


def test_a_saved_graph_finds_the_same(graph: GraphIndex, tmp_path: Path) -> None:
    graph.save(tmp_path / "graph")
    again = GraphIndex(ITEMS, tmp_path / "graph")
    np.testing.assert_array_equal(again.top_k(USERS, 5).ids, graph.top_k(USERS, 5).ids)
    with pytest.raises(CheckpointError, match="holds 3000 vectors of 24, and the index 2999"):
        GraphIndex(ITEMS[:-1], tmp_path / "graph")
    (tmp_path / "cut").write_bytes((tmp_path / "graph").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cut is damaged"):
        GraphIndex(ITEMS, tmp_path / "cut")


def test_clear_errors(graph: GraphIndex) -> None:
    with pytest.raises(DataError, match="user 1 has seen an item outside"):
        graph.top_k(USERS[:2], 1, [np.array([0]), np.array([3000])])

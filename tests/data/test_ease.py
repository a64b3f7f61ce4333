"""EASE against its closed form in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.data.features import ease
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.errors import DataError

NUM_ITEMS = 9
EVENTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, NUM_ITEMS - 1)), max_size=60)


def by_hand(events, most: int, penalty: float) -> np.ndarray:
    """Weights `[items, items]` of the `most` popular items."""
    acted = np.zeros((7, NUM_ITEMS))
    for user, item in events:
        acted[user, item] = 1
    counts = np.bincount([item for _, item in events], minlength=NUM_ITEMS)
    kept = [i for i in np.argsort(-counts, kind="stable")[:most] if counts[i]]
    pairs = acted[:, kept].T @ acted[:, kept] + penalty * np.eye(len(kept))
    inverse = np.linalg.inv(pairs)
    found = -inverse / np.diag(inverse)
    np.fill_diagonal(found, 0.0)
    weights = np.zeros((NUM_ITEMS, NUM_ITEMS))
    weights[np.ix_(kept, kept)] = found
    return weights


@given(
    events=EVENTS,
    past=st.lists(st.integers(0, NUM_ITEMS + 1), max_size=6),
    out=st.lists(st.integers(0, NUM_ITEMS + 1), max_size=4),
    items=st.integers(1, NUM_ITEMS),
    block=st.sampled_from([1, 2, 256]),
)
def test_scores_are_those_of_the_closed_form(events, past, out, items, block) -> None:
    users, acted = np.asarray(events, np.int64).reshape(-1, 2).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ease, "_BLOCK", block)
        patch.setattr(ease, "ITEMS", items)
        patch.setattr(ease, "PENALTY", 3.0)
        found = Ease.fitted(users, acted, NUM_ITEMS).related(past, out)
    had = sorted({item for item in past if item < NUM_ITEMS})
    scores = by_hand(events, items, 3.0)[had].sum(axis=0)
    scores[[item for item in out if item < NUM_ITEMS]] = 0.0
    # Sums of float32 that should be 0 may be a little more.
    told = found.shares > 1e-6
    assert set(found.items[told].tolist()) == set(np.flatnonzero(scores > 1e-6).tolist())
    np.testing.assert_allclose(found.shares, scores[found.items], atol=1e-6)
    assert (np.diff(found.shares) <= 0).all()


def test_the_largest_weights_of_an_item_are_kept_and_read_back(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 40, 600), rng.integers(0, 30, 600)
    monkeypatch.setattr(ease, "PENALTY", 5.0)
    whole = Ease.fitted(users, items, 30)
    monkeypatch.setattr(ease, "NEIGHBOURS", 7)
    Ease.fitted(users, items, 30).save(tmp_path)
    some = Ease.load(tmp_path)
    for item in range(30):
        everything = whole.related([item], [])
        kept = some.related([item], [])
        # Of both signs: those that speak for an item are the first of all that do.
        assert kept.items.tolist() == everything.items[: len(kept.items)].tolist()
        np.testing.assert_array_equal(kept.shares, everything.shares[: len(kept.items)])
    assert 0 < np.mean([len(some.related([item], []).items) for item in range(30)]) <= 7


def test_missing_and_damaged_files_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="data prepare"):
        Ease.load(tmp_path)
    Ease.fitted(np.zeros(0, int), np.zeros(0, int), 4).save(tmp_path)
    assert not len(Ease.load(tmp_path).related([0], []).items)
    (tmp_path / ease.FILE).write_bytes(b"PK")
    with pytest.raises(DataError, match="damaged"):
        Ease.load(tmp_path)

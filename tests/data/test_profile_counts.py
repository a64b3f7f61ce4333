"""What users of a profile choose, against a loop over events."""

import math

import numpy as np

from m6rec_jax.data.profile_counts import ProfileCounts, save_profile_counts


def test_lifts_are_those_of_a_loop_over_events(tmp_path):
    rng = np.random.default_rng(0)
    trades = rng.choice(["baker", "nurse"], 150).tolist() + ["duke"] * 5 + [None] * 5
    ages = [*rng.integers(18, 70, 158).tolist(), None, None]
    users, items = rng.integers(0, 160, 4000), rng.zipf(1.5, 4000) % 12
    counts = np.bincount(items, minlength=12)
    save_profile_counts(tmp_path, {"trade": trades, "age": ages}, users, items)
    profiles = ProfileCounts.load(tmp_path, counts)

    def lift(has):
        chosen = [
            sum(has[u] for u, i in zip(users, items, strict=True) if i == n) for n in range(12)
        ]
        return [
            math.log((c + 100) / (counts[n] * sum(chosen) / len(users) + 100))
            for n, c in enumerate(chosen)
        ]

    baker = lift([trade == "baker" for trade in trades])
    of_bakers = profiles.lift({"trade": "baker"}, np.arange(12))
    np.testing.assert_allclose(of_bakers, baker, rtol=1e-5, atol=1e-7)
    young = sorted(age for age in ages if age is not None)[int(0.2 * 157)]  # of the first fifth
    of_young = np.add(baker, lift([age is not None and age <= young for age in ages]))
    lifts = profiles.lift({"trade": "baker", "age": 18, "zip": "x"}, np.arange(12))
    np.testing.assert_allclose(lifts, of_young, rtol=1e-5, atol=1e-6)
    # Of few users it would tell what they had; a value that is not known says nothing.
    assert profiles.lift({"trade": "duke"}, items) is None
    assert profiles.lift({"trade": None, "age": "old"}, items) is None
    assert profiles.lift({"age": 120}, items) is not None


def test_nothing_is_written_where_nothing_can_be_counted(tmp_path):
    numbers = np.arange(90)
    save_profile_counts(tmp_path, {"name": list(map(str, numbers))}, numbers, numbers)
    assert not list(tmp_path.iterdir())
    assert ProfileCounts.load(tmp_path, np.ones(90)).lift({"name": "1"}, numbers) is None


def test_texts_are_no_numbers(tmp_path):
    save_profile_counts(tmp_path, {"age": list(range(200))}, np.arange(200), np.arange(200))
    for value in ("text", None):
        assert ProfileCounts.load(tmp_path, np.ones(200)).lift({"age": value}, np.arange(9)) is None

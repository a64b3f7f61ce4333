"""Incremental statistics against a reference that recounts all earlier events for every answer."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data.features import neighbours
from m6rec_jax.data.features.features import feature_names
from m6rec_jax.data.features.neighbours import PairCounts
from m6rec_jax.data.features.statistics import KnownUser, Statistics
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.features.timeline import Timeline
from m6rec_jax.data.features.value_factors import FIRST_FIT, ValueFactors
from m6rec_jax.errors import DataError
from m6rec_jax.text import verbalize
from m6rec_jax.text.records import Event, Item, Value
from tests.data.fold import FoldedStatistics, as_of, fit_windows

TAGS = (("red",), ("red", "blue"), (), ("blue", "green"), ("red", "red"), ("green",))
ITEMS = [
    Item(f"i{index}", {"tags": tags, "maker": None if index == 3 else f"m{index % 2}"})
    for index, tags in enumerate(TAGS)
]
BY = ("tags", "maker")


def features(statistics, user, item, time=None):
    return statistics.now().user(user).features_of([item], time)[0]


# user, item, time, value; few of each, so that ties, repeats and shared tastes are common.
LOGS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 9), st.sampled_from([2, 4, 5])),
    max_size=50,
).map(
    lambda rows: [
        Event(f"u{user}", f"i{item}", float(time), float(value))
        for user, item, time, value in sorted(rows, key=lambda row: row[2])
    ]
)
OPTIONS = st.builds(
    StatisticsOptions,
    smoothing=st.sampled_from([0.5, 5.0]),
    neighbours=st.booleans(),
    neighbour_window=st.sampled_from([1, 2, 200]),
    factors=st.sampled_from([0, 2]),
    factor_growth=st.sampled_from([0.03, 0.9]),
)


def fold(events, options):
    statistics = FoldedStatistics(BY, 4, True, options)
    for event in events:
        statistics.update(event, ITEMS[int(event.item_id[1:])])
    return statistics


def tags_of(item: Item, field: str) -> list[str]:
    value = item.attributes[field]
    if value is None:
        return []
    return list(dict.fromkeys(value)) if isinstance(value, tuple) else [str(value)]


def percent(share: float) -> str:
    return verbalize.percent(min(1.0, max(0.0, share)))


def windows(events: list[Event], size: int) -> list[tuple[str, Event, list[Event]]]:
    """For every event that enters a user's window: the item, and the window it met."""
    held: dict[str, list[Event]] = {}
    met = []
    had: set[tuple[str, str]] = set()
    for event in events:
        window = held.setdefault(event.user_id, [])
        if (event.user_id, event.item_id) not in had:
            had.add((event.user_id, event.item_id))
            met.append((event.item_id, event, list(window)))
            window.append(event)
            del window[:-size]
    met += [("", Event(user, "", 0.0), window) for user, window in held.items()]
    return met


def mean_before(events: list[Event]) -> float:
    return sum(event.value for event in events) / len(events) if events else 0.0


def expected_value(events, mine, item_id, options):
    """Where and when `Statistics` fits its factors; the arithmetic is `ValueFactors`' own test."""
    factors = ValueFactors.none(options.factors)
    places: dict[str, int] = {}
    next_fit = FIRST_FIT
    for number, event in enumerate(events, 1):
        places.setdefault(event.item_id, len(places))
        if number < next_fit:
            continue
        held = {
            e.user_id: window
            for key, e, window in windows(events[:number], options.neighbour_window)
            if key == ""
        }
        factors = fit_windows(
            factors,
            [[places[e.item_id] for e in window] for window in held.values()],
            [[e.value for e in window] for window in held.values()],
            len(places),
            options.smoothing,
        )
        next_fit = number + max(FIRST_FIT, math.ceil(options.factor_growth * number))
    window = np.array([places[e.item_id] for e in mine])
    asked, values = np.array([places.get(item_id, len(places))]), np.array([e.value for e in mine])
    (found,) = factors.expected(asked, window, values, options.smoothing)
    return float(found)


def reference(events, user_id, item, options, labelled, time):
    """All features from the list of events before a moment, by counting."""
    k = options.smoothing

    def liked(event: Event) -> bool:
        return not labelled or event.value >= 4

    def share(of: list[Event], towards: float) -> float:
        return (sum(map(liked, of)) + k * towards) / (len(of) + k)

    overall = sum(map(liked, events)) / len(events) if events else 0.0
    mean = sum(event.value for event in events) / len(events) if events else 0.0
    square = sum((e.value - mean_before(events[:n])) ** 2 for n, e in enumerate(events))
    spread = math.sqrt(square / len(events)) if square else 1.0
    own = [event for event in events if event.user_id == user_id]
    about = [event for event in events if event.item_id == item.id]
    found: dict[str, Value] = {}

    if own:
        found["user_count"] = verbalize.count(len(own))
        if labelled:
            found["user_positive_percent"] = percent(share(own, overall))
            value = (sum(event.value for event in own) + k * mean) / (len(own) + k)
            found["user_mean_value"] = verbalize.rounded(value, spread)
    had = [event.time for event in own if event.item_id == item.id]
    if had:
        found["user_item_times"] = verbalize.count(len(had))
        found["user_item_ago"] = verbalize.ago(time - max(had))
    if about:
        found["item_count"] = verbalize.count(len(about))
        if labelled:
            found["item_positive_percent"] = percent(share(about, overall))
            value = (sum(event.value for event in about) + k * mean) / (len(about) + k)
            found["item_mean_value"] = verbalize.rounded(value, spread)
        # Ranks compare with all items as they stood at the last refresh.
        refresh, next_one = 0, 1
        for number in range(1, len(events) + 1):
            if number >= next_one:
                refresh, next_one = number, number + max(1, number // 50)
        then = events[:refresh]
        per_item = [[e for e in then if e.item_id == i.id] for i in ITEMS]
        per_item = [of for of in per_item if of]
        share_then = sum(map(liked, then)) / len(then)

        def standing(name: str, value: float, population: list[float]) -> None:
            higher = sum(other > value + 1e-12 for other in population)
            found[f"{name}_top"] = verbalize.percentile(1 - higher / len(population))
            found[f"{name}_rank"] = min(100, math.floor(100 * higher / len(population) + 1e-9) + 1)

        standing("item_popularity", len(about), [len(of) for of in per_item])
        if labelled:
            population = [share(of, share_then) for of in per_item]
            standing("item_liked", share(about, overall), population)
    for field in BY:
        told, of_all = [], []
        for name in tags_of(item, field):
            of = [e for e in own if name in tags_of(ITEMS[int(e.item_id[1:])], field)]
            if of:
                told.append((name, of))
                of_all += of
        if told and labelled:
            found[f"user_{field}_counts"] = tuple(
                f"{sum(map(liked, of))} of {len(of)} {name}" for name, of in told
            )
            found[f"user_{field}_percent"] = percent(share(of_all, share(own, overall)))
        elif told:
            found[f"user_{field}_counts"] = tuple(f"{len(of)} {name}" for name, of in told)

    met = windows(events, options.neighbour_window)
    mine = [window for key, e, window in met if key == "" and e.user_id == user_id]
    if mine and labelled and options.factors and len(events) >= FIRST_FIT:
        expected = expected_value(events, mine[0], item.id, options)
        found["user_expected_value"] = verbalize.rounded(expected, spread)
    if not mine or not about or not options.neighbours:
        return found

    def difference(event: Event) -> float:
        earlier = events[: [other is event for other in events].index(True)]
        return event.value - mean_before(earlier)

    def squares(item_id: str) -> float:
        return sum(difference(event) ** 2 for key, event, _ in met if key == item_id)

    weights, liked_weights, told_of, times = [0.1], [0.1 * share(own, overall)], 0.0, []
    total = 1.0
    for other in mine[0]:
        both = [
            (event, before)
            for key, event, window in met
            if key
            for before in window
            if {event.item_id, before.item_id} == {item.id, other.item_id}
        ]
        if labelled:
            scale = math.sqrt(squares(item.id) * squares(other.item_id))
            alike = sum(difference(a) * difference(b) for a, b in both)
            alike /= scale + 10.0
            of_other = [e.value for e in events if e.item_id == other.item_id]
            towards = (sum(of_other) + k * mean) / (len(of_other) + k)
            told_of += alike * (other.value - towards)
            total += abs(alike)
            weights.append(max(0.0, alike))
            liked_weights.append(max(0.0, alike) * liked(other))
        weight = 5.0
        holders = {i.id: sum(key == i.id for key, *_ in met) for i in ITEMS}
        chance = holders[item.id] / len({event.user_id for event in events})
        times.append((len(both) + weight * chance) / (holders[other.item_id] + weight) / chance)
    if labelled:
        found["user_neighbours_percent"] = percent(sum(liked_weights) / sum(weights))
        found["user_taste_difference"] = verbalize.rounded(told_of / total, spread, signed=True)
    else:
        found["user_neighbours_times"] = f"{np.mean(sorted(times)):.1f}"
    return found


def close(name: str, found: Value, expected: Value) -> bool:
    """Equal, or a number of percent at the edge between two whole ones."""
    if found == expected:
        return True
    try:
        edge = 1 if str(found).isdigit() else 0.11 if "neighbours" in name else 0.051
        return abs(float(found) - float(expected)) <= edge
    except (TypeError, ValueError):
        return False


@settings(max_examples=40)
@given(LOGS, OPTIONS, st.booleans())
def test_every_answer_equals_a_recount(events, options, labelled):
    statistics = FoldedStatistics(BY, 4 if labelled else None, labelled, options)
    pairs = [(event, ITEMS[int(event.item_id[1:])]) for event in events]
    # Three users, one of them unknown, and all items at every moment, also between events.
    moments = sorted({*(event.time for event in events), 4.5, 100.0})
    differences = 0
    for time in as_of(statistics.update, pairs, moments, lambda moment: moment):
        before = [event for event in events if event.time < time]
        for user_id in ("u0", "u1", "nobody"):
            answers = statistics.now().user(user_id).features_of(ITEMS, time)
            for item, found in zip(ITEMS, answers, strict=True):
                assert set(found) == set(feature_names(statistics.settings))
                expected = reference(before, user_id, item, options, labelled, time)
                told = {name: value for name, value in found.items() if value is not None}
                assert set(told) == set(expected)
                for name, value in told.items():
                    assert close(name, value, expected[name]), (name, value, expected[name])
                    differences += value != expected[name]
                assert found == features(statistics, user_id, item, time)
    # Halves of a percent may round either way in another order of operations, no more than that.
    assert differences <= 2
    assert statistics.totals.events == len(events)


def test_the_words() -> None:
    events = [
        Event("u0", "i0", 1.0, 5.0),
        Event("u0", "i1", 2.0, 2.0),
        Event("u1", "i0", 3.0, 4.0),
        Event("u1", "i1", 3.0, 3.0),
        Event("u0", "i4", 4.0, 4.0),
    ]
    statistics = fold(events, StatisticsOptions(smoothing=1.0))
    told = features(statistics, "u0", ITEMS[1])
    # Has a test of its own.
    assert told.pop("user_neighbours_percent")
    assert told.pop("user_taste_difference")
    assert told.pop("user_expected_value") is None  # before the first fit
    assert told.pop("user_item_ago") is None  # of no moment
    assert told == {
        "user_count": "3",
        "user_positive_percent": "65",  # (2 + 3/5) / (3 + 1)
        "user_mean_value": "3.65",
        "item_count": "2",
        "item_positive_percent": "20",  # (0 + 3/5) / (2 + 1)
        "item_mean_value": "2.85",
        "item_popularity_top": "among the top 1%",
        "item_popularity_rank": 1,
        "item_liked_top": "among the bottom 50%",
        "item_liked_rank": 67,
        "user_tags_counts": ("2 of 3 red", "0 of 1 blue"),
        "user_tags_percent": "53",  # (2 + 2.6/4) / (4 + 1)
        "user_maker_counts": ("0 of 1 m1",),
        "user_maker_percent": "33",
        "user_item_times": "1",
    }


@settings(max_examples=40)
@given(LOGS, st.dictionaries(st.sampled_from([f"u{n}" for n in range(5)]), st.integers(0, 4)))
def test_folding_in_what_a_user_did_after_its_own_last_event(events, withheld):
    """Every user's last events are withheld, other users' later ones are not: a split by user."""
    events = [dataclasses.replace(event, time=float(n)) for n, event in enumerate(events)]
    of = {event.user_id: [e for e in events if e.user_id == event.user_id] for event in events}
    counted = {user: own[: len(own) - withheld.get(user, 0)] for user, own in of.items()}
    options = StatisticsOptions()
    held = fold([e for e in events if e in counted[e.user_id]], options).now()
    everything = fold(events, options).now()
    for user, own in of.items():
        behaviours = [(event, ITEMS[int(event.item_id[1:])]) for event in own]
        later, all_at_once = held.user(user, behaviours), everything.user(user)
        assert events_of(later) == events_of(all_at_once)
        names = {"user_tags_counts", "user_maker_counts", "user_item_times", "user_item_ago"}
        assert later.features_of(ITEMS, 1e9, names) == all_at_once.features_of(ITEMS, 1e9, names)
        assert len(held.user(user).item) == len(counted[user])


def events_of(user: KnownUser) -> list[tuple]:
    """By numbers of items in the order in which the user met them."""
    items = list(dict.fromkeys(user.item.tolist()))
    columns = (user.time, user.value, user.liked)
    return [
        (items.index(item), *event)
        for item, *event in zip(user.item.tolist(), *(c.tolist() for c in columns), strict=True)
    ]


def test_load_errors(tmp_path: Path) -> None:
    for file, change, message in (
        ("statistics.json", None, r"holds no .*statistics\.json"),
        ("statistics.json", lambda raw: raw.replace(b"m6rec-", b"other-"), "format 'other"),
        ("users.parquet", lambda raw: raw[:40], "damaged"),
        ("users.parquet", None, r"holds no .*users\.parquet"),
    ):
        fold([Event("u0", "i0", 1.0, 4.0)], StatisticsOptions()).save(tmp_path / "state")
        path = tmp_path / "state" / file
        raw = path.read_bytes()
        path.unlink()
        if change:
            path.write_bytes(change(raw))
        with pytest.raises(DataError, match=message):
            Statistics.load(tmp_path / "state")


def test_the_future_is_refused() -> None:
    statistics = fold([Event("u0", "i0", 5.0, 4.0)], StatisticsOptions())
    with pytest.raises(DataError, match="that would leak the future"):
        features(statistics, "u0", ITEMS[0], 5.0)
    assert features(statistics, "u0", ITEMS[0], 5.5)["item_count"] == "1"


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(31, 60))), max_size=4),
    st.integers(0, 3),
    st.sampled_from([0, 4096]),
)
def test_pair_counts_equal_a_dictionary(batches, saved_after, dense):
    expected: dict[tuple[int, int], list[float]] = {}
    pairs = sorted({pair for batch in batches for pair in batch})
    rows, columns = np.asarray(pairs, np.int64).reshape(-1, 2).T
    others = rows << 32 | columns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "DENSE_ITEMS", dense)
        counts = PairCounts(61, others=others)
        for number, batch in enumerate(batches):
            one, other = np.asarray(batch, np.int64).reshape(-1, 2).T
            # Either may come first.
            counts.add(*((one, other), (other, one))[number % 2], 1.0 * (one + other))
            for pair in batch:
                entry = expected.setdefault(pair, [0, 0])
                entry[0] += 1
                entry[1] += sum(pair)
            if number == saved_after:
                counts = PairCounts(61, *counts.to_arrays(), others)
        everything = counts.get(np.arange(61), np.arange(61))
        read = PairCounts(61, *counts.to_arrays()).get(np.arange(61), np.arange(61))
    np.testing.assert_array_equal(everything, read)
    square = np.zeros((2, 61, 61))
    for (one, other), entry in expected.items():
        square[:, one, other] = square[:, other, one] = entry
    np.testing.assert_array_equal(everything, square)


def test_pairs_of_many_items_are_told_apart() -> None:
    """Keys of items from 2^21 on have more digits than a float."""
    ones = np.full(4, 2**22 + 1)
    others = ones + np.arange(1, 5)
    counts = PairCounts(2**23, others=ones << 32 | others)
    counts.add(ones, others, np.arange(4.0))
    keys, counters = counts.to_arrays()
    np.testing.assert_array_equal(keys, ones << 32 | others)
    np.testing.assert_array_equal(counters[:, 1], np.arange(4))


def test_items_are_counted_however_many_events_there_are(tmp_path: Path) -> None:
    """The product of items and events is beyond 32 bits."""
    size = 50_000
    number, item = np.arange(size), np.arange(size, dtype=np.int32)
    columns = {"row": number, "user": item, "item": item, "time": 1.0 * number}
    columns |= {"value": np.ones(size), "part": np.zeros(size, np.int8)}
    batches = pa.table(columns).to_batches()
    timeline = Timeline.write(tmp_path / "timeline", batches, size, size, size, 4.0)
    counts = timeline.of_items(item, np.full(size, size))
    assert counts.events.tolist() == counts.value.tolist() == [1] * size
    assert timeline.of_items(item, number).events.sum() == 0
    np.testing.assert_array_equal(timeline.first_place, number)

"""Nothing at or after a row's time can change the row's text: the whole rendering, mutated.

Every test renders a random log, changes the future of one row (values of other events, events
removed, events added, test events relabelled), renders again, and compares that row to the letter.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.splitting.event_table import Assignment
from m6rec_jax.data.splitting.splits import EXCLUDED, PARTS, TEST, TRAIN, VALIDATION, Split
from tests.data.fold import ViewFold
from tests.data.plain_splits import plain_split

NUM_USERS, NUM_ITEMS = 4, 10


@dataclasses.dataclass(frozen=True)
class Log:
    """Events in the order of the file and their part codes; a user meets an item at most once.

    `split` says what rows may see.
    """

    events: tuple[tuple[int, int, float, float], ...]
    codes: tuple[int, ...]
    split: str = "per_user_temporal"

    def before(self, row: int) -> set[int]:
        """Rows of the same user that come before in the user's order."""
        user, _, time, _ = self.events[row]
        return {
            other
            for other, event in enumerate(self.events)
            if event[0] == user and (event[2], other) < (time, row)
        }


@st.composite
def logs(draw: st.DrawFn, split: str | None = None) -> Log:
    pairs = draw(
        st.lists(
            st.tuples(st.integers(0, NUM_USERS - 1), st.integers(0, NUM_ITEMS - 1)),
            min_size=14,
            max_size=24,
            unique=True,
        )
    )
    times = draw(st.lists(st.integers(0, 8), min_size=len(pairs), max_size=len(pairs)))
    values = draw(st.lists(st.integers(1, 5), min_size=len(pairs), max_size=len(pairs)))
    # Hours apart, so that "ago" tells them apart too.
    events = tuple(
        (user, item, 3600.0 * time, float(value))
        for (user, item), time, value in zip(pairs, times, values, strict=True)
    )
    users = np.asarray([user for user, *_ in events])
    moments = np.asarray([event[2] for event in events])
    if split is None:
        kinds = ["per_user_temporal", "global_temporal", "leave_one_out", "any"]
        split = draw(st.sampled_from(kinds))
    if split == "any":
        codes = np.asarray(draw(st.permutations([*range(3)] * 8)))[: len(events)]
    elif split == "by_user":
        of_users = st.lists(st.integers(0, 2), min_size=NUM_USERS, max_size=NUM_USERS)
        return Log(events, tuple(np.asarray(draw(of_users))[users].tolist()), split)
    else:
        codes = plain_split(split, users, moments)
    return Log(events, tuple(codes.tolist()))


@pytest.fixture
def render(write_shop) -> Callable[..., dict]:
    """Renders a log: (user, item) -> the row's part, history, text, by view."""

    def run(log: Log, view: str = "groups", **options) -> dict[tuple[int, int], tuple]:
        labelled = options.pop("labelled", True)
        folder = write_shop(log.events, num_users=NUM_USERS, num_items=NUM_ITEMS, labelled=labelled)
        dataset = Dataset.open(folder)
        job = ViewFold(
            dataset,
            Assignment(
                Split.parse(log.split), np.asarray(log.codes, np.int8), np.zeros(NUM_ITEMS, bool)
            ),
            PrepareOptions(group_size=3, next_items_size=2, max_events=4, **options),
            StatisticsOptions(neighbour_window=3),
        )
        found = {}
        for part, rows in job.render(view).rows.items():
            for row in rows:
                texts = row["candidates"] if view == "groups" else row["items"]
                labels = row.get("labels", [1] * len(texts))
                sampled: list[str] = []
                for item, text, label in reversed(
                    list(zip(row["item_indices"], texts, labels, strict=True))
                ):
                    if not labelled and view == "groups" and label == 0:
                        sampled.insert(0, text)
                        continue
                    key = row["user_index"], item
                    found[key] = (PARTS.index(part), row["history"], text, sampled)
                    sampled = []
        return found

    return run


@st.composite
def futures(draw: st.DrawFn, split: str | None = None, by_order: bool = False) -> tuple:
    """A log, one of its rows, and the log with another future for that row."""
    log = draw(logs(split or draw(st.sampled_from([None, "by_user"]))))
    row = draw(st.sampled_from([r for r, code in enumerate(log.codes) if code != EXCLUDED]))
    user, item, time, _ = log.events[row]
    events, codes = list(log.events), list(log.codes)
    for other, event in enumerate(log.events):
        # What has happened by then stays. In the user's own order, so do earlier events of the
        # same moment where histories go by that order.
        if other == row or event[2] < time or (by_order and other in log.before(row)):
            continue
        change = draw(st.sampled_from(["keep", "value", "remove", "part"]))
        if change == "value":
            events[other] = (*event[:3], float(draw(st.integers(1, 5))))
        # Where a user's rows of one moment are cut into groups depends on how many there are.
        elif change == "remove" and (event[0] != user or event[2] > time):
            codes[other] = EXCLUDED
        elif change == "part" and event[0] != user:
            codes[other] = draw(st.sampled_from([TRAIN, VALIDATION, TEST]))
    met = {(event[0], event[1]) for event in events}
    for new_user in range(NUM_USERS):
        for new_item in range(NUM_ITEMS):
            if (new_user, new_item) in met or draw(st.integers(0, 5)):
                continue
            later = time + 3600.0 * draw(st.integers(new_user == user, 3))
            events.append((new_user, new_item, later, float(draw(st.integers(1, 5)))))
            codes.append(draw(st.sampled_from([TRAIN, VALIDATION, TEST])))
    # The row's own outcome is its label: it must not show either.
    events[row] = (user, item, time, float(draw(st.integers(1, 5))))
    return log, Log(tuple(events), tuple(codes), log.split), (user, item)


# `render` keeps nothing from one log to the next.
SETTINGS = settings(
    max_examples=40,
    # The logs are small, and making them smaller takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SETTINGS
@given(data=st.data())
def test_scoring_text_ignores_the_future(render, data: st.DataObject) -> None:
    log, other, key = data.draw(futures())
    assert render(log)[key] == render(other)[key]


@SETTINGS
@given(data=st.data())
def test_next_item_text_ignores_the_future(render, data: st.DataObject) -> None:
    log, other, key = data.draw(futures(by_order=True))
    assert render(log, "next_items")[key] == render(other, "next_items")[key]


@SETTINGS
@given(data=st.data())
def test_sampled_negatives_ignore_the_future(render, data: st.DataObject) -> None:
    log, other, key = data.draw(futures())
    # Groups are single positives.
    assert render(log, labelled=False)[key] == render(other, labelled=False)[key]


@SETTINGS
@given(data=st.data())
def test_only_visible_parts_are_told(render, data: st.DataObject) -> None:
    """Of its own user a row tells what the split lets it see, of all others training events."""
    log = data.draw(logs(data.draw(st.sampled_from(["any", "any", None, "by_user"]))))
    chosen = data.draw(st.sampled_from([user for user, *_ in log.events]))
    own = {TRAIN: (TRAIN,), VALIDATION: (TRAIN,), TEST: (TRAIN, VALIDATION)}
    if log.split == "by_user":
        own = dict.fromkeys(own, tuple(own))
    rendered = render(log)
    for part, visible in own.items():
        # The rows themselves stay, but every outcome that is hidden from them is turned over.
        events = tuple(
            (user, item, time, value if code in seen else 6.0 - value)
            for (user, item, time, value), code in zip(log.events, log.codes, strict=True)
            for seen in [visible if user == chosen else (TRAIN,)]
        )
        turned = render(dataclasses.replace(log, events=events))
        for key, row in rendered.items():
            if key[0] == chosen and row[0] == part:
                assert turned[key] == row


@pytest.mark.parametrize("part", [VALIDATION, TEST])
def test_users_without_training_events_have_their_own_past(render, part: int) -> None:
    log = [(0, item, 3600.0 * item, 5.0 - item % 2 * 3) for item in range(5)]
    log += [(1, item, 3600.0 * item, 5.0) for item in range(4)]
    groups = render(Log(tuple(log), (part,) * 5 + (TRAIN,) * 4, "by_user"))
    assert groups[0, 2][1] == ["20 years", "Thursday"]  # the first group of three
    assert groups[0, 4][1][1:-1] == [
        "liked Thing 0, 3 hours ago",
        "disliked Thing 1, 2 hours ago",
        "liked Thing 2, 1 hour ago",
    ]
    assert groups[0, 4][1][0].startswith("20 years, 3 events")


def test_events_of_the_same_moment(render) -> None:
    events = ((0, 0, 0.0, 5.0), (0, 1, 3600.0, 5.0), (0, 2, 3600.0, 5.0), (0, 3, 3600.0, 5.0))
    log = Log(events, (TRAIN, TRAIN, VALIDATION, TEST))
    # Scoring: strictly before. Retrieval: by the user's order, so the validation item is in.
    assert render(log)[0, 3][1][1:-1] == ["liked Thing 0, 1 hour ago"]
    assert render(log, "next_items")[0, 3][1][1:-1] == [
        "liked Thing 0, 1 hour ago",
        "liked Thing 1, just now",
        "liked Thing 2, just now",
    ]

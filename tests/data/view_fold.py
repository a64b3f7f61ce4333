"""The rows of views, made the slow way: events are counted one by one, in the order of time.

Each group is rendered when all events before it are counted, by `RowRenderer` and `Statistics`,
with which serving renders. What `prepare` makes must equal it to the letter.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.features import co_occurrence
from m6rec_jax.data.features.co_occurrence import ONE, CoOccurrence, RelatedItems
from m6rec_jax.data.features.features import needed_only
from m6rec_jax.data.features.statistics import KnownUser
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.features.timeline import parts_of_users
from m6rec_jax.data.prepare_options import PrepareOptions, template_and_options
from m6rec_jax.data.rendering.event_views import EVENT_VIEWS
from m6rec_jax.data.rendering.event_views.documents import item_document
from m6rec_jax.data.splitting.event_table import Assignment
from m6rec_jax.data.splitting.negatives import num_negatives, sampling_rates
from m6rec_jax.data.splitting.splits import PARTS, STATISTICS_PARTS
from m6rec_jax.data.store import views
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Event, Item
from m6rec_jax.text.writing_templates import WRITING
from tests.data.fold import (
    FoldedSampler,
    FoldedStatistics,
    Group,
    RowRenderer,
    UserEvents,
    as_of,
    groups_of_user,
)


class CoOccurrenceByEvent:
    """`CoOccurrence` in dictionaries, event by event: the definition."""

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items
        self._pairs: dict[int, dict[int, int]] = {}
        self._later: dict[tuple[int, int], int] = {}
        self._totals = np.zeros(num_items, np.int64)
        self._last: dict[str, list[int]] = {}

    def update(self, user: str, item: int) -> None:
        last = self._last.setdefault(user, [])
        for distance, other in enumerate(reversed(last), 1):
            if other != item:
                self._add(item, other, round(ONE / distance))
                self._add(other, item, round(ONE / distance))
                later = self._later.get((other, item), 0)
                self._later[other, item] = later + round(ONE / distance)
        last.append(item)
        del last[: -co_occurrence.WINDOW]

    def _add(self, item: int, other: int, amount: int) -> None:
        row = self._pairs.setdefault(item, {})
        row[other] = row.get(other, 0) + amount
        self._totals[item] += amount

    def related(self, recent: Sequence[int], out: Sequence[int] | None = None) -> RelatedItems:
        scores: dict[int, float] = {}
        last = recent[-co_occurrence.RECENT :]
        weights = sum(1.0 / position for position in range(1, len(last) + 1))
        for position, item in enumerate(reversed(last), 1):
            total = self._totals[item] + ONE * co_occurrence.SMOOTHING
            weight = 1.0 / (position * weights * total)
            for other, amount in self._pairs.get(item, {}).items():
                scores[other] = scores.get(other, 0.0) + weight * amount
        for item in recent if out is None else out:
            scores.pop(item, None)
        items = np.fromiter(scores.keys(), np.int64, len(scores))
        shares = np.round(np.fromiter(scores.values(), np.float64, len(scores)), 12)
        order = np.lexsort((items, -shares))
        return RelatedItems(items[order], shares[order])

    def save(self, folder: Path) -> None:
        later = sparse.dok_array((self.num_items, self.num_items), dtype=np.int64)
        for pair, amount in self._later.items():
            later[pair] = amount
        CoOccurrence(later.tocsr()).save(folder)


def users_in_order(dataset: Dataset) -> Iterator[UserEvents]:
    """The users who have events, in the order of the users table."""
    events = dataset.events().sort_by([(k, "ascending") for k in ("user_index", "time", "row")])
    users, *columns = (
        events.column(name).to_numpy(zero_copy_only=False).astype(kind)
        for name, kind in (
            ("user_index", int),
            ("row", int),
            ("item_index", int),
            ("time", float),
            ("value", float),
        )
    )
    for user in np.unique(users).tolist():
        yield UserEvents(user, *(column[users == user] for column in columns))


def events_in_order(dataset: Dataset, assignment: Assignment) -> Iterator[tuple[Event, Item, bool]]:
    """What statistics may hold, in the order of time: see `as_of`."""
    of_users = parts_of_users(assignment.split.visible_parts)
    for row in dataset.events().sort_by([("time", "ascending"), ("row", "ascending")]).to_pylist():
        code = assignment.codes[row["row"]]
        if code in STATISTICS_PARTS + of_users:
            event = Event(row["user_id"], row["item_id"], row["time"], row["value"])
            yield event, dataset.item_records[row["item_index"]], code in of_users


class StatisticsAhead(FoldedStatistics):
    """Statistics of some of whose users more is known than counts for everybody.

    So is an event of the validation part known to the same user's rows of the test part, and to
    nobody else.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Events of each user, whether items of each could resemble others, users of whom more is
        # known.
        self._of_users: dict[str, list[tuple[Event, Item]]] = {}
        self._may_resemble: dict[str, list[bool]] = {}
        self._ahead: set[str] = set()

    def update(self, event: Event, item: Item, of_user_only: bool = False) -> None:
        if of_user_only:
            self._ahead.add(event.user_id)
        self._of_users.setdefault(event.user_id, []).append((event, item))
        may_resemble = event.user_id not in self._ahead or item.id in self.numbers
        self._may_resemble.setdefault(event.user_id, []).append(may_resemble)
        if not of_user_only:
            super().update(event, item)

    def user_ahead(self, user_id: str) -> KnownUser:
        user = UserAhead(self.now(), slice(0, 0), self._of_users.get(user_id, ()))
        user.mask = np.asarray(self._may_resemble.get(user_id, ()), bool)
        return user


class UserAhead(KnownUser):
    mask: np.ndarray

    def may_resemble(self) -> np.ndarray:
        return self.mask


class RowsAhead(RowRenderer):
    """Rows of which some see more of their user than counts for everybody."""

    visible_parts: Mapping[int, tuple[int, ...]]

    def _known(self, group: Group) -> KnownUser:
        if set(self.visible_parts[group.part]) <= set(STATISTICS_PARTS):
            return super()._known(group)
        return self._statistics.user_ahead(self._users[group.user].id)


class ViewFold:
    """Renders views of one data set under one assignment of its events to Parquet files.

    Args:
      dataset: an open data set.
      assignment: part of every event.
      options: what is rendered.
      statistics_options: None for the defaults.
    """

    def __init__(
        self,
        dataset: Dataset,
        assignment: Assignment,
        options: PrepareOptions,
        statistics_options: StatisticsOptions | None = None,
    ) -> None:
        self.dataset, self.assignment, self.options = dataset, assignment, options
        self.template, self.statistics_options = template_and_options(dataset, statistics_options)
        self.negatives = num_negatives(dataset.spec)

    def new_statistics(self, of_history: bool = False) -> StatisticsAhead:
        """Statistics that hold no event yet; with `of_history` only those of a history."""
        options = self.statistics_options
        if of_history:
            options = needed_only(options, self.template.profile_template.fields)
        return StatisticsAhead.for_dataset(self.dataset.spec, options)

    def render(self, view: str, folder: Path) -> tuple[dict[str, float], FoldedStatistics]:
        """Writes the rows of a view to `folder`.

        Returns:
          the sampling rates of negatives, and the statistics after the last event.
        """
        statistics = self.new_statistics(view in WRITING)
        counts = CoOccurrenceByEvent(len(self.dataset.item_records))
        sampler = self._sampler() if view == "groups" else None
        renderer = RowsAhead(
            self.dataset,
            self.template,
            statistics,
            sampler,
            self.negatives,
        )
        renderer.visible_parts = self.assignment.split.visible_parts
        rows: dict[str, list[views.Row]] = {}
        if view == "documents":
            for item, held in zip(self.dataset.item_records, self.assignment.held_out, strict=True):
                if not held:
                    document = item_document(self.template, item)
                    row = {"kind": "item", "source": [], "target": document}
                    rows.setdefault("train", []).append(row)

        places = {item.id: index for index, item in enumerate(self.dataset.item_records)}

        def update(event: Event, item: Item, of_user_only: bool) -> None:
            statistics.update(event, item, of_user_only)
            if view in views.COUNTED and not of_user_only:
                counts.update(event.user_id, places[item.id])

        events = events_in_order(self.dataset, self.assignment)
        for group in as_of(update, events, self._groups(view), lambda group: group.time):
            row = renderer.row(view, group)
            if row is not None:
                rows.setdefault(PARTS[group.part], []).append(row)
        for part, some in rows.items():
            table = pa.Table.from_pylist(some, views.schema(view))
            pq.write_table(table, folder / f"{part}.parquet")
        if view in views.COUNTED:
            counts.save(folder)
        if not rows:
            raise DataError(f"no row for the view {view!r}")
        return {} if sampler is None else dict(sampling_rates(sampler.drawn)), statistics

    def _groups(self, view: str) -> list[Group]:
        codes, visible = self.assignment.codes, self.assignment.split.visible_parts
        how = EVENT_VIEWS[view].grouping(self.dataset.spec, self.options)
        found: list[Group] = []
        for user in users_in_order(self.dataset):
            found += groups_of_user(user, codes[user.rows], how, len(found), visible)
        return sorted(found, key=lambda group: (group.time, group.group_id))

    def _sampler(self) -> FoldedSampler | None:
        if not self.negatives:
            return None
        ids = [item.id for item in self.dataset.item_records]
        never = self.assignment.held_out.nonzero()[0].tolist()
        return FoldedSampler(ids, self.options.negative_power, never)

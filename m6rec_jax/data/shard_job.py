"""A preparation in one process: its steps, and what they look up (see `shard_run`)."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.features.neighbours import GROUP, WINDOW, NeighbourCounts, NeighbourQueries
from m6rec_jax.data.features.past_statistics import PastStatistics
from m6rec_jax.data.features.statistics import Statistics
from m6rec_jax.data.features.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.data.features.timeline import Timeline
from m6rec_jax.data.features.user_events import Groups, ShardEvents
from m6rec_jax.data.features.windows import WindowEntries
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.rendering.event_views import EVENT_VIEWS
from m6rec_jax.data.rendering.event_views.groups import candidates_of
from m6rec_jax.data.rendering.shard_rows import ShardRows
from m6rec_jax.data.rendering.template_needs import checked_template
from m6rec_jax.data.splitting.negatives import Popularity, num_negatives
from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.data.store import tfrecords, views
from m6rec_jax.data.store.prepared import STATISTICS
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import to_disk
from m6rec_jax.io.mapped_arrays import mapped_array, open_arrays
from m6rec_jax.text.templates import DatasetTemplate


@dataclasses.dataclass(frozen=True)
class Past:
    """What an update goes on from: the split that it adds; how many items were there before; how
    many events, the first ones of the timeline, were counted; the folder with their statistics.
    """

    split: str
    num_items: int
    num_events: int
    prepared: Path


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What is rendered and how; in each process, the steps and what they look up.

    Attributes:
      folder: for temporary files, which all machines see.
      dataset: with its final template.
      visible_parts: part of a row -> parts whose events its history may hold.
      options: of the preparation, which say how long histories are.
      statistics: options of what the template asks for.
      held_out: which items are held out `[items]` bool.
      past: of an update; None where everything is prepared.
      sizes: events of each user shard, which lie one after the other in `events.arrow`.
    """

    folder: Path
    dataset: Dataset
    visible_parts: Mapping[int, tuple[int, ...]]
    options: PrepareOptions
    statistics: StatisticsOptions
    held_out: np.ndarray
    past: Past | None = None
    sizes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def opened(self) -> Job:
        """A copy for this process; raises DataError where its machine does not see the folders."""
        for folder in (self.folder, self.dataset.directory):
            if not folder.is_dir():
                raise DataError(
                    f"{folder} is not there on {socket.gethostname()}: all machines of a cluster "
                    "must see the data set and the output, as on a mounted bucket or NFS"
                )
        return dataclasses.replace(self)

    # ---- what is looked up, read once and when it is needed

    @property
    def negatives(self) -> int:
        """Sampled per positive row of 'groups'."""
        return num_negatives(self.dataset.spec)

    @property
    def shards(self) -> list[int]:
        """Those with events: all of a shard's may be excluded."""
        return np.flatnonzero(self.sizes).tolist()

    @cached_property
    def timeline(self) -> Timeline:
        """Of all users."""
        return Timeline.open(self.folder / "timeline")

    @cached_property
    def entries(self) -> WindowEntries:
        """Of the windows of all users."""
        return WindowEntries.open(self.folder / "entries")

    @cached_property
    def template(self) -> DatasetTemplate:
        """The data set's."""
        return checked_template(self.dataset.spec, self.settings, str(self.dataset.directory))

    @cached_property
    def settings(self) -> StatisticsSettings:
        """What statistics count."""
        return StatisticsSettings.for_dataset(self.dataset.spec, self.statistics)

    @cached_property
    def everybody(self) -> PastStatistics:
        """What all users did before any moment."""
        items = self.dataset.item_records
        return PastStatistics(self.settings, self.timeline, items, self.folder / "factors")

    def before(self) -> tuple[Statistics | None, int]:
        """What an update need not count again, and of how many events; not kept: it is large."""
        if self.past is None:
            return None, 0
        return Statistics.load(self.past.prepared / STATISTICS), self.past.num_events

    @cached_property
    def popularity(self) -> Popularity:
        """What negatives are drawn by."""
        return Popularity(*open_arrays(self.folder, ("popularity_schedule", "popularity")))

    def bucket(self, shard: int) -> ShardEvents:
        """The events of a shard."""
        start = int(self.sizes[:shard].sum())
        with pa.memory_map(str(self.folder / "events.arrow")) as source:
            events = pa.ipc.open_file(source).read_all().slice(start, int(self.sizes[shard]))
            at_least = self.settings.at_least
            return ShardEvents(events, self.timeline, self.visible_parts, at_least)

    def answers(self, shard: int) -> np.ndarray | None:
        """What pairs of items say of the candidates of 'groups' `[2, items]`, if it was asked."""
        if not (self.folder / f"queries-{shard}").exists():
            return None
        answers, ends = open_arrays(self.folder, ("answers", "answer_ends"))
        return answers[:, slice(*ends[self.shards.index(shard) :][:2])]

    def groups(self, bucket: ShardEvents, view: str) -> Groups:
        """Rows of a view, grouped."""
        return bucket.groups(EVENT_VIEWS[view].grouping(self.dataset.spec, self.options))

    # ---- steps

    def count(self, shard: int) -> np.ndarray:
        """Counts what the users of a shard did; returns the events before each group of 'groups',
        where negatives are sampled for them.
        """
        bucket = self.bucket(shard)
        if self.settings.keeps_windows:
            np.save(self.folder / f"entries-{shard}.npy", bucket.places_of_entries())
        if not self.negatives:
            return np.zeros(0, np.int64)
        return np.unique(self.timeline.count[self.groups(bucket, "groups").place])

    def write_entries(self) -> None:
        """Puts the windows of all shards together."""
        entries = WindowEntries.of(
            open_arrays(self.folder, (f"entries-{shard}" for shard in self.shards)),
            self.timeline,
            self.everybody.item_number,
            self.statistics.neighbour_window,
        )
        entries.save(self.folder / "entries")

    def fit_factors(self) -> None:
        """Fits the factors of all epochs to the windows of all users."""
        before, num_events = self.before()
        self.everybody.fitted.fit(self.entries, before.fitted if before else None, num_events)

    def ask(self, shard: int) -> None:
        """Saves what a shard's rows of 'groups' ask of pairs of items, which join users."""
        rows = ShardRows(self, shard)
        number, bucket = self.everybody.item_number, rows.bucket
        groups = self.groups(bucket, "groups")
        candidates = candidates_of(rows, groups)
        positions, windows = bucket.windows(groups.known, self.statistics.neighbour_window)
        offsets = candidates.ranges.offsets
        queries = np.empty(len(groups), GROUP)
        queries["place"] = groups.place
        queries["user_share"] = rows.features(groups).user_share
        queries["low"], queries["high"] = offsets[:-1], offsets[1:]
        queries["window_low"], queries["window_high"] = windows.low, windows.high
        window = np.empty(len(positions), WINDOW)
        window["item"], window["value"] = number[bucket.item[positions]], bucket.worth[positions]
        items = number[candidates.items].astype(np.int32)
        NeighbourQueries(queries, items, window).save(self.folder / f"queries-{shard}")

    def answer(self, numbers: slice) -> None:
        """Saves what pairs of items say to groups, by their numbers in the order of places `[2,
        items]`; after the last ones, all pairs.
        """
        timeline, number = self.timeline, self.everybody.item_number
        before, num_events = self.before()
        past = before.pairs.to_arrays() if before else None
        counts = NeighbourCounts(timeline, self.entries, number, self.settings, past, num_events)
        del before, past
        queries = NeighbourQueries.open(self.folder / "queries")
        order = np.argsort(queries.groups["place"], kind="stable")
        groups = queries.groups[order[numbers]]
        ends = np.cumsum(groups["high"] - groups["low"]).tolist()
        path = self.folder / f"answers-{numbers.start}.npy"
        answers = mapped_array(path, np.float64, (2, ends[-1] if ends else 0))
        for end, answer in zip(ends, counts.answer(queries, groups), strict=True):
            answers[:, end - answer.shape[1] : end] = answer
        to_disk(path)
        if numbers.stop == len(order):
            counts.advance(len(timeline.time))
            keys, counters = counts.pairs.to_arrays()
            np.savez(self.folder / "pairs.npz", keys=keys, counters=counters)

    def render(
        self, shard: int, names: Sequence[str]
    ) -> tuple[list[tuple[str, tfrecords.ShardFile]], np.ndarray]:
        """Writes the rows of views, a file of each part; returns view and file of each, and how
        many negatives were drawn: see `NegativeSampler.drawn`.
        """
        files = []
        rows = ShardRows(self, shard, self.answers(shard))
        for view in names:
            made = EVENT_VIEWS[view].rows(rows, self.groups(rows.bucket, view))
            columns = {
                field.name: column if isinstance(column, pa.Array) else pa.array(column, field.type)
                for field in views.schema(view)
                for column in [made.columns[field.name]]
            }
            records = list(tfrecords.examples(pa.table(columns), view))
            for part in np.unique(made.parts).tolist():
                seed = [shard, part, EVENT_VIEWS[view].seed]
                numbers = np.flatnonzero(made.parts == part)
                numbers = np.random.default_rng(seed).permutation(numbers)
                name = PARTS[part] if self.past is None else self.past.split
                path = self.folder / f"{view}-{name}-{shard}"
                some = map(records.__getitem__, numbers)
                files.append((view, tfrecords.write_shard(path, name, some)))
        return files, rows.sampler.drawn

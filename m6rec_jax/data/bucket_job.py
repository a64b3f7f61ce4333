"""A preparation in one process: its steps, and what they look up (see `bucket_run`)."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc

from m6rec_jax.data import tfrecords, views
from m6rec_jax.data.bucket_rows import BucketRows
from m6rec_jax.data.co_occurrence import RECENT
from m6rec_jax.data.epochs import PastCounts, WindowEntries
from m6rec_jax.data.event_views import EVENT_VIEWS
from m6rec_jax.data.event_views.groups import candidates_of
from m6rec_jax.data.event_views.view import Rows
from m6rec_jax.data.grouping import Grouping
from m6rec_jax.data.negatives import NegativeSampler, Popularity, num_negatives
from m6rec_jax.data.neighbours import GROUP, WINDOW, Asked, NeighbourFold
from m6rec_jax.data.past_statistics import PastStatistics
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.prepared import STATISTICS
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.reranking_candidates import AskedCandidates, DrawnCandidates
from m6rec_jax.data.splits import PARTS
from m6rec_jax.data.statistics import Statistics
from m6rec_jax.data.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.data.template_needs import checked_template
from m6rec_jax.data.tfrecords import ShardFile
from m6rec_jax.data.timeline import Timeline
from m6rec_jax.data.user_bucket import UserBucket
from m6rec_jax.errors import DataError
from m6rec_jax.io.mapped_arrays import open_arrays
from m6rec_jax.text.templates import DatasetTemplate

# View and part, and a file with rows of theirs.
Shard = tuple[str, str, ShardFile]


@dataclasses.dataclass(frozen=True)
class Past:
    """What an update goes on from.

    Attributes:
      part: name of the part that it adds.
      num_items: items that were there before.
      num_events: events that were counted before, the first ones of the timeline.
      prepared: folder with their statistics and co-occurrence.
    """

    part: str
    num_items: int
    num_events: int
    prepared: Path


class Summary(NamedTuple):
    """What a bucket has, before anything is rendered.

    Attributes:
      users: of the bucket, indices in the users table `[users]`.
      groups: for each view with numbered groups, how many each of them has `[users]`.
      counts: events before each group for which negatives are sampled `[groups]`.
    """

    users: np.ndarray
    groups: Mapping[str, np.ndarray]
    counts: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What is rendered and how; in each process, the steps and what they look up.

    Attributes:
      folder: for temporary files, which all machines see; must not exist.
      dataset: with its final template.
      visible_parts: part of a row -> parts whose events its history may hold.
      options: of the preparation, which say how long histories are.
      statistics: options of what the template asks for.
      past: of an update; None where everything is prepared.
    """

    folder: Path
    dataset: Dataset
    visible_parts: Mapping[int, tuple[int, ...]]
    options: PrepareOptions
    statistics: StatisticsOptions
    past: Past | None = None

    def copy(self) -> Job:
        """Without what was looked up, and without the tables that the data set has read."""
        return dataclasses.replace(self, dataset=dataclasses.replace(self.dataset))

    def opened(self) -> Job:
        """Itself; raises DataError where this machine does not see the folder."""
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} is not there on {socket.gethostname()}: all machines of a cluster "
                "must see the output folder, such as a mounted bucket or NFS"
            )
        return self

    # ---- what is looked up, read once and when it is needed

    def grouping(self, view: str) -> Grouping:
        """How the rows of a view are grouped."""
        return EVENT_VIEWS[view].grouping(self.dataset, self.options)

    @property
    def negatives(self) -> int:
        """Sampled per positive row of 'groups'."""
        return num_negatives(self.dataset, self.options)

    @property
    def num_items(self) -> int:
        """Of the items table."""
        return self.dataset.items.num_rows

    @property
    def num_old_items(self) -> int:
        """How many items, the first ones, are in documents and catalogue already."""
        return 0 if self.past is None else self.past.num_items

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
        spec = self.dataset.spec
        return checked_template(spec, self.settings, str(self.dataset.directory))

    @cached_property
    def settings(self) -> StatisticsSettings:
        """What statistics count."""
        return StatisticsSettings.for_dataset(self.dataset.spec, self.statistics)

    @cached_property
    def everybody(self) -> PastStatistics:
        """What all users did before any moment."""
        items = self.dataset.item_records
        return PastStatistics(self.settings, self.timeline, items, self.folder / "factors")

    @cached_property
    def past_counts(self) -> PastCounts | None:
        """What an update need not count again."""
        if self.past is None:
            return None
        before = Statistics.load(self.past.prepared / STATISTICS)
        return PastCounts(self.past.num_events, before.pairs.to_arrays(), before.fitted)

    @cached_property
    def held_out(self) -> np.ndarray:
        """Which items are held out `[items]` bool."""
        return np.load(self.folder / "held_out.npy")

    @cached_property
    def sizes(self) -> np.ndarray:
        """Events of each bucket, which lie one after the other in `events.arrow`."""
        return np.load(self.folder / "sizes.npy")

    @cached_property
    def buckets(self) -> list[int]:
        """Those with events: all of a bucket's may be excluded."""
        return np.flatnonzero(self.sizes).tolist()

    @cached_property
    def sampler(self) -> NegativeSampler:
        """Draws negatives of 'groups'; never held-out items."""
        options, never = self.options, np.flatnonzero(self.held_out).tolist()
        return NegativeSampler(self.num_items, options.negative_power, options.seed, never)

    @cached_property
    def popularity(self) -> Popularity:
        """What negatives are drawn by."""
        return Popularity(*open_arrays(self.folder, ("popularity_schedule", "popularity")))

    def answers(self, bucket: int) -> tuple[np.ndarray, np.ndarray] | None:
        """What pairs of items say of the candidates of 'groups' in a bucket, if counted."""
        if not self.statistics.neighbours:
            return None
        ends, answers = open_arrays(self.folder, ("answer_ends", "answers"))
        place = self.buckets.index(bucket)
        above, second = answers[:, ends[place] : ends[place + 1]]
        return above, second

    def candidates(self, bucket: int) -> DrawnCandidates:
        """The candidates of 'reranking'."""
        with np.load(self.folder / f"candidates-{bucket}.npz") as arrays:
            return DrawnCandidates(**arrays)

    def _bucket(self, number: int) -> UserBucket:
        start = int(self.sizes[:number].sum())
        with pa.memory_map(str(self.folder / "events.arrow")) as source:
            events = pa.ipc.open_file(source).read_all().slice(start, int(self.sizes[number]))
            return UserBucket(
                events,
                self.timeline,
                self.visible_parts,
                self.settings.at_least,
                self.statistics.neighbour_window,
            )

    # ---- steps

    def count(self, bucket: int, wanted: Sequence[str]) -> Summary:
        """Counts what the users of a bucket did, and their groups of the `wanted` views."""
        events = self._bucket(bucket)
        sizes = {}
        counts = np.zeros(0, np.int64)
        for view in wanted:
            groups = events.groups(self.grouping(view))
            if EVENT_VIEWS[view].numbered:
                users = np.searchsorted(events.users, events.user[groups.rows.low])
                sizes[view] = np.bincount(users, minlength=len(events.users))
            if view == "groups" and self.negatives:
                counts = np.unique(self.timeline.count[groups.place])
        if self.settings.keeps_windows:
            np.save(self.folder / f"entries-{bucket}.npy", events.places_of_entries())
        return Summary(events.users, sizes, counts)

    def write_entries(self) -> None:
        """Puts the windows of all buckets together."""
        WindowEntries.write(
            self.folder / "entries",
            open_arrays(self.folder, (f"entries-{bucket}" for bucket in self.buckets)),
            self.timeline,
            self.everybody.item_number,
            self.statistics.neighbour_window,
        )

    def fit_factors(self) -> None:
        """Fits the factors of all epochs to the windows of all users."""
        self.everybody.fitted.fit(self.entries, self.num_items, self.past_counts)

    def ask(self, bucket: int) -> Asked:
        """What the rows of 'groups' want to know of pairs of items."""
        events, number = self._bucket(bucket), self.everybody.item_number
        groups, rows = events.groups(self.grouping("groups")), BucketRows(self, bucket, events)
        candidates = candidates_of(rows, groups)
        positions, windows = events.windows(groups.known)
        offsets = candidates.ranges.offsets
        asked = np.empty(len(groups), GROUP)
        asked["place"] = groups.place
        asked["own"] = rows.features(groups).user_share
        asked["low"], asked["high"] = offsets[:-1], offsets[1:]
        asked["window_low"], asked["window_high"] = windows.low, windows.high
        window = np.empty(len(positions), WINDOW)
        window["item"], window["value"] = number[events.item[positions]], events.worth[positions]
        return Asked(asked, number[candidates.items].astype(np.int32), window)

    def answer(self, numbers: slice) -> np.ndarray:
        """What pairs of items say to groups; after the last groups, all pairs are saved.

        Args:
          numbers: of the groups, in the order of places.

        Returns:
          `[2, items]`, see `NeighbourFold.answer`.
        """
        timeline, number = self.timeline, self.everybody.item_number
        fold = NeighbourFold(timeline, self.entries, number, self.settings, self.past_counts)
        asked = Asked.open(self.folder / "asked")
        order = np.argsort(asked.groups["place"], kind="stable")
        answers = list(fold.answer(asked, order[numbers].tolist()))
        if numbers.stop == len(order):
            fold.advance(len(timeline.time))
            keys, counters = fold.pairs.to_arrays()
            np.savez(self.folder / "pairs.npz", keys=keys, counters=counters)
        return np.concatenate([np.zeros((2, 0)), *answers], axis=1)

    def ask_candidates(self, bucket: int) -> AskedCandidates:
        """Which groups of 'reranking' need candidates."""
        events, grouping = self._bucket(bucket), self.grouping("reranking")
        groups = events.groups(grouping)
        seen, seen_ranges = events.seen(groups.history)
        return AskedCandidates(
            self.timeline.count[groups.place],
            groups.part,
            events.user[groups.rows.low],
            events.item[groups.rows.low],
            events.histories(groups, min(grouping.max_events, RECENT)),
            events.item[events.past],
            seen_ranges,
            events.item[seen],
        )

    def render(self, bucket: int, wanted: Sequence[str]) -> tuple[list[Shard], np.ndarray]:
        """Writes the rows of views.

        Returns:
          the shards, and how many negatives were drawn: see `NegativeSampler.drawn`.
        """
        events = self._bucket(bucket)
        rows = BucketRows(self, bucket, events)
        before = self.sampler.drawn.copy()
        shards = [
            shard
            for view in wanted
            for shard in self._write_shards(
                view, bucket, EVENT_VIEWS[view].rows(rows, events.groups(self.grouping(view)))
            )
        ]
        return shards, self.sampler.drawn - before

    def _write_shards(self, view: str, bucket: int, rows: Rows) -> Iterator[Shard]:
        """Writes the rows of each part, shuffled where they are of events."""
        columns = {
            field.name: column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for field in views.schema(view)
            for column in [rows.columns[field.name]]
        }
        records = list(tfrecords.examples(pa.table(columns), view))
        for part in np.unique(rows.parts).tolist():
            numbers = np.flatnonzero(rows.parts == part)
            if EVENT_VIEWS[view].of_events:
                seed = [bucket, part, list(views.COLUMNS).index(view)]
                numbers = np.random.default_rng(seed).permutation(numbers)
            name = PARTS[part] if self.past is None else self.past.part
            path = self.folder / view / f"{name}-{bucket}"
            yield view, name, tfrecords.write_shard(path, map(records.__getitem__, numbers))

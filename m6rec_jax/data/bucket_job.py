"""What a process does for a preparation: count, fit, ask, answer, render (see `bucket_run`)."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from m6rec_jax.data import tfrecords, views
from m6rec_jax.data.bucket_features import GroupFeatures, SharedStatistics
from m6rec_jax.data.bucket_rows import BucketRows
from m6rec_jax.data.co_occurrence import RECENT
from m6rec_jax.data.epochs import FittedFactors, WindowEntries
from m6rec_jax.data.event_views import EVENT_VIEWS
from m6rec_jax.data.event_views.groups import candidates_of
from m6rec_jax.data.event_views.view import Rows
from m6rec_jax.data.grouping import Grouping
from m6rec_jax.data.negatives import NegativeSampler, Popularity, num_negatives
from m6rec_jax.data.neighbours import GROUP, WINDOW, Asked, NeighbourFold
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.reranking_candidates import AskedCandidates
from m6rec_jax.data.splits import PARTS
from m6rec_jax.data.statistics import Statistics
from m6rec_jax.data.statistics_state import StatisticsOptions
from m6rec_jax.data.template_needs import checked_template
from m6rec_jax.data.tfrecords import ShardFile
from m6rec_jax.data.timeline import Timeline
from m6rec_jax.data.user_bucket import UserBucket
from m6rec_jax.data.user_states import UserStates, entries_of
from m6rec_jax.errors import DataError
from m6rec_jax.text.templates import DatasetTemplate

_OF_NEIGHBOURS = ("user_neighbours_percent", "user_taste_difference", "user_neighbours_times")


class Shard(NamedTuple):
    """A file that was written, of a part of a view."""

    view: str
    part: str
    file: ShardFile


class Summary(NamedTuple):
    """What a bucket tells of its users before anything is rendered.

    Attributes:
      users: of the bucket, indices in the users table `[users]`.
      groups: for each view with numbered groups, how many each of them has `[users]`.
      counts: events before each group for which negatives are sampled `[groups]`.
    """

    users: np.ndarray
    groups: Mapping[str, np.ndarray]
    counts: np.ndarray


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


@dataclasses.dataclass(frozen=True)
class Job:
    """What is rendered and how; small, since it is handed to processes with every bucket.

    Attributes:
      folder: that holds the files on the way.
      dataset: with its final template.
      visible_parts: part of a row -> parts whose events its history may hold.
      options: of the preparation, which say how long histories are.
      statistics: options of what the template tells.
      past: of an update; None where everything is prepared.
    """

    folder: Path
    dataset: Dataset
    visible_parts: Mapping[int, tuple[int, ...]]
    options: PrepareOptions
    statistics: StatisticsOptions
    past: Past | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Without the tables that the data set has read.
        return {**self.__dict__, "dataset": dataclasses.replace(self.dataset)}

    def grouping(self, view: str) -> Grouping:
        """How the rows of a view are grouped."""
        return EVENT_VIEWS[view].grouping(self.dataset, self.options)

    @property
    def negatives(self) -> int:
        """Sampled per positive row of 'groups'."""
        return num_negatives(self.dataset, self.options)

    @property
    def template(self) -> DatasetTemplate:
        """The data set's."""
        spec = self.dataset.spec
        return checked_template(spec, Statistics.for_dataset(spec), str(self.dataset.directory))

    @property
    def asks_neighbours(self) -> bool:
        """Whether the rows of 'groups' tell what pairs of items say."""
        return not set(_OF_NEIGHBOURS).isdisjoint(self.template.candidate_template.fields)

    @property
    def num_old_items(self) -> int:
        """How many items, the first ones, are in documents and catalogue already."""
        return 0 if self.past is None else self.past.num_items

    def part_name(self, part: int) -> str:
        """What the rows of a part are called; an update has training rows alone."""
        return PARTS[part] if self.past is None else self.past.part

    def sampler(self, held_out: np.ndarray) -> NegativeSampler:
        """Draws negatives; never held-out items `[items]`."""
        never = held_out.nonzero()[0].tolist()
        number = self.dataset.items.num_rows
        return NegativeSampler(number, self.options.negative_power, self.options.seed, never)

    # ---- files on the way

    def save(self, name: str, value: object) -> None:
        """Puts down what all processes look things up in."""
        (self.folder / f"{name}.pickle").write_bytes(pickle.dumps(value))

    def load(self, name: str) -> Any:
        """Reads what `save` wrote.

        Raises:
          DataError: this machine does not see the folder.
        """
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} is not there on {socket.gethostname()}: all machines of a cluster "
                "must see the output folder, such as a mounted bucket or NFS"
            )
        return pickle.loads((self.folder / f"{name}.pickle").read_bytes())

    def bucket_file(self, bucket: int) -> Path:
        """Where the events of a bucket are."""
        return self.folder / f"events-{bucket}.arrow"

    def answers(self, bucket: int) -> tuple[np.ndarray, np.ndarray] | None:
        """What pairs of items say to the candidates of 'groups' in a bucket, if it is told."""
        if not self.asks_neighbours:
            return None
        answers = np.load(self.answers_file(), mmap_mode="r")
        above, second = answers[:, self.load("asked_items")[bucket]]
        return above, second

    def answers_file(self, stretch: int | None = None) -> Path:
        """Where it is what pairs of items say: of a stretch of the groups, or of all."""
        return self.folder / f"answers{'' if stretch is None else f'-{stretch}'}.npy"

    def write_shards(self, view: str, bucket: int, rows: Rows) -> list[Shard]:
        """Writes the rows of each part, shuffled where they are of events."""
        arrays = {}
        for field in views.schema(view):
            column = rows.columns[field.name]
            is_array = isinstance(column, pa.Array)
            arrays[field.name] = column if is_array else pa.array(column, field.type)
        records = list(tfrecords.examples(pa.table(arrays), view))
        found = []
        for part in np.unique(rows.parts).tolist():
            numbers = np.flatnonzero(rows.parts == part)
            if EVENT_VIEWS[view].of_events:
                seed = [bucket, part, list(views.COLUMNS).index(view)]
                numbers = np.random.default_rng(seed).permutation(numbers)
            name = self.part_name(part)
            path = self.folder / view / f"{name}-{bucket}"
            written = tfrecords.write_shard(path, map(records.__getitem__, numbers))
            found.append(Shard(view, name, written))
        return found


class OpenedJob:
    """A job as a process works on it: what it reads once.

    Attributes:
      job, shared: see there.
      timeline: of all users.
      template: of the data set.
      users, items: records in the order of their tables.
    """

    def __init__(self, job: Job, shared: SharedStatistics) -> None:
        self.job, self.shared = job, shared
        self.timeline = Timeline.open(job.folder / "timeline")
        self.template = job.template
        self.users, self.items = job.dataset.user_records, job.dataset.item_records

    def bucket(self, number: int) -> UserBucket:
        """Reads the events of a bucket."""
        with pa.memory_map(str(self.job.bucket_file(number))) as source:
            events = pa.ipc.open_file(source).read_all()
        shared = self.shared
        return UserBucket(
            events,
            self.timeline,
            self.job.visible_parts,
            shared.at_least,
            shared.options.neighbour_window,
        )

    @functools.cached_property
    def sampler(self) -> NegativeSampler:
        """Draws negatives of 'groups'."""
        return self.job.sampler(self.job.load("held_out"))

    @functools.cached_property
    def popularity(self) -> Popularity:
        """What it draws by."""
        cumulative = np.load(self.job.folder / "popularity.npy", mmap_mode="r")
        return Popularity(self.job.load("popularity"), cumulative)


# The last one alone: a process works on one job after the other.
_opened: dict[tuple[Path, str], OpenedJob] = {}


def _open(job: Job, name: str) -> OpenedJob:
    key = (job.folder, name)
    if key not in _opened:
        _opened.clear()
        _opened[key] = OpenedJob(job, job.load(name))
    return _opened[key]


def forget() -> None:
    """Lets go of what the last job kept in this process."""
    _opened.clear()


def summarise(job: Job, bucket: int, wanted: Sequence[str]) -> Summary:
    """Counts what the users of a bucket did, and their groups."""
    opened = _open(job, "counted")
    events = opened.bucket(bucket)
    found = {}
    counts = np.zeros(0, np.int64)
    for view in wanted:
        groups = events.groups(job.grouping(view))
        if EVENT_VIEWS[view].numbered:
            users = events.user[groups.rows.low]
            found[view] = np.bincount(
                np.searchsorted(events.users, users), minlength=len(events.users)
            )
        if view == "groups" and job.negatives:
            counts = np.unique(opened.timeline.count[groups.place])
    job.save(f"states-{bucket}", UserStates.of_bucket(events, opened.shared))
    if opened.shared.keeps_windows:
        job.save(f"entries-{bucket}", entries_of(events))
    return Summary(events.users, found, counts)


def fit_factors(job: Job) -> FittedFactors:
    """Fits the factors of all epochs to the windows of all users."""
    return FittedFactors.fit(
        job.folder / "factors",
        WindowEntries.open(job.folder / "entries"),
        Timeline.open(job.folder / "timeline"),
        job.dataset.items.num_rows,
        job.statistics,
        None if job.past is None else job.load("past"),
    )


def ask(job: Job, bucket: int) -> Asked:
    """What the rows of 'groups' want to know of pairs of items."""
    opened = _open(job, "asked")
    events = opened.bucket(bucket)
    number = opened.shared.item_number
    groups = events.groups(job.grouping("groups"))
    candidates = candidates_of(BucketRows(opened, bucket, events), groups)
    positions, windows = events.windows(groups.known)
    offsets = candidates.ranges.offsets
    asked = np.empty(len(groups), GROUP)
    asked["place"], asked["own"] = (
        groups.place,
        GroupFeatures(events, groups, opened.shared).user_share,
    )
    asked["low"], asked["high"] = offsets[:-1], offsets[1:]
    asked["window_low"], asked["window_high"] = windows.low, windows.high
    window = np.empty(len(positions), WINDOW)
    window["item"], window["value"] = number[events.item[positions]], events.worth[positions]
    return Asked(asked, number[candidates.items].astype(np.int32), window)


def answer(job: Job, stretch: tuple[int, slice]) -> None:
    """Writes what pairs of items say to groups, and after the last ones all pairs.

    Args:
      job: of the preparation.
      stretch: its number, and which groups, in the order of places.
    """
    number, numbers = stretch
    shared = job.load("counted")
    timeline = Timeline.open(job.folder / "timeline")
    fold = NeighbourFold(
        timeline,
        WindowEntries.open(job.folder / "entries"),
        shared.item_number,
        shared,
        None if job.past is None else job.load("past"),
    )
    order = np.load(job.folder / "asked_order.npy", mmap_mode="r")
    answers = list(fold.answer(Asked.open(job.folder / "asked"), order[numbers]))
    np.save(job.answers_file(number), np.concatenate([np.zeros((2, 0)), *answers], axis=1))
    if numbers.stop == len(order):
        fold.advance(len(timeline.time))
        job.save("pairs", fold.pairs.to_arrays())


def ask_candidates(job: Job, bucket: int) -> AskedCandidates:
    """Which groups of 'reranking' need candidates."""
    opened = _open(job, "asked")
    events = opened.bucket(bucket)
    groups = events.groups(job.grouping("reranking"))
    first = groups.rows.low
    recent = events.histories(groups, min(job.grouping("reranking").max_events, RECENT))
    seen, seen_ranges = events.seen(groups.history)
    return AskedCandidates(
        opened.timeline.count[groups.place],
        groups.part,
        events.user[first],
        events.item[first],
        recent,
        events.item[events.past],
        seen_ranges,
        events.item[seen],
    )


def render(job: Job, bucket: int, wanted: Sequence[str]) -> tuple[list[Shard], np.ndarray]:
    """Writes the rows of views.

    Returns:
      the shards, and how many negatives were drawn: see `NegativeSampler.drawn`.
    """
    opened = _open(job, "rendered")
    events = opened.bucket(bucket)
    made = BucketRows(opened, bucket, events)
    shards = []
    before = _drawn(opened)
    for view in wanted:
        groups = events.groups(job.grouping(view))
        shards += job.write_shards(view, bucket, EVENT_VIEWS[view].rows(made, groups))
    return shards, _drawn(opened) - before


def _drawn(opened: OpenedJob) -> np.ndarray:
    if not opened.job.negatives:
        return np.zeros((2, 3), np.int64)
    return opened.sampler.drawn.copy()

"""Makes views of a data set bucket by bucket, in as many processes as there are cores or workers.

Users are spread over buckets; the number of buckets follows from the number of events and not from
the machine, so that neither rows nor files depend on how many processes there are. A step is a
method of `Job`, of which every process has a copy; `BucketRun` leads them through the steps:

    count            groups and final states of the users of a bucket, and their windows
    fit_factors      of all windows, beside the steps that follow
    ask              what the rows of 'groups' want to know of pairs of items, by bucket
    answer           it, by time slice
    ask_candidates   what the rows of 'reranking' need; the lead draws candidates along the timeline
    render           one shard of each part of each view, by bucket

What one step leaves for another lies in files of a temporary folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc

from m6rec_jax.data.bucket_job import Job, Summary
from m6rec_jax.data.co_occurrence import CoOccurrence, GrowingCoOccurrence
from m6rec_jax.data.ease import Ease
from m6rec_jax.data.epochs import next_refresh, schedule
from m6rec_jax.data.event_table import EventTable
from m6rec_jax.data.event_views import EVENT_VIEWS
from m6rec_jax.data.negatives import sampling_rates
from m6rec_jax.data.neighbours import Asked
from m6rec_jax.data.pair_counts import PairCounts
from m6rec_jax.data.past_events import Ranges
from m6rec_jax.data.reranking_candidates import RerankingCandidates, draw_all
from m6rec_jax.data.splits import STATISTICS_PARTS
from m6rec_jax.data.tfrecords import ShardFile
from m6rec_jax.data.timeline import Timeline, parts_of_users
from m6rec_jax.io.mapped_arrays import mapped_array
from m6rec_jax.io.processors import num_processors
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.io.workers import Processes, RayWorkers, Threads, Workers

# Events of a bucket, about: a shard of the training part is then some hundred megabytes.
_BUCKET_EVENTS = 50_000
# Groups of a time slice, at least: the pairs before it are counted once more.
_SLICE_GROUPS = 20_000

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def num_buckets(num_events: int, num_users: int) -> int:
    """How many buckets there are, whatever the machine."""
    return min(max(1, round(num_events / _BUCKET_EVENTS)), num_users)


class BucketRun:
    """One preparation: events sorted into buckets, and what is made of them. A context manager.

    Args:
      job: what is rendered.
      events: of the data set, with their parts.
      held_out: which items are held out `[items]` bool.
      num_buckets: see `num_buckets`.
      engine: 'process' for the processors of this machine, or 'ray'.
      progress: whether to show bars.

    Raises:
      ConfigError: Ray is not installed, or its cluster has no room.
    """

    def __init__(
        self,
        job: Job,
        events: EventTable,
        held_out: np.ndarray,
        num_buckets: int,
        engine: str,
        progress: bool,
    ) -> None:
        self._job, self._progress = job, progress
        self._stack = contextlib.ExitStack()
        job.folder.mkdir(parents=True)
        self._stack.callback(shutil.rmtree, job.folder, ignore_errors=True)
        make = functools.partial(Job.opened, job.copy())
        self._num_workers = min(num_processors(), num_buckets)
        workers: Workers[Job]
        if engine == "ray":
            workers = ray = RayWorkers("m6rec data prepare --engine ray", make, threads=1)
            self._num_workers = ray.number
        elif self._num_workers > 1:
            workers = Processes(make, self._num_workers)
        else:
            workers = Threads(job, threads=1)
        self._workers = self._stack.enter_context(workers)
        np.save(job.folder / "held_out.npy", held_out)
        self._sort_events(events, num_buckets)
        self._summaries: list[Summary] | None = None
        self._fitted: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def render(
        self, wanted: tuple[str, ...]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[ShardFile]]]]:
        """Renders views.

        Returns:
          view -> what the manifest says of it, and view -> part -> its files.

        Raises:
          DataError: a record lacks what its template needs.
        """
        job = self._job
        entries: dict[str, dict[str, Any]] = {view: {} for view in wanted}
        for view in wanted:
            (job.folder / view).mkdir()
            if EVENT_VIEWS[view].of_events:
                entries[view]["grouping"] = dataclasses.asdict(job.grouping(view))
        self._prepare(wanted)
        step = functools.partial(Job.render, wanted=wanted)
        results = list(self._map("rendering", step, self._job.buckets))
        drawn = np.sum([drawn for _, drawn in results], axis=0)
        if rates := sampling_rates(drawn):
            entries["groups"]["negatives"] = {
                "per_positive": job.negatives,
                "power": job.options.negative_power,
                "seed": job.options.seed,
                "positives": int(drawn[:, 2].sum()),
                **rates,
            }
        files: dict[str, dict[str, list[ShardFile]]] = {view: {} for view in wanted}
        for view, part, file in itertools.chain.from_iterable(shards for shards, _ in results):
            files[view].setdefault(part, []).append(file)
        for view, parts in files.items():
            entries[view]["rows"] = {part: sum(f.records for f in fs) for part, fs in parts.items()}
        return entries, files

    def save_statistics(self, path: Path) -> int:
        """Writes the statistics after the last event to a folder; returns how many they hold."""
        job = self._job
        self._count(())
        file = job.folder / "pairs.npz"
        if job.statistics.neighbours and not file.exists():
            self._answer([])
        pairs = PairCounts(0).to_arrays()
        if file.exists():
            with np.load(file) as arrays:
                pairs = arrays["keys"], arrays["counters"]
        self._fitted()
        statistics = job.everybody.after_all(
            job.entries if job.settings.keeps_windows else None,
            pairs,
            [item.id for item in job.dataset.item_records],
            [user.id for user in job.dataset.user_records],
        )
        statistics.save(path)
        return statistics.totals.events

    def save_co_occurrence(self, folder: Path) -> None:
        """Writes which items occur together, for requests to be answered with."""
        users, items = self._counted_events
        CoOccurrence.counted(users, items, self._job.num_items, *self._counted_before).save(folder)

    def save_ease(self, folder: Path) -> None:
        """Writes what follows from all that a user had, likewise."""
        Ease.fitted(*self._counted_events, self._job.num_items).save(folder)

    # ---- between the steps

    @property
    def _counted_events(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of the events that count for everybody, in the order of time."""
        timeline = self._job.timeline
        counted = np.flatnonzero(timeline.counted)
        return timeline.user[counted], timeline.item[counted]

    def _sort_events(self, events: EventTable, num_buckets: int) -> None:
        job = self._job
        parts = (*STATISTICS_PARTS, *parts_of_users(job.visible_parts))
        size = events.number(f"SELECT count(*) FROM events WHERE part IN {parts}")
        (job.folder / "timeline").mkdir()
        Timeline.write(
            job.folder / "timeline",
            events.ordered("time, row", parts),
            size,
            events.num_rows,
            self._job.num_items,
            job.dataset.spec.label.at_least,
        )
        batches = events.ordered(f"user % {num_buckets}, user, time, row")
        sizes = np.zeros(num_buckets, np.int64)
        with pa.ipc.new_file(str(job.folder / "events.arrow"), batches.schema) as writer:
            for batch in batches:
                buckets = batch["user"].to_numpy() % num_buckets
                sizes += np.bincount(buckets, minlength=num_buckets)
                writer.write_batch(batch)
        np.save(job.folder / "sizes.npy", sizes)
        events.shrink()

    def _count(self, wanted: tuple[str, ...]) -> list[Summary]:
        """Counts all buckets once, and begins to fit what depends on the windows of all users."""
        if self._summaries is None:
            step = functools.partial(Job.count, wanted=wanted)
            self._summaries = list(self._map("counting", step, self._job.buckets))
            if self._job.settings.keeps_windows:
                self._job.write_entries()
            if self._job.settings.has_factors:
                (self._job.folder / "factors").mkdir()
                self._fitted = self._workers.begin(Job.fit_factors)
        return self._summaries

    def _prepare(self, wanted: tuple[str, ...]) -> None:
        """Makes what rendering looks things up in."""
        job = self._job
        summaries = self._count(wanted)
        for view in summaries[0].groups:
            # Groups are numbered over all users, in the order of the users table.
            counts = np.zeros(job.dataset.users.num_rows, np.int64)
            for summary in summaries:
                counts[summary.users] = summary.groups[view]
            np.save(job.folder / f"first_group-{view}.npy", np.cumsum(counts) - counts)
        counts_of_groups = np.unique(np.concatenate([s.counts for s in summaries]))
        if job.negatives and "groups" in wanted and len(counts_of_groups):
            self._weigh_items(counts_of_groups)
        if "groups" in wanted and job.statistics.neighbours:
            self._answer(job.buckets)
        if "reranking" in wanted:
            self._draw_candidates()
        self._fitted()

    def _weigh_items(self, counts: np.ndarray) -> None:
        """How likely items are drawn, whenever one of `counts` has grown by 2%."""

        def following(count: int) -> int:
            place = int(np.searchsorted(counts, next_refresh(count)))
            return int(counts[place]) if place < len(counts) else int(counts[-1]) + 1

        epochs = schedule(int(counts[0]), following, int(counts[-1]))
        folder, timeline = self._job.folder, self._job.timeline
        items = np.arange(self._job.num_items)
        cumulative = mapped_array(folder / "popularity.npy", np.float64, (len(epochs), len(items)))
        for number, place in enumerate(np.searchsorted(timeline.count, epochs).tolist()):
            events, _, _ = timeline.of_items(items, np.full(len(items), place))
            cumulative[number] = np.cumsum(self._job.sampler.weights(events))
        np.save(folder / "popularity_schedule.npy", epochs)

    def _answer(self, asking: Sequence[int]) -> None:
        """What pairs of items say to the groups of buckets, by time slices."""
        folder = self._job.folder
        ends = Asked.write(folder / "asked", self._map("asking", Job.ask, asking))
        np.save(folder / "answer_ends.npy", [0, *(items.stop for items in ends)])
        groups = Asked.open(folder / "asked").groups
        order = np.argsort(groups["place"], kind="stable")
        number = min(self._num_workers, 1 + len(order) // _SLICE_GROUPS)
        bounds = np.linspace(0, len(order), number + 1).astype(int).tolist()
        slices = [slice(*pair) for pair in itertools.pairwise(bounds)]
        size = int(groups["high"][-1]) if len(groups) else 0
        answers = mapped_array(folder / "answers.npy", np.float64, (2, size))
        found = self._map("pairs of items", Job.answer, slices, " time slices")
        for numbers, answer in zip(slices, found, strict=True):
            some = groups[order[numbers]]
            answers[:, Ranges(some["low"], some["high"]).numbers] = answer

    def _draw_candidates(self) -> None:
        """The candidates of 'reranking', in one pass over the events."""
        job = self._job
        counts = GrowingCoOccurrence(*self._counted_events, job.num_items, *self._counted_before)
        candidates = RerankingCandidates(
            counts,
            self._job.held_out,
            negatives=job.options.reranking_negatives,
            depth=job.options.reranking_depth,
            seed=job.options.seed,
            repeats=job.dataset.spec.repeats_count,
        )
        asked = list(self._map("asking", Job.ask_candidates, self._job.buckets))
        with progress_bar(
            desc="items that occur together",
            total=sum(len(one.number) for one in asked),
            disable=not self._progress,
        ) as bar:
            drawn = draw_all(candidates, counts, asked, bar)
        for bucket, one in zip(self._job.buckets, drawn, strict=True):
            np.savez(job.folder / f"candidates-{bucket}.npz", **vars(one))

    @property
    def _counted_before(self) -> tuple[CoOccurrence | None, int]:
        """What an update goes on from, and how many of the events are part of it."""
        past = self._job.past
        return (None, 0) if past is None else (CoOccurrence.load(past.prepared), past.num_events)

    def _map(
        self,
        title: str,
        step: Callable[[Job, Piece], Result],
        pieces: Sequence[Piece],
        unit: str = " buckets",
    ) -> Iterator[Result]:
        """The results of a step for all pieces, in their order."""
        bar: Iterable[Result] = progress_bar(
            self._workers.map(step, pieces),
            desc=title,
            total=len(pieces),
            unit=unit,
            disable=not self._progress,
        )
        yield from bar

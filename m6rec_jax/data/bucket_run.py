"""Makes views of a data set bucket by bucket, in as many processes as there are cores or workers.

Users are spread over buckets; the number of buckets follows from the number of events and not from
the machine, so that neither rows nor files depend on how many processes there are. A bucket is read
from one file and written as one shard of each part of each view. Beside it, a process looks at what
all buckets share and nobody changes: the timeline (`timeline`), and what hangs on it (`epochs`).

    events by time ---> timeline ---> standings, popularity
    events by bucket -> summaries --> factors, numbers of groups
    time by stretch --> asked ------> pairs of items
    time as a whole --> asked ------> candidates
                        rendered ---> shards
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from m6rec_jax.data import bucket_job, tfrecords
from m6rec_jax.data.bucket_features import ItemValues, SharedStatistics
from m6rec_jax.data.bucket_job import Job, Summary
from m6rec_jax.data.co_occurrence import CoOccurrence, GrowingCoOccurrence
from m6rec_jax.data.ease import Ease
from m6rec_jax.data.epochs import (
    FittedFactors,
    PastCounts,
    Standings,
    WindowEntries,
    schedule,
)
from m6rec_jax.data.event_table import Assignment, EventTable
from m6rec_jax.data.event_views import EVENT_VIEWS
from m6rec_jax.data.negatives import sampling_rates
from m6rec_jax.data.neighbours import Asked
from m6rec_jax.data.pair_counts import PairCounts
from m6rec_jax.data.prepared import STATISTICS
from m6rec_jax.data.profile_counts import save_profile_counts
from m6rec_jax.data.reranking_candidates import RerankingCandidates, draw_all
from m6rec_jax.data.splits import PARTS, STATISTICS_PARTS
from m6rec_jax.data.statistics import Statistics
from m6rec_jax.data.statistics_state import next_refresh
from m6rec_jax.data.tfrecords import ShardFile
from m6rec_jax.data.timeline import Timeline, parts_of_users
from m6rec_jax.data.user_bucket import Ranges
from m6rec_jax.data.user_states import save_statistics
from m6rec_jax.errors import DataError
from m6rec_jax.io.mapped_arrays import mapped_array
from m6rec_jax.io.processors import num_processors
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.io.workers import Processes, RayWorkers, ThisProcess, Workers

# Events of a bucket, about: a shard of the training part is then some hundred megabytes.
_BUCKET_EVENTS = 50_000
# Groups that a stretch of the timeline has at least: the pairs before it are counted once more.
_STRETCH_GROUPS = 20_000

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def num_buckets(num_events: int, num_users: int) -> int:
    """How many buckets there are, whatever the machine."""
    return min(max(1, round(num_events / _BUCKET_EVENTS)), num_users)


class BucketRun:
    """One preparation: events sorted into buckets, and what is made of them. A context manager.

    Args:
      job: what is rendered; its folder must not exist.
      events: of the data set.
      assignment: their parts.
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
        assignment: Assignment,
        num_buckets: int,
        engine: str,
        progress: bool,
    ) -> None:
        self._job, self._num_buckets, self._progress = job, num_buckets, progress
        dataset = job.dataset
        self._num_users, self._num_items = dataset.users.num_rows, dataset.items.num_rows
        self._stack = contextlib.ExitStack()
        self._num_workers = min(num_processors(), num_buckets)
        self._workers: Workers[Job]
        if engine == "ray":
            make = functools.partial(_itself, job)
            ray = RayWorkers("m6rec data prepare --engine ray", make, threads=1)
            self._workers, self._num_workers = self._stack.enter_context(ray), ray.number
        elif self._num_workers > 1:
            self._workers = self._stack.enter_context(Processes(job, self._num_workers))
        else:
            self._workers = ThisProcess(job, threads=1)
        job.folder.mkdir(parents=True)
        self._timeline = self._sort_events(events, assignment)
        job.save("held_out", assignment.held_out)
        self._shared = self._look_up_table()
        job.save("counted", self._shared)
        if job.past is not None:
            before = Statistics.load(job.past.prepared / STATISTICS)
            counted = PastCounts(job.past.num_events, before.pairs.to_arrays(), before.factors)
            job.save("past", counted)
        self._summaries: list[Summary] | None = None
        self._fitted: Callable[[], FittedFactors] | None = None
        self._has_pairs = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        bucket_job.forget()
        shutil.rmtree(self._job.folder, ignore_errors=True)

    def write(self, targets: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """Writes the shards of views and their metadata.

        Args:
          targets: view -> its folder, of `views.tfds_folder`, which is replaced.

        Returns:
          view -> what the manifest says of it.

        Raises:
          DataError: a record lacks what its template needs, or a view has no row.
        """
        found, shards = self.render(tuple(targets))
        for view, target in targets.items():
            if not shards[view]:
                raise DataError(
                    f"{self._job.dataset.spec.name!r} has no row for the view {view!r}: nothing "
                    "that a user liked has what the template asks for"
                )
            by_part = {part: shards[view][part] for part in PARTS if part in shards[view]}
            tfrecords.write_view(target, view, by_part)
        return found

    def render(
        self, wanted: tuple[str, ...]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, list[ShardFile]]]]:
        """Renders views.

        Returns:
          view -> what the manifest says of it, and view -> part -> its files.

        Raises:
          DataError: a record lacks what its template needs.
        """
        found: dict[str, dict[str, Any]] = {view: {} for view in wanted}
        for view in wanted:
            (self._job.folder / view).mkdir()
            if EVENT_VIEWS[view].of_events:
                found[view]["grouping"] = dataclasses.asdict(self._job.grouping(view))
        self._prepare(wanted)
        step = functools.partial(bucket_job.render, wanted=wanted)
        results = list(self._map("rendering", step, self._buckets))
        all_drawn = np.sum([drawn for _, drawn in results], axis=0)
        rates = sampling_rates(all_drawn)
        if rates:
            found["groups"]["negatives"] = {
                "per_positive": self._job.negatives,
                "power": self._job.options.negative_power,
                "seed": self._job.options.seed,
                "positives": int(all_drawn[:, 2].sum()),
                **rates,
            }
        files: dict[str, dict[str, list[ShardFile]]] = {view: {} for view in wanted}
        for shard in itertools.chain.from_iterable(written for written, _ in results):
            files[shard.view].setdefault(shard.part, []).append(shard.file)
        for view, parts in files.items():
            found[view]["rows"] = {part: sum(f.records for f in fs) for part, fs in parts.items()}
        return found, files

    def save_statistics(self, path: Path) -> int:
        """Writes the statistics after the last event to a folder.

        Returns:
          how many events they hold.
        """
        job = self._job
        self._summarise(())
        if self._shared.options.neighbours and not self._has_pairs:
            self._answer(())
        self._add_factors()
        items, users = job.dataset.item_records, job.dataset.user_records
        save_statistics(
            path,
            self._timeline,
            self._shared,
            [job.load(f"states-{bucket}") for bucket in self._buckets],
            WindowEntries.open(job.folder / "entries") if self._shared.keeps_windows else None,
            job.load("pairs") if self._has_pairs else PairCounts().to_arrays(),
            [item.id for item in items],
            [user.id for user in users],
        )
        return int(self._timeline.count[-1])

    def save_co_occurrence(self, folder: Path) -> None:
        """Writes which items occur together, for requests to be answered with."""
        users, items = self._counted_events
        if self._job.past is None:
            CoOccurrence.counted(users, items, self._num_items).save(folder)
        else:
            counts = self._growing_counts()
            counts.advance(len(users))
            counts.save(folder)

    def save_ease(self, folder: Path) -> None:
        """Writes what follows from all that a user had, or from a profile, likewise."""
        Ease.fitted(*self._counted_events, self._num_items).save(folder)
        users = self._job.dataset.users
        columns = {name: users[name].to_pylist() for name in self._job.dataset.spec.users.columns}
        save_profile_counts(folder, columns, *self._counted_events)

    # ---- steps

    @property
    def _counted_events(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of the events that count for everybody, in the order of time."""
        counted = np.flatnonzero(self._timeline.counted)
        return self._timeline.user[counted], self._timeline.item[counted]

    def _sort_events(self, events: EventTable, assignment: Assignment) -> Timeline:
        job, codes = self._job, assignment.codes
        parts = (*STATISTICS_PARTS, *parts_of_users(job.visible_parts))
        (job.folder / "timeline").mkdir()
        timeline = Timeline.write(
            job.folder / "timeline",
            events.known(codes, "time, row", parts),
            int(np.isin(codes, parts).sum()),
            events.num_rows,
            self._num_items,
            job.dataset.spec.label.at_least,
        )
        batches = events.known(codes, f"user % {self._num_buckets}, user, time, row")
        for bucket, found in itertools.groupby(
            _of_one_bucket(batches, self._num_buckets), lambda piece: piece[0]
        ):
            with pa.OSFile(str(job.bucket_file(bucket)), "wb") as sink:
                writer = None
                for _, batch in found:
                    writer = writer or pa.ipc.new_file(sink, batch.schema)
                    writer.write_batch(batch)
                if writer:
                    writer.close()
        # All events of a bucket may be excluded.
        self._buckets = [b for b in range(self._num_buckets) if job.bucket_file(b).exists()]
        job.save("buckets", self._buckets)
        events.shrink()
        return timeline

    def _look_up_table(self) -> SharedStatistics:
        job, spec = self._job, self._job.dataset.spec
        first = self._timeline.first_place(np.arange(self._num_items))
        number = np.empty(self._num_items, np.int64)
        number[np.argsort(first, kind="stable")] = np.arange(self._num_items)
        items = job.dataset.item_records
        return SharedStatistics(
            by=tuple(spec.statistics.by),
            at_least=spec.label.at_least,
            has_values=spec.events.value is not None,
            options=job.statistics,
            item_values=[ItemValues.of(items, field) for field in spec.statistics.by],
            item_number=number,
        )

    def _summarise(self, wanted: tuple[str, ...]) -> list[Summary]:
        """Looks at all buckets once, and fits what hangs on the windows of all users."""
        if self._summaries is None:
            step = functools.partial(bucket_job.summarise, wanted=wanted)
            self._summaries = list(self._map("counting", step, self._buckets))
            if self._shared.keeps_windows:
                WindowEntries.write(
                    self._job.folder / "entries",
                    [self._job.load(f"entries-{bucket}") for bucket in self._buckets],
                    self._timeline,
                    self._shared.item_number,
                    self._shared.options.neighbour_window,
                )
            if self._shared.has_factors:
                (self._job.folder / "factors").mkdir()
                self._fitted = self._workers.begin(bucket_job.fit_factors)
        return self._summaries

    def _add_factors(self) -> None:
        """Waits for the factors, which are fitted while pairs are counted."""
        if self._fitted is not None:
            self._shared = dataclasses.replace(self._shared, factors=self._fitted())
            self._fitted = None

    def _prepare(self, wanted: tuple[str, ...]) -> None:
        """Makes what rendering looks things up in."""
        job = self._job
        summaries = self._summarise(wanted)
        fields = job.template.candidate_template.fields
        if any(name.startswith(("item_popularity_", "item_liked_")) for name in fields):
            standings = Standings.of(
                self._timeline,
                self._num_items,
                self._shared.options.smoothing,
                self._shared.has_labels,
            )
            self._shared = dataclasses.replace(self._shared, standings=standings)
        job.save("asked", self._shared)
        for view in summaries[0].groups:
            # Groups are numbered over all users, in the order of the users table.
            counts = np.zeros(self._num_users, np.int64)
            for summary in summaries:
                counts[summary.users] = summary.groups[view]
            np.save(job.folder / f"first_group-{view}.npy", np.cumsum(counts) - counts)
        counts_of_groups = np.unique(np.concatenate([s.counts for s in summaries]))
        if job.negatives and "groups" in wanted and len(counts_of_groups):
            self._weigh_items(counts_of_groups)
        if "groups" in wanted and job.asks_neighbours:
            self._answer(self._buckets)
        if "reranking" in wanted:
            self._draw_candidates()
        self._add_factors()
        job.save("rendered", self._shared)

    def _weigh_items(self, counts: np.ndarray) -> None:
        """How likely items are drawn, whenever one of `counts` has grown by 2%."""

        def following(count: int) -> int:
            place = int(np.searchsorted(counts, next_refresh(count)))
            return int(counts[place]) if place < len(counts) else int(counts[-1]) + 1

        epochs = schedule(int(counts[0]), following, int(counts[-1]))
        items = np.arange(self._num_items)
        cumulative = mapped_array(
            self._job.folder / "popularity.npy", np.float64, (len(epochs), len(items))
        )
        sampler = self._job.sampler(self._job.load("held_out"))
        for number, place in enumerate(np.searchsorted(self._timeline.count, epochs).tolist()):
            events, _, _ = self._timeline.of_items(items, np.full(len(items), place))
            cumulative[number] = np.cumsum(sampler.weights(events))
        self._job.save("popularity", epochs)

    def _answer(self, asking: Sequence[int]) -> None:
        """What pairs of items say to the groups of buckets, by stretches of the timeline."""
        job = self._job
        pieces = self._map("asking", bucket_job.ask, asking)
        places = Asked.write(job.folder / "asked", pieces)
        groups = Asked.open(job.folder / "asked").groups
        order = np.argsort(groups["place"], kind="stable")
        np.save(job.folder / "asked_order.npy", order)
        number = min(self._num_workers, 1 + len(order) // _STRETCH_GROUPS)
        bounds = np.linspace(0, len(order), number + 1).astype(int).tolist()
        stretches = [(n, slice(*pair)) for n, pair in enumerate(itertools.pairwise(bounds))]
        for _ in self._map("pairs of items", bucket_job.answer, stretches, " stretches"):
            pass
        self._has_pairs = True
        size = int(groups["high"][-1]) if len(groups) else 0
        answers = mapped_array(job.answers_file(), np.float64, (2, size))
        for n, stretch in stretches:
            some = groups[order[stretch]]
            answers[:, Ranges(some["low"], some["high"]).numbers] = np.load(job.answers_file(n))
        job.save("asked_items", dict(zip(asking, places, strict=True)))

    def _draw_candidates(self) -> None:
        """The candidates of 'reranking', in one pass over the events."""
        job = self._job
        counts = self._growing_counts()
        candidates = RerankingCandidates(
            counts,
            job.load("held_out"),
            negatives=job.options.reranking_negatives,
            depth=job.options.reranking_depth,
            seed=job.options.seed,
            repeats=job.dataset.spec.repeats_count,
        )
        asked = list(self._map("asking", bucket_job.ask_candidates, self._buckets))
        with progress_bar(
            desc="items that occur together",
            total=sum(len(one.number) for one in asked),
            disable=not self._progress,
        ) as bar:
            drawn = draw_all(candidates, counts, asked, job.options.reranking_negatives, bar)
        for bucket, one in zip(self._buckets, drawn, strict=True):
            job.save(f"candidates-{bucket}", one)

    def _growing_counts(self) -> GrowingCoOccurrence:
        """Counts before the first event, of an update before its first one."""
        start, past = CoOccurrence(self._num_items), self._job.past
        if past is None:
            return GrowingCoOccurrence(*self._counted_events, start)
        before = CoOccurrence.load(past.prepared)
        start.totals[: before.num_items] = before.totals
        counts = (before.keys, before.amounts, start.totals, before.later)
        start = CoOccurrence(self._num_items, *counts)
        return GrowingCoOccurrence(*self._counted_events, start, past.num_events)

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


def _itself(job: Job) -> Job:
    return job


def _of_one_bucket(
    batches: Iterable[pa.RecordBatch], num_buckets: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cuts batches that are sorted by bucket."""
    for batch in batches:
        buckets = batch["user"].to_numpy() % num_buckets
        starts = np.flatnonzero(np.append(True, np.diff(buckets) != 0)).tolist()
        for start, end in itertools.pairwise([*starts, batch.num_rows]):
            if start < end:
                yield int(buckets[start]), batch.slice(start, end - start)

"""Makes views shard by shard of the users, in as many processes as there are cores or workers.

The number of user shards follows from the number of events and not from the machine, so that
neither rows nor files depend on how many processes there are. A step is a method of `Job`, of which
every process has a copy; `run` leads them through the steps:

    count          events before groups, and the windows of the users of a shard
    fit_factors    of all windows, beside the steps that follow
    ask            what rows want to know of pairs of items, which join users
    answer         it, by time slice
    render         one file of each part of each view, by shard
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.features.neighbours import NeighbourQueries, PairCounts
from m6rec_jax.data.features.statistics import Statistics
from m6rec_jax.data.features.timeline import Timeline, next_refresh, parts_of_users, schedule
from m6rec_jax.data.features.user_events import Ranges
from m6rec_jax.data.shard_job import Job
from m6rec_jax.data.splitting.event_table import EventTable
from m6rec_jax.data.splitting.negatives import NegativeSampler, sampling_rates
from m6rec_jax.data.splitting.splits import STATISTICS_PARTS
from m6rec_jax.data.store.prepared import CATALOGUE, STATISTICS, write_catalogue
from m6rec_jax.data.store.tfrecords import ShardFile
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import to_disk
from m6rec_jax.io.mapped_arrays import mapped_array, open_arrays
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.io.workers import Processes, RayWorkers, Threads, Workers, num_processors

# Events of a user shard, about: a file of the training part is then some hundred megabytes.
_SHARD_EVENTS = 50_000
# Groups of a time slice, at least: the pairs before it are counted once more.
_SLICE_GROUPS = 20_000

log = logging.getLogger(__name__)


def num_shards(num_events: int, num_users: int) -> int:
    """How many user shards there are, whatever the machine."""
    return min(max(1, round(num_events / _SHARD_EVENTS)), num_users)


def run(
    job: Job,
    events: EventTable,
    shards: int,
    names: Sequence[str],
    shared: Path,
    counted: bool,
    engine: str = "process",
    progress: bool = False,
) -> tuple[dict[str, list[ShardFile]], dict[str, float]]:
    """Renders views, and writes what they share: statistics, catalogue, co-occurrence.

    Args:
      job: what is rendered; its folder holds temporary files, and the files of rows.
      events: of the data set, with their parts.
      shards: see `num_shards`.
      names: of the views.
      shared: a new folder for what views share.
      counted: whether co-occurrence is written, too; and EASE, but for an update.
      engine: 'process' for the processors of this machine, or 'ray'.
      progress: whether to show bars.

    Returns:
      the files of each view, and the `sampling_rates` of negatives.

    Raises:
      DataError: a record lacks what its template needs, or a view has no row.
      ConfigError: Ray is not installed, or its cluster has no room.
    """
    job = dataclasses.replace(job, sizes=_sort_events(job, events, shards))
    workers, number = _workers(job, min(num_processors(), shards), engine)
    with workers:

        def each(title: str, step: Callable[[Job, Any], Any], pieces: Sequence[Any]) -> list[Any]:
            """The results of a step for pieces of work, in their order; the title is shown."""
            if engine == "ray":  # what is mapped here reaches other machines by way of the disk
                to_disk(*job.folder.rglob("*.npy"))
            results = workers.map(step, pieces)
            return list(progress_bar(results, title, total=len(pieces), disable=not progress))

        counts = np.unique(np.concatenate(each("counting", Job.count, job.shards)))
        if job.settings.keeps_windows:
            job.write_entries()
        under_way = []
        if job.settings.has_factors:
            (job.folder / "factors").mkdir()
            under_way.append(workers.begin(Job.fit_factors))
        if len(counts) and "groups" in names:
            _weigh_items(job, counts)
        if job.statistics.neighbours:
            _answer(job, each, number, job.shards if "groups" in names else [])
        for result in under_way:
            result()
        rendered = each("rendering", functools.partial(Job.render, names=names), job.shards)
    files: dict[str, list[ShardFile]] = {name: [] for name in names}
    for name, file in itertools.chain.from_iterable(of_shard for of_shard, _ in rendered):
        files[name].append(file)
    for name, of_view in files.items():
        if not of_view and job.past is None:
            raise DataError(
                f"{job.dataset.spec.name!r} has no row for the view {name!r}: nothing that a user "
                "liked has what the template asks for"
            )
    drawn = np.sum([drawn for _, drawn in rendered], axis=0)
    if "groups" in names and job.negatives and job.dataset.spec.repeats_count:
        num_rows = events.number("SELECT count(*) FROM events WHERE part BETWEEN 0 AND 2")
        if left_out := num_rows - drawn[:, 2].sum():
            log.info(
                "%d events repeat all that their user had, and are in no row of 'groups'", left_out
            )
    _save_shared(job, shared, counted)
    return files, dict(sampling_rates(drawn))


def _workers(job: Job, number: int, engine: str) -> tuple[Workers[Job], int]:
    """Workers with a copy of the job each, and how many there are."""
    # Without the tables that the data set has read.
    bare = dataclasses.replace(job, dataset=dataclasses.replace(job.dataset))
    if engine == "ray":
        ray = RayWorkers("m6rec data prepare --engine ray", bare.opened, threads=1)
        return ray, ray.number
    return (Processes(bare.opened, number) if number > 1 else Threads(job, threads=1)), number


def _sort_events(job: Job, events: EventTable, shards: int) -> np.ndarray:
    """Writes the timeline, and the events of the shards one by one; returns `Job.sizes`."""
    parts = (*STATISTICS_PARTS, *parts_of_users(job.visible_parts))
    size = events.number(f"SELECT count(*) FROM events WHERE part IN {parts}")
    sizes = size, events.num_rows, len(job.held_out), job.dataset.spec.label.at_least
    Timeline.write(job.folder / "timeline", events.ordered("time, row", parts), *sizes)
    batches = events.ordered(f"user % {shards}, user, time, row")
    of_shards = np.zeros(shards, np.int64)
    with pa.ipc.new_file(str(job.folder / "events.arrow"), batches.schema) as writer:
        for batch in batches:
            of_shards += np.bincount(batch["user"].to_numpy() % shards, minlength=shards)
            writer.write_batch(batch)
    events.shrink()
    return of_shards


def _weigh_items(job: Job, counts: np.ndarray) -> None:
    """How likely items are drawn, whenever one of `counts` has grown by 2%."""

    def following(count: int) -> int:
        place = int(np.searchsorted(counts, next_refresh(count)))
        return int(counts[place]) if place < len(counts) else int(counts[-1]) + 1

    epochs = schedule(int(counts[0]), following, int(counts[-1]))
    items = np.arange(len(job.held_out))
    weights = NegativeSampler(len(items), job.options.negative_power).weights
    cumulative = mapped_array(job.folder / "popularity.npy", np.float64, (len(epochs), len(items)))
    for number, place in enumerate(np.searchsorted(job.timeline.count, epochs).tolist()):
        events, _, _ = job.timeline.of_items(items, np.full(len(items), place))
        cumulative[number] = np.cumsum(weights(events))
    np.save(job.folder / "popularity_schedule.npy", epochs)


def _answer(job: Job, each: Callable[..., Any], number: int, shards: Sequence[int]) -> None:
    """Counts pairs of items by time slices, at most `number`; saves what they say to shards."""
    each("asking", Job.ask, shards)
    folders = [job.folder / f"queries-{shard}" for shard in shards]
    groups = NeighbourQueries.join(job.folder / "queries", folders).groups
    order = np.argsort(groups["place"], kind="stable")
    number = min(number, 1 + len(order) // _SLICE_GROUPS)
    bounds = np.linspace(0, len(order), number + 1).astype(int).tolist()
    slices = [slice(*pair) for pair in itertools.pairwise(bounds)]
    each("pairs of items by time slice", Job.answer, slices)
    sizes = [len(NeighbourQueries.open(folder).items) for folder in folders]
    np.save(job.folder / "answer_ends.npy", np.cumsum([0, *sizes]))
    answers = mapped_array(job.folder / "answers.npy", np.float64, (2, sum(sizes)))
    for numbers in slices:
        some = groups[order[numbers]]
        (answer,) = open_arrays(job.folder, [f"answers-{numbers.start}"])
        answers[:, Ranges(some["low"], some["high"]).numbers] = answer


def _save_shared(job: Job, folder: Path, counted: bool) -> None:
    """Writes what the views share; arguments as of `run`."""
    folder.mkdir()
    items, pairs = job.dataset.item_records, PairCounts(0).to_arrays()
    if job.statistics.neighbours:
        with np.load(job.folder / "pairs.npz") as arrays:
            pairs = arrays["keys"], arrays["counters"]
    statistics = Statistics.after_all(
        job.everybody,
        job.entries if job.settings.keeps_windows else None,
        pairs,
        [item.id for item in items],
        [user.id for user in job.dataset.user_records],
    )
    statistics.save(folder / STATISTICS)
    attributes = job.dataset.items.select(list(job.dataset.spec.items.columns))
    texts = list(map(job.template.item, items))
    in_time = np.flatnonzero(job.timeline.counted)
    events = job.timeline.user[in_time], job.timeline.item[in_time], len(items)
    counts = np.bincount(events[1], minlength=len(items))
    write_catalogue(folder / CATALOGUE, items, attributes, texts, job.held_out, counts)
    if counted and job.past is None:
        CoOccurrence.counted(*events).save(folder)
        Ease.fitted(*events).save(folder)
    if counted and job.past is not None:
        before = CoOccurrence.load(job.past.prepared)
        CoOccurrence.counted(*events, before, job.past.num_events).save(folder)

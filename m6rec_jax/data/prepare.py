"""`m6rec data prepare`: a data set folder becomes a TFDS data set of rendered text.

Events are read once, into a table on disk, and split. Then all views that are wanted are made
together, shard by shard of the users (`shard_run`).

Views are on disk with the fingerprint of everything they depend on, so a view that is there is not
made again, and a run with other options makes only what they change. The same input gives the same
bytes of records. The manifest is written last: without it nothing counts as prepared.

Who may see what is defined in `data.splitting.splits`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Literal

import gin
import msgspec

from m6rec_jax import __version__
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.schema import SPEC_FILE, protocol_for
from m6rec_jax.data.features import co_occurrence, ease
from m6rec_jax.data.features import statistics as statistics_files
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.prepare_options import PrepareOptions, template_and_options, with_spec
from m6rec_jax.data.rendering.event_views import EVENT_VIEWS
from m6rec_jax.data.rendering.template_needs import check_texts
from m6rec_jax.data.shard_job import Job
from m6rec_jax.data.shard_run import num_shards, run
from m6rec_jax.data.splitting.event_table import Assignment, EventTable
from m6rec_jax.data.splitting.splits import PART_NAMES, Split, part_counts
from m6rec_jax.data.store import tfrecords, views
from m6rec_jax.data.store.manifest import (
    MANIFEST,
    Manifest,
    ViewEntry,
    earlier_manifest,
    fingerprint,
)
from m6rec_jax.data.store.prepared import (
    CATALOGUE,
    EVENTS,
    PREPARED_EVENTS,
    STATISTICS,
    Prepared,
    folder_of,
    local_data_dir,
)
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import put_in_place, scratch_folder
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.locks import locked_folder

log = logging.getLogger(__name__)

# Raise it when the rendering changes, so that data prepared before are rendered again.
FORMAT = 10


@gin.configurable
def prepare(
    dataset_dir: str | Path = gin.REQUIRED,
    out: str | Path = gin.REQUIRED,
    split: str = "per_user_temporal",
    options: PrepareOptions | None = None,
    statistics_options: StatisticsOptions | None = None,
    engine: Literal["process", "ray"] = "process",
    progress: bool = True,
) -> Prepared:
    """Renders a split of a data set.

    Large ones are rendered by several processes, each of which imports the script that calls this:
    let it call under `if __name__ == "__main__":`.

    Args:
      dataset_dir: the data set folder.
      out: the TFDS data_dir to write to, also in a bucket; may hold other data sets and splits.
      split: name of a split, with options where wanted: see `splits.Split.parse`.
      options, statistics_options: None for gin's or the defaults.
      engine: 'process' for the processors of this machine; 'ray' for workers of Ray
        (`io.workers.RayWorkers`), all of which must see both folders. The files are the same.
      progress: whether to show a bar.

    Raises:
      DataError: something is wrong with the folder, there is no such split or view, a part is
        empty, all events have the same label, or a record lacks what its template needs.
      ConfigError: the template has an entry or names a field that does not exist, an option has an
        impossible value, or Ray is missing or has no room.
      M6RecError: processes died that worked on it.
    """
    options = options or PrepareOptions()
    for view in options.views:
        views.check_view(view, tuple(EVENT_VIEWS))
    dataset = Dataset.open(dataset_dir)
    dataset = with_spec(dataset, template={**dataset.spec.template, **options.template})
    parsed = Split.parse(split, dataset.spec.splits)
    template, statistics = template_and_options(dataset, statistics_options)
    for view in options.views:
        EVENT_VIEWS[view].check(template, str(dataset.directory / SPEC_FILE))
    check_texts(dataset, template)
    with local_data_dir(out, dataset.spec.name, parsed.name) as data_dir:
        folder = folder_of(data_dir, dataset.spec.name, parsed.name)
        with locked_folder(folder, f"preparing {folder}"):
            _prepare(dataset, parsed, options, statistics, data_dir, engine, progress)
    return Prepared.open(out, dataset.spec.name, parsed.name)


def _prepare(
    dataset: Dataset,
    split: Split,
    options: PrepareOptions,
    statistics: StatisticsOptions,
    data_dir: Path,
    engine: str,
    progress: bool,
) -> None:
    """Makes those views that are not there in one pass, and what all views share."""
    # Before events are read: what is appended meanwhile is then seen to have come later.
    files, settings = files_of(dataset), settings_of(dataset, split)
    source = fingerprint(settings, files)
    folder = folder_of(data_dir, dataset.spec.name, split.name)
    manifest = earlier_manifest(folder, dataset.spec.name)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(folder / "unfinished"))

        @functools.cache
        def read(dataset: Dataset = dataset) -> tuple[EventTable, Assignment]:
            events = stack.enter_context(EventTable(dataset, scratch / "table"))
            return events, events.assign(split)

        # What an earlier run left is of use only if it came from the same data.
        if manifest.source != source or manifest.updates:
            # Read before anything goes: what was prepared stays where the new tables are broken.
            counted = _counted(*read())
            if manifest.updates:
                log.info("%s is prepared anew, and the parts of its updates go", folder)
            for name in (MANIFEST, co_occurrence.FILE, ease.FILE):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / EVENTS, ignore_errors=True)
            manifest = msgspec.structs.replace(
                counted, settings=settings, source=source, files=files
            )
        assert manifest.dataset_spec is not None
        dataset = with_spec(dataset, repeats=manifest.dataset_spec["repeats"])
        options = options.with_history_length(manifest.counts)
        names = {code: name for name, code in PART_NAMES.items()}
        manifest = msgspec.structs.replace(
            manifest,
            version=__version__,
            split=split.name,
            dataset_spec=dataset.spec.to_dict(),
            options=dataclasses.asdict(options) | {"views": list(options.views)},
            statistics_options=dataclasses.asdict(statistics),
            visible={
                names[part]: [names[code] for code in parts]
                for part, parts in split.visible_parts.items()
            },
        )
        targets = {}
        for name in options.views:
            made_of = EVENT_VIEWS[name].fingerprint(source, dataset.spec, options, statistics)
            target = views.tfds_folder(data_dir, dataset.spec.name, split.name, name)
            if manifest.view(name).fingerprint == made_of and (target / views.INFO).is_file():
                log.info("%s is prepared already", target.parent.name)
                continue
            targets[name] = target, made_of
            # Before its rows are replaced: killed in between, it counts as not prepared.
            manifest.views.pop(name, None)
        counted_pairs = not views.COUNTED.isdisjoint({*manifest.views, *targets})
        of_pairs = {co_occurrence.FILE, ease.FILE} if counted_pairs else set()
        wanted = {STATISTICS, EVENTS, CATALOGUE} | of_pairs
        missing = {name for name in wanted if not (folder / name).exists()}
        if targets or missing:
            if (folder / MANIFEST).exists():
                manifest.write(folder)
            events, assignment = read()
            held_out, shared = assignment.held_out, scratch / "shared"
            job = Job(scratch, dataset, split.visible_parts, options, statistics, held_out)
            how = shared, bool(of_pairs & missing), engine, progress
            rendered, rates = run(job, events, manifest.shards, list(targets), *how)
            for name, (target, made_of) in targets.items():
                rows = tfrecords.write_view(target, name, rendered[name])
                negatives = rates if name == "groups" else {}
                manifest.views[name] = ViewEntry(made_of, rows, options.max_events, negatives)
            if EVENTS in missing:
                (shared / EVENTS).mkdir()
                events.save(shared / EVENTS / PREPARED_EVENTS)
            put_in_place({shared: folder})
        manifest.write(folder)


def _counted(events: EventTable, assignment: Assignment) -> Manifest:
    """What the manifest says of the events; raises DataError where all have the same label."""
    dataset = events.dataset
    spec, num_users = dataset.spec, dataset.users.num_rows
    if spec.label.at_least is not None:
        positive = events.number(
            f"SELECT avg(CAST(value >= {spec.label.at_least} AS INTEGER)) FROM events"
        )
        if positive in (0.0, 1.0):
            where = dataset.directory / SPEC_FILE
            raise DataError(f"{where}: {spec.label.only(int(positive))}")
    distinct = "SELECT count(*) FROM (SELECT DISTINCT user, item FROM events)"
    share = 1 - events.number(distinct) / events.num_rows
    protocol = spec.repeats or protocol_for(share)
    if spec.repeats is None and share:
        log.info(
            '%.1f%% of the events repeat an item of their user; %s sets "repeats": "%s"',
            *(100 * share, SPEC_FILE, protocol),
        )
    return Manifest(
        dataset=spec.name,
        dataset_spec={"repeats": protocol},
        counts={
            "users": num_users,
            "acting_users": events.number("SELECT count(DISTINCT user) FROM events"),
            "items": dataset.items.num_rows,
            "events": part_counts(assignment.codes),
            "held_out_items": int(assignment.held_out.sum()),
        },
        shards=num_shards(events.num_rows, num_users),
        last_time=events.number("SELECT max(time) FROM events"),
    )


def settings_of(dataset: Dataset, split: Split) -> str:
    """The fingerprint of what rows of all views depend on beside the files of the tables."""
    return fingerprint(
        *(FORMAT, ease.FORMAT, co_occurrence.FORMAT, statistics_files.FORMAT, __version__),
        json.dumps(dataset.spec.of_rows()),  # columns in their order, as documents name them
        dataclasses.asdict(split),
        sorted(split.visible_parts.items()),
    )


def files_of(dataset: Dataset) -> dict[str, list[tuple[str, str]]]:
    """Of each table the files in their order: name, and SHA-256 of what is in it."""
    tables = (dataset.user_files, dataset.item_files, dataset.event_files)
    return {
        table: [(os.path.relpath(file, dataset.directory), file_sha256(file)) for file in files]
        for table, files in zip(("users", "items", "events"), tables, strict=True)
    }

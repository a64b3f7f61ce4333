"""`m6rec data update`: new events of a prepared data set become a new part of its views.

The past is not rendered again, nor are its pairs of items counted or its factors fitted again. The
rows of the new part, `update_1` and so on, are training rows: they see what training rows of the
past see, and the updates before them. So they are, to the letter, the rows that one preparation of
all events would make of the new ones, if all of them were training events. One thing differs:
sampled negatives look at popularity as an update begins, not when 2% more events have come.

Everything that an update changes is written aside and then takes its place at once
(`io.atomic.staged_files`).
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shutil
from pathlib import Path

import gin
import msgspec
import numpy as np

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.schema import SPEC_FILE, DatasetSpec
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.prepare import FORMAT, files_of
from m6rec_jax.data.prepare_options import PrepareOptions, template_and_options, with_spec
from m6rec_jax.data.rendering.event_views import EVENT_VIEWS
from m6rec_jax.data.rendering.template_needs import check_texts
from m6rec_jax.data.shard_job import Job, Past
from m6rec_jax.data.shard_run import run
from m6rec_jax.data.splitting import splits
from m6rec_jax.data.splitting.event_table import EventTable
from m6rec_jax.data.splitting.splits import CONTEXT, EXCLUDED, TRAIN, Split
from m6rec_jax.data.store import tfrecords, views
from m6rec_jax.data.store.manifest import UpdateEntry, fingerprint
from m6rec_jax.data.store.prepared import EVENTS, UPDATE, Prepared, folder_of
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import finish_staged, scratch_folder, staged_files
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.locks import locked_folder

log = logging.getLogger(__name__)


@gin.configurable
def update(
    dataset_dir: str | Path = gin.REQUIRED,
    out: str | Path = gin.REQUIRED,
    split: str = "per_user_temporal",
    progress: bool = True,
) -> Prepared:
    """Adds the events of files that came into a data set folder since it was prepared.

    New users and items come in files of their own, too, and are added with the next new events:
    where no file of events is new, nothing is done.

    Args:
      dataset_dir: the data set folder.
      out: the TFDS data_dir that `prepare` wrote to.
      split: as `prepare` had it.
      progress: whether to show a bar.

    Raises:
      ConfigError: `out` is in a bucket.
      DataError: the split is not prepared; what was prepared, or `dataset.json`, has changed; an
        event is not later than those that are prepared, or is there twice, or is not for training;
        something is wrong with the new files, as for `prepare`.
    """
    if in_bucket(out):
        raise ConfigError(f"{out} is in a bucket: updates need prepared data on a local disk")
    dataset, out = Dataset.open(dataset_dir), Path(out)
    parsed = Split.parse(split, dataset.spec.splits)
    names = dataset.spec.name, parsed.name
    folder = folder_of(out, *names)
    if not folder.is_dir():
        return Prepared.open(out, *names)  # raises
    with locked_folder(folder, f"updating {folder}"):
        finish_staged(folder / UPDATE, out)
        prepared = Prepared.open(out, *names)
        old = prepared.manifest
        dataset = with_spec(
            dataset,
            template={**dataset.spec.template, **old.options["template"]},
            # What the first events decided stays.
            repeats=dataset.spec.repeats or prepared.dataset_spec["repeats"],
        )
        # Before anything is read: what is appended meanwhile has come later.
        files = files_of(dataset)
        before = DatasetSpec.from_dict(old.dataset_spec, str(folder))
        same_split = Split.parse(split, before.splits) == parsed
        _check_past(
            dataset, files, prepared, same_split and dataset.spec.of_rows() == before.of_rows()
        )
        new = {
            table: [name for name, _ in files[table][len(old.files[table]) :]] for table in files
        }
        if not new["events"]:
            log.info("%s: all files of events are prepared", dataset.directory)
            if some := [*new["users"], *new["items"]]:
                log.warning("%s: added with the next new events", ", ".join(some))
            return prepared
        new_events = dataclasses.replace(
            dataset,
            event_files=dataset.event_files[len(old.files["events"]) :],
            after=old.last_time,
        )
        with (
            scratch_folder(folder / "unfinished") as scratch,
            staged_files(folder / UPDATE, out) as staged,
        ):
            entry = UpdateEntry(
                name=f"update_{len(old.updates) + 1}",
                files=new["events"],
                fingerprint=fingerprint(files, new["events"]),
                events=0,
            )
            _add_part(new_events, entry, prepared, parsed, scratch, staged, progress, files)
        return Prepared.open(out, *names)


def _check_past(
    dataset: Dataset, files: dict[str, list[tuple[str, str]]], prepared: Prepared, same_spec: bool
) -> None:
    """Raises DataError where something else has changed than that there are more files."""
    directory, anew = dataset.directory, "or make everything anew with `m6rec data prepare`"
    if prepared.manifest.format != FORMAT:
        raise DataError(
            f"{prepared.folder} was prepared by an earlier version: make everything anew with "
            "`m6rec data prepare`"
        )
    if not same_spec:
        raise DataError(
            f"{directory / SPEC_FILE} has changed since {prepared.folder} was prepared, and an "
            "update can only go on as before: change back what it says of columns, labels, "
            f"repeats, statistics, templates and this split, {anew}"
        )
    for table, before in prepared.manifest.files.items():
        for then, now in itertools.zip_longest(before, files[table][: len(before)]):
            if then != now:
                raise DataError(
                    f"{directory / then[0]} was prepared and has changed, is missing or has "
                    f"another place in the order of files: new {table} go into files of their own, "
                    f"named so that they come last, such as {table}_2.parquet with "
                    f'"{table}": {{"file": "{table}*.parquet"}} in {SPEC_FILE}; {anew}'
                )


def _add_part(
    dataset: Dataset,
    entry: UpdateEntry,
    prepared: Prepared,
    split: Split,
    scratch: Path,
    staged: Path,
    progress: bool,
    files: dict[str, list[tuple[str, str]]],
) -> None:
    """Writes all files that are new or change.

    Args:
      dataset: with the files of new events alone.
      entry: of the part in the manifest, but for the number of events.
      prepared: the past.
      split: of it.
      scratch: a folder for temporary files.
      staged: of `staged_files`.
      progress: whether to show bars.
      files: of all tables.
    """
    old = prepared.manifest
    options = PrepareOptions(**old.options)
    statistics = StatisticsOptions(**old.statistics_options)
    template, _ = template_and_options(dataset, None)
    check_texts(dataset, template)
    held_out = np.zeros(dataset.items.num_rows, bool)
    if split.kind == "held_out_items":
        ids = [item.id for item in dataset.item_records]
        held_out = splits.is_held_out(ids, **split.arguments())
    new_events = scratch / f"{entry.name}.parquet"
    with EventTable(dataset, scratch / "table") as events:
        others = events.lookup("user", _of_other_parts(dataset, split))
        excluded = f"{others} OR {events.lookup('item', held_out)}"
        events.give_parts(f"CASE WHEN {excluded} THEN {EXCLUDED} ELSE {TRAIN} END")
        events.save(new_events)
        last_time = events.number("SELECT max(time) FROM events")
        entry.events = events.number(f"SELECT count(*) FROM events WHERE part = {TRAIN}")
    folder = staged / prepared.folder.name
    (folder / EVENTS).mkdir(parents=True)
    saved = [*(prepared.folder / EVENTS).glob("*.parquet"), new_events]
    with EventTable(dataset, scratch / "all_events", saved) as events:
        num_items, num_events = old.counts["items"], events.num_rows - entry.events
        events.give_parts(f"CASE WHEN row < {num_events} THEN {CONTEXT} ELSE {TRAIN} END")
        past = Past(entry.name, num_items, num_events, prepared.folder)
        job = Job(scratch, dataset, splits.VISIBLE_PARTS, options, statistics, past)
        current = {
            name: EVENT_VIEWS[name].fingerprint(old.source, dataset.spec, options, statistics)
            for name in old.views
        }
        names = [name for name, view in old.views.items() if view.fingerprint == current[name]]
        for name in old.views.keys() - names:
            log.warning(
                "the view '%s' gets no new part: it was prepared with other settings than the last "
                "ones (prepare the views together)",
                name,
            )
        counted = not views.COUNTED.isdisjoint(old.views)
        rendered, _ = run(
            job, events, held_out, old.shards, names, counted, folder, progress=progress
        )
    rows = {}
    for name, of_view in rendered.items():
        if of_view:
            target = prepared.tfds_folder(name)
            to = staged / target.relative_to(prepared.data_dir)
            rows[name] = tfrecords.add_part(target, of_view, to)
            old.views[name].rows |= rows[name]
    shutil.move(new_events, folder / EVENTS)
    log.info("%s: %d events, rows %s", entry.name, entry.events, rows)
    counts = {
        "users": dataset.users.num_rows,
        "items": dataset.items.num_rows,
        "held_out_items": int(held_out.sum()),
        "events": old.counts["events"] | {entry.name: entry.events},
    }
    msgspec.structs.replace(
        old,
        counts=old.counts | counts,
        last_time=last_time,
        files=files,
        updates=[*old.updates, entry],
    ).write(folder)


def _of_other_parts(dataset: Dataset, split: Split) -> np.ndarray:
    """Users that the split keeps from training `[users]` bool.

    Raises:
      DataError: a new event is of another part than training, by the split's column.
    """
    users = dataset.users.column(dataset.spec.users.id).to_pylist()
    base = split.base or split
    if base.kind == "by_user":
        return splits.by_name(users, **base.arguments()) != TRAIN
    if base.kind == "by_column" and (dataset.event_parts() != TRAIN).any():
        raise DataError(
            f"{dataset.event_files[0].parent}: the column {dataset.spec.events.part!r} of the new "
            "events names other parts than 'train', and an update is for training; `m6rec data "
            "prepare` makes all parts anew"
        )
    return np.zeros(len(users), bool)

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
from typing import Any

import gin
import numpy as np

from m6rec_jax.data import splits, tfrecords
from m6rec_jax.data.bucket_job import Job, Past
from m6rec_jax.data.bucket_run import BucketRun
from m6rec_jax.data.event_table import EventTable
from m6rec_jax.data.event_views import EVENT_VIEWS
from m6rec_jax.data.prepare import FORMAT, files_of, save_shared
from m6rec_jax.data.prepare_options import (
    PrepareOptions,
    template_and_options,
    with_repeats,
    with_template,
)
from m6rec_jax.data.prepared import (
    EVENTS,
    UPDATE,
    Prepared,
    fingerprint,
    folder_of,
    write_manifest,
)
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.schema import SPEC_FILE, DatasetSpec
from m6rec_jax.data.splits import CONTEXT, EXCLUDED, TRAIN, Split
from m6rec_jax.data.statistics_settings import StatisticsOptions
from m6rec_jax.data.template_needs import texts_of_items
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import finish_staged, scratch_folder, staged_files
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.locks import locked_folder

log = logging.getLogger(__name__)

Files = dict[str, list[list[str]]]


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
    name = dataset.spec.name
    folder = folder_of(out, name, parsed.name)
    if not folder.is_dir():
        return Prepared.open(out, name, parsed.name)  # raises
    with locked_folder(folder, f"updating {folder}"):
        finish_staged(folder / UPDATE, out)
        prepared = Prepared.open(out, name, parsed.name)
        # What the first events decided stays.
        decided = prepared.manifest["dataset_spec"].get("repeats")
        dataset = with_repeats(dataset, dataset.spec.repeats or decided)
        files = files_of(dataset)
        _check_past(dataset, files, prepared, Split.parse(split, _spec(prepared).splits) == parsed)
        past = {table: len(names) for table, names in prepared.manifest["files"].items()}
        if not dataset.event_files[past["events"] :]:
            log.info("%s: all files of events are prepared", dataset.directory)
            new = [file for table in past for file, _ in files[table][past[table] :]]
            if new:
                log.warning("%s: added with the next new events", ", ".join(new))
            return prepared
        new_events = dataclasses.replace(
            with_template(dataset, prepared.manifest["options"]["template"]),
            event_files=dataset.event_files[past["events"] :],
            after=prepared.manifest["last_time"],
        )
        with (
            scratch_folder(folder / "unfinished") as scratch,
            staged_files(folder / UPDATE, out) as staged,
        ):
            _add_part(new_events, files, prepared, parsed, scratch, staged, progress)
        return Prepared.open(out, name, parsed.name)


def _spec(prepared: Prepared) -> DatasetSpec:
    return DatasetSpec.from_dict(prepared.manifest["dataset_spec"], str(prepared.folder))


def _check_past(dataset: Dataset, files: Files, prepared: Prepared, same_split: bool) -> None:
    """Raises DataError where something else has changed than that there are more files."""
    manifest, directory = prepared.manifest, dataset.directory
    if manifest["format"] != FORMAT:
        raise DataError(
            f"{prepared.folder} was prepared by an earlier version: make everything anew with "
            "`m6rec data prepare`"
        )
    anew = "or make everything anew with `m6rec data prepare`"
    spec = with_template(dataset, manifest["options"]["template"]).spec
    if spec.of_rows() != _spec(prepared).of_rows() or not same_split:
        raise DataError(
            f"{directory / SPEC_FILE} has changed since {prepared.folder} was prepared, and an "
            "update can only go on as before: change back what it says of columns, labels, "
            f"repeats, statistics, templates and this split, {anew}"
        )
    for table, before in manifest["files"].items():
        now = files[table]
        for (name, digest), there in itertools.zip_longest(before, now[: len(before)]):
            if there == [name, digest]:
                continue
            if there is not None and there[0] == name:
                problem = "has changed since"
            else:
                problem = "is missing" if name not in dict(now) else f"comes after {there[0]}"
            raise DataError(
                f"{directory / name} is prepared and {problem}: new {table} go into files of their "
                f"own, named so that they come last, such as {table}_2.parquet with "
                f'"{table}": {{"file": "{table}*.parquet"}} in {SPEC_FILE}; {anew}'
            )


def _add_part(
    dataset: Dataset,
    files: Files,
    prepared: Prepared,
    split: Split,
    scratch: Path,
    staged: Path,
    progress: bool,
) -> None:
    """Writes all files that are new or change.

    Args:
      dataset: with the files of new events alone.
      files: of `files_of`, before anything was read: what is appended meanwhile has come later.
      prepared: the past.
      split: of it.
      scratch: a folder for temporary files.
      staged: of `staged_files`.

    Raises:
      DataError: something is wrong with the new events, or a record lacks what its template needs.
    """
    old, part = prepared.manifest, f"update_{len(prepared.updates) + 1}"
    options = PrepareOptions(**old["options"])
    statistics = StatisticsOptions(**old["statistics_options"])
    template, _ = template_and_options(dataset, None)
    texts, catalogue = texts_of_items(dataset, template), prepared.catalogue()
    held_out = np.zeros(dataset.items.num_rows, bool)
    if split.kind == "held_out_items":
        ids = [item.id for item in dataset.item_records]
        held_out = splits.is_held_out(ids, **split.arguments())
    new_events = scratch / f"{part}.parquet"
    with EventTable(dataset, scratch / "table") as events:
        others = events.lookup("user", _of_other_parts(dataset, split))
        excluded = f"{others} OR {events.lookup('item', held_out)}"
        events.give_parts(f"CASE WHEN {excluded} THEN {EXCLUDED} ELSE {TRAIN} END")
        events.save(new_events)
        counts = events.item_counts()
        times = events.query("SELECT min(time), max(time) FROM events")[0]
    number = int(counts.sum())
    folder = staged / prepared.folder.name
    (folder / EVENTS).mkdir(parents=True)
    rows = {}
    saved = [*(prepared.folder / EVENTS).glob("*.parquet"), new_events]
    with EventTable(dataset, scratch / "all_events", saved) as events:
        past = Past(part, len(catalogue.texts), events.num_rows - number, prepared.folder)
        events.give_parts(f"CASE WHEN row < {past.num_events} THEN {CONTEXT} ELSE {TRAIN} END")
        visible, buckets = splits.VISIBLE_PARTS, old["buckets"]
        job = Job(scratch / "buckets", dataset, visible, options, statistics, past)
        with BucketRun(job, events, held_out, buckets, "process", progress) as run:
            wanted = [view for view in old["views"] if _is_updated(view, old, job)]
            _, shards = run.render(tuple(wanted))
            for view, parts in shards.items():
                if parts:
                    target = prepared.tfds_folder(view)
                    new = staged / target.relative_to(prepared.data_dir)
                    rows[view] = tfrecords.add_part(target, part, parts[part], new)
            counts[: past.num_items] += catalogue.train_counts
            save_shared(run, folder, old["views"], dataset, texts, held_out, counts)
    shutil.move(new_events, folder / EVENTS)
    names = [path.name for path in dataset.event_files]
    sizes = {
        "users": dataset.users.num_rows,
        "items": dataset.items.num_rows,
        "held_out_items": int(held_out.sum()),
    }
    entry = {
        "name": part,
        "files": names,
        # Rows depend on all files so far: on users, items and the updates before this one.
        "fingerprint": fingerprint(files, names),
        "events": number,
        "first_time": times[0],
        "last_time": times[1],
        "new": {name: size - old["counts"][name] for name, size in sizes.items()},
        "rows": rows,
    }
    log.info("%s: %d events, rows %s, new %s", part, number, rows, entry["new"])
    write_manifest(folder, _with_part(old, entry, sizes) | {"files": files})


def _with_part(old: dict[str, Any], entry: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """A manifest with the entry of a new part; `sizes` are the new ones of the tables."""
    part, number = entry["name"], entry["events"]
    changed = {
        view: old["views"][view] | {"rows": old["views"][view]["rows"] | {part: count}}
        for view, count in entry["rows"].items()
    }
    events = old["counts"]["events"] | {part: number}
    return old | {
        "counts": old["counts"] | sizes | {"events": events},
        "last_time": entry["last_time"],
        "statistics": old["statistics"] | {"events": old["statistics"]["events"] + number},
        "updates": [*old.get("updates", []), entry],
        "views": old["views"] | changed,
    }


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


def _is_updated(view: str, old: dict[str, Any], job: Job) -> bool:
    """Whether a prepared view was made with the last settings."""
    settings = EVENT_VIEWS[view].settings(job.dataset, job.options, job.statistics)
    if old["views"][view]["fingerprint"] == fingerprint(old["source"], *settings):
        return True
    log.warning(
        "the view '%s' gets no new part: it was prepared with other settings than the last ones "
        "(prepare the views together)",
        view,
    )
    return False

"""`m6rec data update`: new events of a prepared data set become a new part of its views.

The past is not rendered again, nor are its pairs of items counted or its factors fitted again. The
rows of the new part, `update_1` and so on, are training rows: they see what training rows of the
past see, and the updates before them. So they are, to the letter, the rows that one preparation of
all events would make of the new ones, if all of them were training events. One thing differs:
sampled negatives look at popularity as an update begins, not when 2% more events have come.

All files are made aside. The manifest goes while they take their places, so that an update that is
killed then leaves nothing that counts as prepared.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import gin
import msgspec
import numpy as np

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.schema import SPEC_FILE
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.prepare import files_of, settings_of
from m6rec_jax.data.prepare_options import PrepareOptions, template_and_options, with_spec
from m6rec_jax.data.rendering.event_views import EVENT_VIEWS
from m6rec_jax.data.rendering.template_needs import check_texts
from m6rec_jax.data.shard_job import Job, Past
from m6rec_jax.data.shard_run import run
from m6rec_jax.data.splitting import splits
from m6rec_jax.data.splitting.event_table import EventTable
from m6rec_jax.data.splitting.splits import CONTEXT, EXCLUDED, TRAIN, Split
from m6rec_jax.data.store import tfrecords, views
from m6rec_jax.data.store.manifest import MANIFEST, UpdateEntry, fingerprint
from m6rec_jax.data.store.prepared import EVENTS, Prepared
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import put_in_place, scratch_folder, to_disk
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.locks import locked_folder

log = logging.getLogger(__name__)
Files = dict[str, list[tuple[str, str]]]  # as of `Manifest.files`


@gin.configurable
def update(
    dataset_dir: str | Path = gin.REQUIRED,
    out: str | Path = gin.REQUIRED,
    split: str = "per_user_temporal",
    progress: bool = True,
) -> Prepared:
    """Adds the events of files that came into a data set folder since it was prepared.

    New users and items come in files of their own, too, and are added with the next new events:
    where no file of events is new, nothing is done. New events that the split keeps from training
    are left out.

    Args:
      dataset_dir: the data set folder.
      out: the TFDS data_dir that `prepare` wrote to.
      split: as `prepare` had it.
      progress: whether to show a bar.

    Raises:
      ConfigError: `out` is in a bucket.
      DataError: the split is not prepared; what was prepared, or `dataset.json`, has changed; an
        event is not later than those that are prepared, or is there twice; something is wrong with
        the new files, as for `prepare`.
    """
    if in_bucket(out):
        raise ConfigError(f"{out} is in a bucket: updates need prepared data on a local disk")
    dataset = Dataset.open(dataset_dir)
    parsed = Split.parse(split, dataset.spec.splits)
    names = dataset.spec.name, parsed.name
    folder = Prepared.open(out, *names).folder
    with locked_folder(folder, f"updating {folder}"):
        prepared = Prepared.open(out, *names)
        before = prepared.manifest
        template = {**dataset.spec.template, **before.options["template"]}
        dataset = with_spec(dataset, template=template)
        # Before anything is read: what is appended meanwhile has come later.
        files = files_of(dataset)
        _check_past(dataset, files, prepared, settings_of(dataset, parsed))
        new = {table: [n for n, _ in files[table][len(before.files[table]) :]] for table in files}
        if not new["events"]:
            log.info("%s: all files of events are prepared", dataset.directory)
            if some := [*new["users"], *new["items"]]:
                log.warning("%s: added with the next new events", ", ".join(some))
            return prepared
        with scratch_folder(folder / "unfinished") as scratch:
            _add_split(dataset, files, prepared, parsed, scratch, progress)
        return Prepared.open(out, *names)


def _check_past(dataset: Dataset, files: Files, prepared: Prepared, settings: str) -> None:
    """Raises DataError where something else has changed than that there are more files."""
    anew = "or make everything anew with `m6rec data prepare`"
    if prepared.manifest.settings != settings:
        raise DataError(
            f"{dataset.directory / SPEC_FILE} has changed since {prepared.folder} was prepared, or "
            "m6rec has: change back what it says of columns, labels, repeats, statistics, "
            f"templates and this split, {anew}"
        )
    for table, before in prepared.manifest.files.items():
        for place, then in enumerate(before):
            if files[table][place : place + 1] != [then]:
                raise DataError(
                    f"{dataset.directory / then[0]} was prepared and has changed, is missing or "
                    f"has another place in the order of files: new {table} go into files of their "
                    f"own, named so that they come last, such as {table}_2.parquet with "
                    f'"{table}": {{"file": "{table}*.parquet"}} in {SPEC_FILE}; {anew}'
                )


def _add_split(
    dataset: Dataset, files: Files, prepared: Prepared, split: Split, scratch: Path, progress: bool
) -> None:
    """Makes all files that are new or change in `scratch`, and puts them in their places."""
    old, folder = prepared.manifest, prepared.folder
    name = f"update_{len(old.updates) + 1}"
    options = PrepareOptions(**old.options)
    statistics = StatisticsOptions(**old.statistics_options)
    # What the first events decided stays.
    dataset = with_spec(dataset, repeats=prepared.dataset_spec["repeats"])
    template, _ = template_and_options(dataset, None)
    check_texts(dataset, template)
    held_out = np.zeros(dataset.items.num_rows, bool)
    if split.kind == "held_out_items":
        ids = [item.id for item in dataset.item_records]
        held_out = splits.is_held_out(ids, **split.arguments())
    new_files = dataset.event_files[len(old.files["events"]) :]
    new = dataclasses.replace(dataset, event_files=new_files, after=old.last_time)
    saved = scratch / EVENTS / f"{name}.parquet"
    saved.parent.mkdir()
    with EventTable(new, scratch / "table") as events:
        base, part = split.base or split, str(TRAIN)
        if base.kind == "by_user":
            users = [user.id for user in dataset.user_records]
            part = events.lookup("user", splits.by_name(users, **base.arguments()))
        elif base.kind == "by_column":
            part = events.lookup("row", new.event_parts())
        excluded = f"{part} <> {TRAIN} OR {events.lookup('item', held_out)}"
        events.give_parts(f"CASE WHEN {excluded} THEN {EXCLUDED} ELSE {TRAIN} END")
        events.save(saved)
        last_time = events.number("SELECT max(time) FROM events")
        num_new = events.number(f"SELECT count(*) FROM events WHERE part = {TRAIN}")
        if left_out := events.num_rows - num_new:
            log.info("%d new events are not for training, and are left out", left_out)
    every = [*(folder / EVENTS).glob("*.parquet"), saved]
    with EventTable(dataset, scratch / "every", every) as events:
        num_old = events.num_rows - num_new
        events.give_parts(f"CASE WHEN row < {num_old} THEN {CONTEXT} ELSE {TRAIN} END")
        past = Past(name, old.counts["items"], num_old, folder)
        job = Job(scratch, dataset, splits.VISIBLE_PARTS, options, statistics, held_out, past)
        how = old.source, dataset.spec, options, statistics
        made_of = {view: EVENT_VIEWS[view].fingerprint(*how) for view in old.views}
        names = [view for view, entry in old.views.items() if entry.fingerprint == made_of[view]]
        if others := sorted(made_of.keys() - names):
            log.warning("%s: no new part, as other settings made them", ", ".join(others))
        counted, shared = not views.COUNTED.isdisjoint(old.views), scratch / "shared"
        rendered, _ = run(job, events, old.shards, names, shared, counted, progress=progress)
    places = {shared: folder, saved.parent: folder / EVENTS}
    for view, files_of_view in rendered.items():
        target, made = prepared.tfds_folder(view), scratch / f"{view}-new"
        made.mkdir()
        info = json.loads((target / views.INFO).read_bytes())
        old.views[view].rows |= tfrecords.add_splits(info, files_of_view, made)
        places[made] = target
    to_disk(*(path for made in places for path in made.rglob("*")))
    (folder / MANIFEST).unlink()
    to_disk(folder)
    put_in_place(places)
    counts = {
        "users": dataset.users.num_rows,
        "items": dataset.items.num_rows,
        "held_out_items": int(held_out.sum()),
        "events": old.counts["events"] | {name: num_new},
    }
    msgspec.structs.replace(
        old,
        counts=old.counts | counts,
        last_time=last_time,
        files=files,
        updates=[*old.updates, UpdateEntry(name, fingerprint(files))],
    ).write(folder)
    log.info("%s: %d events", name, num_new)

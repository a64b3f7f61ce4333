"""`m6rec data prepare`: a data set folder becomes a TFDS data set of rendered text.

Events are read once, into a table on disk, and split. Then all views that are wanted are made
together, bucket by bucket of users (`bucket_run`).

Views are on disk with the fingerprint of everything they depend on, so a view that is there is not
made again, and a run with other options makes only what they change. The same input gives the same
bytes of records.

Who may see what is defined in `data.splits`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import gin
import numpy as np

from m6rec_jax import __version__
from m6rec_jax.data import co_occurrence, ease, tfrecords, views
from m6rec_jax.data.bucket_data_dir import local_data_dir
from m6rec_jax.data.bucket_job import Job
from m6rec_jax.data.bucket_run import BucketRun, num_buckets
from m6rec_jax.data.event_table import Assignment, EventTable
from m6rec_jax.data.event_views import EVENT_VIEWS
from m6rec_jax.data.negatives import num_negatives
from m6rec_jax.data.prepare_options import (
    PrepareOptions,
    template_and_options,
    with_history_length,
    with_repeats,
    with_template,
)
from m6rec_jax.data.prepared import (
    CATALOGUE,
    EVENTS,
    MANIFEST,
    PREPARED_EVENTS,
    STATISTICS,
    UPDATE,
    Prepared,
    fingerprint,
    folder_of,
    old_manifest,
    write_catalogue,
    write_manifest,
)
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.schema import COUNT, SPEC_FILE, protocol_for
from m6rec_jax.data.splits import CONTEXT, PARTS, STATISTICS_PARTS, Split, part_counts
from m6rec_jax.data.statistics_settings import StatisticsOptions
from m6rec_jax.data.template_needs import texts_of_items
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import finish_staged, replaced_folder, scratch_folder
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.locks import locked_folder

log = logging.getLogger(__name__)

# What the manifest says of the events.
_COUNTED = ("counts", "repeats", "buckets", "last_time", "files", "statistics")
# Raise it when the rendering changes, so that data prepared before are rendered again.
FORMAT = 9


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
      options: what is rendered; None for gin's `PrepareOptions` or the defaults.
      statistics_options: None for gin's `StatisticsOptions` or the defaults.
      engine: 'process' for the processors of this machine; 'ray' for workers of Ray, on this
        machine or the cluster that `RAY_ADDRESS` names (`WorkerOptions`), all of which must see
        both folders. The files are the same.
      progress: whether to show a bar.

    Raises:
      DataError: something is wrong with the folder, there is no such split or view, a part is
        empty, all events have the same label, a record lacks what its template needs, or the
        template says nothing of an item.
      ConfigError: the template has an entry or names a field that does not exist (the message
        names those that do), an option has an impossible value, or Ray is missing or has no room.
      M6RecError: processes died that worked on it.
    """
    options = options or PrepareOptions()
    for view in options.views:
        views.check_view(view, tuple(EVENT_VIEWS))
    dataset = with_template(Dataset.open(dataset_dir), options.template)
    parsed = Split.parse(split, dataset.spec.splits)
    names = dataset.spec.name, parsed.name
    with local_data_dir(out, *names) as data_dir, contextlib.ExitStack() as stack:
        folder = folder_of(data_dir, *names)
        stack.enter_context(locked_folder(folder, f"preparing {folder}"))
        _Preparation(dataset, parsed, options, statistics_options, data_dir, stack).make(
            engine, progress
        )
    return Prepared.open(out, *names)


class _Preparation:
    """One run of `prepare`: what of it is on disk, and its manifest; `stack` ends it."""

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        options: PrepareOptions,
        statistics: StatisticsOptions | None,
        out: Path,
        stack: contextlib.ExitStack,
    ) -> None:
        self.dataset, self.split, self.out, self.stack = dataset, split, out, stack
        template, self.statistics = template_and_options(dataset, statistics)
        num_negatives(dataset, options)  # raises before anything is written
        for view in options.views:
            EVENT_VIEWS[view].check(template, str(dataset.directory / SPEC_FILE))
        self.texts = texts_of_items(dataset, template)
        self.source = fingerprint(
            FORMAT,
            ease.FORMAT,
            __version__,
            json.dumps(dataset.spec.of_rows()),  # columns in their order, as documents tell them
            dataclasses.asdict(split),
            sorted(split.visible_parts.items()),
            files=(*dataset.user_files, *dataset.item_files, *dataset.event_files),
        )
        self.folder = folder_of(out, dataset.spec.name, split.name)
        finish_staged(self.folder / UPDATE, out)
        old = old_manifest(self.folder, dataset.spec.name)
        # What an earlier run left is of use only if it came from the same data.
        # Where files of an update have gone again, so must what it added.
        same = old.get("source") == self.source and not old.get("updates")
        # Read before anything goes: what was prepared stays where the new tables are broken.
        counted = {name: old[name] for name in _COUNTED} if same else self._counted()
        if not same:
            if old.get("updates"):
                log.info("%s is prepared anew, and the parts of its updates go", self.folder)
            # Views of other data must not be read beside it; `make` writes it anew.
            (self.folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.folder / EVENTS, ignore_errors=True)
            for name in (co_occurrence.FILE, ease.FILE):
                (self.folder / name).unlink(missing_ok=True)
        self.dataset = with_repeats(dataset, counted["repeats"]["protocol"])
        self.options = with_history_length(options, counted["counts"])
        self.manifest: dict[str, Any] = {
            **self._description(),
            **counted,
            "source": self.source,
            "views": dict(old["views"]) if same else {},
        }

    @cached_property
    def scratch(self) -> Path:
        """For temporary files."""
        return self.stack.enter_context(scratch_folder(self.folder / "unfinished"))

    @cached_property
    def events(self) -> EventTable:
        """The events, which are read when they are needed."""
        return self.stack.enter_context(EventTable(self.dataset, self.scratch / "table"))

    @cached_property
    def assignment(self) -> Assignment:
        """The part of every event."""
        return self.events.assign(self.split)

    def make(self, engine: str, progress: bool) -> None:
        """Makes those views that are not there in one pass, then what all views share."""
        made = self.manifest["views"]
        targets, fingerprints = {}, {}
        for view in self.options.views:
            settings = EVENT_VIEWS[view].settings(self.dataset, self.options, self.statistics)
            fingerprints[view] = fingerprint(self.source, *settings)
            target = views.tfds_folder(self.out, self.dataset.spec.name, self.split.name, view)
            done = made.get(view, {}).get("fingerprint") == fingerprints[view]
            if done and (target / views.INFO).is_file():
                log.info("%s is prepared already", target.parent.name)
                continue
            targets[view] = target
            # Before its rows are replaced: killed in between, it counts as not prepared.
            made.pop(view, None)
        shared = (STATISTICS, EVENTS, CATALOGUE)
        if not targets and all((self.folder / name).exists() for name in shared):
            write_manifest(self.folder, self.manifest)
            return
        if (self.folder / MANIFEST).exists():
            write_manifest(self.folder, self.manifest)
        job = Job(
            self.scratch / "buckets",
            self.dataset,
            self.split.visible_parts,
            self.options,
            self.statistics,
        )
        buckets, held_out = self.manifest["buckets"], self.assignment.held_out
        with BucketRun(job, self.events, held_out, buckets, engine, progress) as run:
            entries, shards = run.render(tuple(targets))
            for view, target in targets.items():
                if not shards[view]:
                    raise DataError(
                        f"{self.dataset.spec.name!r} has no row for the view {view!r}: nothing "
                        "that a user liked has what the template asks for"
                    )
                tfrecords.write_view(target, view, shards[view])
                made[view] = {"fingerprint": fingerprints[view], **entries[view]}
            counts = self.events.item_counts()
            events = save_shared(run, self.folder, made, self.dataset, self.texts, held_out, counts)
            self.manifest["statistics"] = {"events": events}
            if not views.COUNTED.isdisjoint(made) and not (self.folder / ease.FILE).is_file():
                run.save_ease(self.folder)
        if not (self.folder / EVENTS).is_dir():
            with replaced_folder(self.folder / EVENTS) as folder:
                self.events.save(folder / PREPARED_EVENTS)
        if "negatives" in entries.get("groups", {}) and self.dataset.spec.repeats_count:
            log.info(
                "%d events repeat all that their user had: with nothing to stand beside, they are "
                "in no row of 'groups'",
                sum(self.manifest["counts"]["events"][part] for part in PARTS)
                - entries["groups"]["negatives"]["positives"],
            )
        write_manifest(self.folder, self.manifest)

    def _counted(self) -> dict[str, Any]:
        """What the manifest says of the events."""
        # Before they are read: what is appended meanwhile is then seen to have come later.
        files = files_of(self.dataset)
        num_users = self.dataset.users.num_rows
        label = self.dataset.spec.label
        if label.at_least is not None:
            positive = self.events.number(
                f"SELECT avg(CAST(value >= {label.at_least} AS INTEGER)) FROM events"
            )
            if positive in (0.0, 1.0):
                where = self.dataset.directory / SPEC_FILE
                raise DataError(f"{where}: {label.only(int(positive))}")
        distinct = "SELECT count(*) FROM (SELECT DISTINCT user, item FROM events)"
        share = 1 - self.events.number(distinct) / self.events.num_rows
        stated = self.dataset.spec.repeats
        protocol = stated or protocol_for(share)
        if stated is None and share:
            log.info(
                "%.1f%% of the events are of an item that the user had before: such repeats %s "
                '(say so in %s: "repeats": "%s")',
                100 * share,
                "count" if protocol == COUNT else "are ignored",
                SPEC_FILE,
                protocol,
            )
        return {
            "counts": {
                "users": num_users,
                "acting_users": len(self.events.acting_users()),
                "items": self.dataset.items.num_rows,
                "events": part_counts(self.assignment.codes),
                "held_out_items": int(self.assignment.held_out.sum()),
            },
            "repeats": {"protocol": protocol, "share": round(share, 6)},
            "buckets": num_buckets(self.events.num_rows, num_users),
            "last_time": self.events.number("SELECT max(time) FROM events"),
            "files": files,
        }

    def _description(self) -> dict[str, Any]:
        """What the manifest says beside counts, views and statistics."""
        names = dict(enumerate(PARTS)) | {CONTEXT: "context"}
        visible = {
            names[part]: [names[code] for code in parts]
            for part, parts in self.split.visible_parts.items()
        }
        return {
            "format": FORMAT,
            "version": __version__,
            "dataset": self.dataset.spec.name,
            "dataset_spec": self.dataset.spec.to_dict(),
            "split": {
                "name": self.split.name,
                "kind": self.split.kind,
                "options": dict(self.split.options),
            },
            "options": dataclasses.asdict(self.options) | {"views": list(self.options.views)},
            "statistics_options": dataclasses.asdict(self.statistics),
            "visible": {
                "history": visible,
                "history_until": "strictly before the time of a group's first row; in "
                "'next_items' before that row in the user's order",
                "statistics": [names[code] for code in STATISTICS_PARTS],
                "user_statistics": visible,
                "statistics_until": "strictly before the time of a group's first row",
            },
        }


def save_shared(
    run: BucketRun,
    folder: Path,
    prepared_views: Collection[str],
    dataset: Dataset,
    texts: Sequence[str],
    held_out: np.ndarray,
    counts: np.ndarray,
) -> int:
    """Writes what the views share; returns how many events the statistics hold.

    Args:
      texts, held_out, counts: of `Catalogue` `[items]`.
    """
    if not views.COUNTED.isdisjoint(prepared_views):
        run.save_co_occurrence(folder)
    attributes = dataset.items.select(list(dataset.spec.items.columns))
    path = folder / CATALOGUE
    write_catalogue(path, dataset.item_records, attributes, texts, held_out, counts)
    return run.save_statistics(folder / STATISTICS)


def files_of(dataset: Dataset) -> dict[str, list[list[str]]]:
    """Of each table the files in their order: name, and SHA-256 of what is in it."""
    tables = (dataset.user_files, dataset.item_files, dataset.event_files)
    return {
        table: [[os.path.relpath(file, dataset.directory), file_sha256(file)] for file in files]
        for table, files in zip(("users", "items", "events"), tables, strict=True)
    }

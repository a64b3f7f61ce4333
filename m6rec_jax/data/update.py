"""`m6rec data update`: new events of a prepared data set become a new part of its views.

The past is not rendered again, nor are its pairs of items counted or its factors fitted again. The
rows of the new part, `update_1` and so on, are training rows: they see what training rows of the
past see, and the updates before them. So they are, to the letter, the rows that one preparation of
all events would make of the new ones, if all of them were training events. One thing differs:
sampled negatives look at popularity as an update begins, not when 2% more events have come.

Everything that an update changes is written aside and then takes its place at once (`io.staged`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np

from m6rec_jax.data import splits, tfrecords, views
from m6rec_jax.data.bucket_job import Job, Past
from m6rec_jax.data.bucket_run import BucketRun
from m6rec_jax.data.event_table import Assignment, EventTable
from m6rec_jax.data.event_views import EVENT_VIEWS
from m6rec_jax.data.prepare import FORMAT, files_of, texts_of_items
from m6rec_jax.data.prepare_options import (
    PrepareOptions,
    template_and_options,
    with_repeats,
    with_template,
)
from m6rec_jax.data.prepared import (
    CATALOGUE,
    EVENTS,
    STATISTICS,
    UPDATE,
    Prepared,
    fingerprint,
    folder_of,
    write_catalogue,
    write_manifest,
)
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.schema import SPEC_FILE, DatasetSpec
from m6rec_jax.data.splits import CONTEXT, EXCLUDED, TRAIN, Split
from m6rec_jax.data.statistics import StatisticsOptions
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.io.staged import finish_staged, staged_files

log = logging.getLogger(__name__)
_EVENTS_FILE = "events.parquet"


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
      DataError: the split is not prepared, or from requests with answers; what was prepared, or
        `dataset.json`, has changed; an event is not later than those that are prepared, or is there
        twice, or is not for training; something is wrong with the new files, as for `prepare`.
    """
    if in_bucket(out):
        raise ConfigError(f"{out} is in a bucket: updates need prepared data on a local disk")
    dataset, out = Dataset.open(dataset_dir), Path(out)
    parsed = Split.parse(split, dataset.spec.splits)
    name = parsed.name
    folder = folder_of(out, dataset.spec.name, name)
    if not folder.is_dir():
        return Prepared.open(out, dataset.spec.name, name)  # raises
    with (
        locked_folder(folder, f"updating {folder}"),
        contextlib.ExitStack() as opened,
    ):
        finish_staged(folder / UPDATE, out)
        prepared = Prepared.open(out, dataset.spec.name, name)
        # What the first events decided stays.
        decided = prepared.manifest["dataset_spec"].get("repeats")
        dataset = with_repeats(dataset, dataset.spec.repeats or decided)
        files = files_of(dataset)
        new = _new_event_files(dataset, files, prepared, split, parsed)
        if not new:
            log.info("%s: all files of events are prepared", dataset.directory)
            waiting = [
                name
                for table, known in prepared.manifest["files"].items()
                for name, _ in files[table][len(known) :]
            ]
            if waiting:
                log.warning("%s: added with the next new events", ", ".join(waiting))
            return prepared
        scratch = folder / "unfinished"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        opened.callback(shutil.rmtree, scratch)
        made = _Update(dataset, files, new, prepared, parsed, scratch, progress)
        with staged_files(folder / UPDATE, out) as staged:
            made.write(staged)
        return Prepared.open(out, dataset.spec.name, name)


def _new_event_files(
    dataset: Dataset,
    found: Mapping[str, list[list[str]]],
    prepared: Prepared,
    text: str,
    split: Split,
) -> tuple[Path, ...]:
    """Files of events that are not prepared; raises DataError where something else has changed."""
    manifest, directory = prepared.manifest, dataset.directory
    if "answers" in manifest:
        raise DataError(
            f"{prepared.folder} was prepared from requests with answers, to which no events can be "
            "added: put the new requests into the file of the others and prepare them anew with "
            "`m6rec data prepare --requests`"
        )
    anew = "or make everything anew with `m6rec data prepare`"
    if manifest["format"] != FORMAT:
        raise DataError(
            f"{prepared.folder} was prepared by an earlier version: {anew.removeprefix('or ')}"
        )
    known = with_template(dataset, manifest["options"]["template"]).spec
    before = DatasetSpec.from_dict(manifest["dataset_spec"], str(prepared.folder))
    same_split = Split.parse(text, before.splits) == split
    if known.of_rows() != before.of_rows() or not same_split:
        raise DataError(
            f"{directory / SPEC_FILE} has changed since {prepared.folder} was prepared, and an "
            "update can only go on as before: change back what it says of columns, labels, "
            f"repeats, statistics, templates and this split, {anew}"
        )
    for table, old in manifest["files"].items():
        now = found[table]
        advice = (
            f"new {table} go into files of their own, named so that they come last, such as "
            f'{table}_2.parquet with "{table}": {{"file": "{table}*.parquet"}} in {SPEC_FILE}; '
            f"{anew}"
        )
        for (name, digest), there in itertools.zip_longest(old, now[: len(old)]):
            if there is None or there[0] != name:
                place = "is missing" if name not in dict(now) else f"comes after {there[0]}"
                raise DataError(f"{directory / name} is prepared and {place}: {advice}")
            if there[1] != digest:
                raise DataError(f"{directory / name} is prepared and has changed since: {advice}")
    return dataset.event_files[len(manifest["files"]["events"]) :]


class _Update:
    """The new events, and the rows of the new part.

    Args:
      dataset: with all files.
      files: of `files_of`, before anything was read: what is appended meanwhile has come later.
      new: its files of new events.
      prepared: the past.
      split: of it.
      scratch: a folder for temporary files.
      progress: whether to show bars.
    """

    def __init__(
        self,
        dataset: Dataset,
        files: dict[str, list[list[str]]],
        new: tuple[Path, ...],
        prepared: Prepared,
        split: Split,
        scratch: Path,
        progress: bool,
    ) -> None:
        self._prepared, self._manifest, self._progress = prepared, prepared.manifest, progress
        self._files, self._split, self._scratch = files, split, scratch
        self.name = f"update_{len(prepared.updates) + 1}"
        self._options = PrepareOptions(**self._manifest["options"])
        self._statistics = StatisticsOptions(**self._manifest["statistics_options"])
        self._dataset = dataclasses.replace(
            with_template(dataset, self._options.template),
            event_files=new,
            after=self._manifest["last_time"],
        )
        self._template, _ = template_and_options(self._dataset, None)
        self._catalogue = prepared.catalogue()
        self._texts = texts_of_items(self._dataset, self._template)
        self._held_out = self._new_held_out()
        self._new_events = scratch / _EVENTS_FILE
        with EventTable(self._dataset, scratch / "table") as events:
            everything = np.full(events.num_rows, TRAIN, np.int8)
            acted = events.known(everything, "row").read_all()
            users, items = (acted[name].to_numpy() for name in ("user", "item"))
            left_out = self._held_out[items] | self._of_other_parts()[users]
            codes = np.where(left_out, EXCLUDED, TRAIN).astype(np.int8)
            events.save(codes, self._new_events)
            self._counts = events.item_counts(codes)
            self._times = events.times()

    def _new_held_out(self) -> np.ndarray:
        """Which items are held out `[items]` bool: the new ones as the split draws them."""
        items = self._dataset.item_records
        found = np.zeros(len(items), bool)
        if self._split.kind == "held_out_items":
            found = splits.is_held_out([item.id for item in items], **self._split.arguments())
        return found

    def _of_other_parts(self) -> np.ndarray:
        """Users that the split keeps from training `[users]` bool.

        Raises:
          DataError: a new event is of another part than training, by the split's column.
        """
        users = self._dataset.users.column(self._dataset.spec.users.id).to_pylist()
        split = self._split.base or self._split
        if split.kind == "by_user":
            return splits.by_user(users, **split.arguments()) != TRAIN
        if split.kind == "by_column" and (self._dataset.event_parts() != TRAIN).any():
            raise DataError(
                f"{self._dataset.event_files[0].parent}: the column "
                f"{self._dataset.spec.events.part!r} of the new events names other parts than "
                "'train', and an update is for training; `m6rec data prepare` makes all parts anew"
            )
        return np.zeros(len(users), bool)

    def _views_to_update(self) -> list[str]:
        """The prepared views, but for those that other settings have made than the last ones."""
        found = []
        for view, entry in self._manifest["views"].items():
            settings = EVENT_VIEWS[view].settings(self._dataset, self._options, self._statistics)
            if entry["fingerprint"] == fingerprint(self._manifest["source"], *settings):
                found.append(view)
            else:
                log.warning(
                    "the view '%s' gets no part %s: it was prepared with other settings than the "
                    "last ones (prepare the views together)",
                    view,
                    self.name,
                )
        return found

    @property
    def _is_counted(self) -> bool:
        """Whether co-occurrence is there."""
        return not set(views.COUNTED).isdisjoint(self._manifest["views"])

    def write(self, staged: Path) -> None:
        """Writes all files that are new or change, below `staged`: see `staged_files`.

        Raises:
          DataError: a record lacks what its template needs.
        """
        prepared = self._prepared
        folder = staged / prepared.folder.name
        (folder / EVENTS).mkdir(parents=True)
        saved = [*(prepared.folder / EVENTS).glob("*.parquet"), self._new_events]
        with EventTable(self._dataset, self._scratch / "all_events", saved) as events:
            past = events.num_rows - int(self._counts.sum())
            codes = np.where(np.arange(events.num_rows) < past, CONTEXT, TRAIN).astype(np.int8)
            job = Job(
                self._scratch / "buckets",
                self._dataset,
                splits.VISIBLE_PARTS,
                self._options,
                self._statistics,
                Past(self.name, len(self._catalogue.texts), past, prepared.folder),
            )
            with BucketRun(
                job,
                events,
                Assignment(self._split, codes, self._held_out),
                self._manifest["buckets"],
                "process",
                self._progress,
            ) as run:
                entries, shards = run.render(tuple(self._views_to_update()))
                rows = {
                    view: entry["rows"][self.name]
                    for view, entry in entries.items()
                    if entry["rows"]
                }
                for view in rows:
                    target = prepared.tfds_folder(view)
                    new = staged / target.relative_to(prepared.data_dir)
                    new.mkdir(parents=True)
                    tfrecords.add_part(shards[view][self.name], target, self.name, new)
                run.save_statistics(folder / STATISTICS)
                if self._is_counted:
                    run.save_co_occurrence(folder)
        shutil.move(self._new_events, folder / EVENTS / f"{self.name}.parquet")
        counts = self._counts.copy()
        counts[: len(self._catalogue.texts)] += self._catalogue.train_counts
        write_catalogue(
            folder / CATALOGUE,
            self._dataset.item_records,
            self._dataset.items.select(list(self._dataset.spec.items.columns)),
            self._texts,
            self._held_out,
            counts,
        )
        write_manifest(folder, self._new_manifest(rows))

    def _new_manifest(self, rows: Mapping[str, int]) -> dict[str, Any]:
        old, number = self._manifest, int(self._counts.sum())
        before = old["counts"]
        counts = {
            "users": self._dataset.users.num_rows,
            "items": self._dataset.items.num_rows,
            "held_out_items": int(self._held_out.sum()),
        }
        files, new = self._files, [path.name for path in self._dataset.event_files]
        entry: dict[str, Any] = {
            "name": self.name,
            "files": new,
            # Rows depend on all files so far: on users, items and the updates before this one.
            "fingerprint": fingerprint(files, new),
            "events": number,
            "first_time": self._times[0],
            "last_time": self._times[1],
            "new": {name: counts[name] - before[name] for name in counts},
            "rows": dict(rows),
        }
        log.info(
            "%s: %d events, %d new users, %d new items; rows: %s",
            self.name,
            number,
            entry["new"]["users"],
            entry["new"]["items"],
            ", ".join(f"{view} {count}" for view, count in rows.items()) or "none",
        )
        return old | {
            "counts": before | counts | {"events": before["events"] | {self.name: number}},
            "files": files,
            "last_time": self._times[1],
            "statistics": old["statistics"] | {"events": old["statistics"]["events"] + number},
            "updates": [*old.get("updates", []), entry],
            "views": {
                view: entry | {"rows": entry["rows"] | {self.name: rows[view]}}
                if view in rows
                else entry
                for view, entry in old["views"].items()
            },
        }

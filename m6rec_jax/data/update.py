"""`m6rec data update`: new events of a prepared data set become a new part of its views.

The past is not made again. Statistics and co-occurrence go on from where they were saved; of
earlier events only those of users who act now are read. The rows of the new part, `update_1` and so
on, are training rows: they see what training rows of the past see, and the updates before them. So
they are, to the letter, the rows that one preparation of everything would make of the new events,
if all of them were training events. One thing differs: sampled negatives look at popularity as an
update begins, not when 2% more events have come.

Everything that an update changes is written aside and then takes its place at once (`io.staged`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pyarrow as pa

from m6rec_jax.data import splits, tfrecords, views
from m6rec_jax.data.co_occurrence import CoOccurrence, CoOccurrenceOptions, GrowingCoOccurrence
from m6rec_jax.data.event_table import EventTable, saved_events
from m6rec_jax.data.grouping import Group, Grouping, UserEvents, groups_of_user
from m6rec_jax.data.negatives import NegativeSampler
from m6rec_jax.data.prepare import FORMAT, files_of, texts_of_items
from m6rec_jax.data.prepare_options import (
    PrepareOptions,
    num_negatives,
    template_and_options,
    view_settings,
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
from m6rec_jax.data.render import RowRenderer, item_document
from m6rec_jax.data.reranking_candidates import RerankingCandidates
from m6rec_jax.data.schema import SPEC_FILE, DatasetSpec
from m6rec_jax.data.splits import CONTEXT, EXCLUDED, TRAIN, Split
from m6rec_jax.data.statistics import StatisticsOptions, as_of
from m6rec_jax.data.views import RowWriter
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.full_disk import full_disk_errors
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.io.staged import finish_staged, staged_files
from m6rec_jax.text.records import Event, Item

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
        full_disk_errors(folder),
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
        rows = made.render(scratch)
        with staged_files(folder / UPDATE, out) as staged:
            made.write(scratch, staged, rows)
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
    """The new events, what is known of the past, and the rows of the new part.

    Args:
      dataset: with all files.
      files: of `files_of`, before anything was read: what is appended meanwhile has come later.
      new: its files of new events.
      prepared: the past.
      split: of it.
      scratch: a folder for what is on the way.
      progress: whether to show a bar.
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
        self._files, self._split = files, split
        self.name = f"update_{len(prepared.updates) + 1}"
        self._options = PrepareOptions(**self._manifest["options"])
        self._dataset = dataclasses.replace(
            with_template(dataset, self._options.template),
            event_files=new,
            after=self._manifest["last_time"],
        )
        self._template, _ = template_and_options(self._dataset, None)
        self._negatives = num_negatives(self._dataset, self._options)
        self._catalogue = prepared.catalogue()
        self._texts = texts_of_items(self._dataset, self._template)
        self._held_out = self._new_held_out()
        with EventTable(self._dataset, scratch / "table") as events:
            everything = np.full(events.num_rows, TRAIN, np.int8)
            acted = events.known(everything, "row").read_all()
            users, items = (acted[name].to_numpy() for name in ("user", "item"))
            left_out = self._held_out[items] | self._of_other_parts()[users]
            codes = np.where(left_out, EXCLUDED, TRAIN).astype(np.int8)
            events.save(codes, scratch / _EVENTS_FILE)
            self._events = events.known(codes, "time, row").read_all()
            self._times = events.times()
        users = np.unique(self._events["user"].to_numpy())
        # What the users who act now did before.
        self._past = saved_events(prepared.folder / EVENTS, users)
        self._statistics = prepared.statistics()
        self._co_occurrence = self._growing_co_occurrence()
        self._views = self._views_to_update()

    # ---- what there is

    @property
    def _num_old(self) -> int:
        return len(self._catalogue.texts)

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

    def _growing_co_occurrence(self) -> GrowingCoOccurrence | None:
        """Counts of the past, that the new events are added to one by one."""
        if set(views.COUNTED).isdisjoint(self._manifest["views"]):
            return None
        before, size = self._prepared.co_occurrence(), len(self._dataset.item_records)
        totals = np.zeros(size, np.int64)
        totals[: before.num_items] = before.totals
        counts = (before.keys, before.amounts, totals, before.later)
        start = CoOccurrence(size, before.options, *counts)
        users = self._past["user"].to_numpy()
        later = np.searchsorted(users, users, side="right") - np.arange(len(users))
        last = self._past.filter(pa.array(later <= before.options.window))
        self._context = last.num_rows
        acted, items = (
            np.concatenate([last[name].to_numpy(), self._events[name].to_numpy()])
            for name in ("user", "item")
        )
        return GrowingCoOccurrence(acted, items, start, self._context)

    def _views_to_update(self) -> list[str]:
        """The prepared views, but for those that other settings have made than the last ones."""
        counts = self._co_occurrence
        counted = CoOccurrenceOptions() if counts is None else counts.options
        options = StatisticsOptions(**self._manifest["statistics_options"])
        found = []
        for view, entry in self._manifest["views"].items():
            settings = view_settings(view, self._dataset, self._options, options, counted)
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

    # ---- rows

    def render(self, folder: Path) -> dict[str, int]:
        """Writes the rows of each view to a folder of its own, `VIEW/<name>.parquet`.

        Returns:
          view -> number of rows, where there are some.

        Raises:
          DataError: a record lacks what its template needs.
        """
        writers = {}
        for view in self._views:
            (folder / view).mkdir()
            writers[view] = RowWriter(folder / view, view)
        for index in range(self._num_old, len(self._texts)):
            item = self._dataset.item_records[index]
            if "catalogue" in writers:
                told = {"item_id": item.id, "item_index": index, "text": self._texts[index]}
                writers["catalogue"].write(self.name, told)
            if "documents" in writers and not self._held_out[index]:
                writers["documents"].write(self.name, item_document(self._template, item))
        groups, renderer = self._groups(), self._renderer()
        bar = progress_bar(
            as_of(self._count, self._in_order(), groups, lambda pair: pair[1].time),
            desc=f"rendering {self.name}",
            total=len(groups),
            unit=" rows",
            disable=not self._progress,
        )
        for view, group in bar:
            row = renderer.row(view, group)
            if row is not None:
                writers[view].write(self.name, row)
        for writer in writers.values():
            writer.close()
        return {
            view: writer.num_rows[self.name] for view, writer in writers.items() if writer.num_rows
        }

    def _groups(self) -> list[tuple[str, Group]]:
        """Views and the groups of their rows, in the order of time."""
        found: list[tuple[str, Group]] = []
        for view in self._views:
            if view == "catalogue":
                continue
            settings = dict(self._manifest["views"][view]["grouping"])
            grouping = Grouping(**settings | {"parts": (TRAIN,)})
            number = 0
            for events, codes in self._users():
                for group in groups_of_user(events, codes, grouping, number):
                    found.append((view, group))
                    number += 1
        return sorted(found, key=lambda pair: pair[1].time)

    def _users(self) -> Iterator[tuple[UserEvents, np.ndarray]]:
        """Past and new events of the users who act now, and their part codes."""
        names = ("user", "row", "item", "time", "value")
        order = [(name, "ascending") for name in ("user", "time", "row")]
        past, new = (
            {name: table[name].to_numpy() for name in names}
            for table in (self._past, self._events.sort_by(order))
        )
        for user in np.unique(new["user"]).tolist():
            before, now = (
                slice(*np.searchsorted(columns["user"], [user, user + 1]))
                for columns in (past, new)
            )
            columns = [np.concatenate([past[n][before], new[n][now]]) for n in names[1:]]
            codes = np.repeat([CONTEXT, TRAIN], [before.stop - before.start, now.stop - now.start])
            yield UserEvents(user, *columns), codes

    def _renderer(self) -> RowRenderer:
        options, sampler, reranking = self._options, None, None
        if self._negatives:
            ids = [item.id for item in self._dataset.item_records]
            never = self._held_out.nonzero()[0].tolist()
            sampler = NegativeSampler(ids, options.negative_power, options.seed, never)
        if self._co_occurrence is not None:
            reranking = RerankingCandidates(
                self._co_occurrence,
                self._held_out,
                negatives=options.reranking_negatives,
                depth=options.reranking_depth,
                seed=options.seed,
                repeats=self._dataset.spec.repeats_count,
            )
        return RowRenderer(
            self._dataset,
            self._template,
            self._statistics,
            sampler,
            self._negatives,
            reranking,
        )

    def _in_order(self) -> Iterator[tuple[Event, Item]]:
        """The new events in the order of time."""
        users, items = self._dataset.user_records, self._dataset.item_records
        columns = (self._events[name].to_pylist() for name in ("user", "item", "time", "value"))
        for user, item, time, value in zip(*columns, strict=True):
            yield Event(users[user].id, items[item].id, time, value), items[item]

    def _count(self, event: Event, item: Item) -> None:
        self._statistics.update(event, item)
        if self._co_occurrence is not None:
            self._context += 1
            self._co_occurrence.advance(self._context)

    # ---- files

    def write(self, rendered: Path, staged: Path, rows: Mapping[str, int]) -> None:
        """Writes all files that are new or change, below `staged`: see `staged_files`.

        Args:
          rendered, rows: of `render`.
          staged: in place of the TFDS data_dir.
        """
        prepared = self._prepared
        folder = staged / prepared.folder.name
        (folder / EVENTS).mkdir(parents=True)
        for view in rows:
            target = prepared.tfds_folder(view)
            new = staged / target.relative_to(prepared.data_dir)
            new.mkdir(parents=True)
            tfrecords.add_part(rendered / view, target, view, self.name, new)
        shutil.move(rendered / _EVENTS_FILE, folder / EVENTS / f"{self.name}.parquet")
        self._statistics.save(folder / STATISTICS)
        if self._co_occurrence is not None:
            self._co_occurrence.save(folder)
        counts = np.bincount(self._events["item"].to_numpy(), minlength=len(self._texts))
        counts[: self._num_old] += self._catalogue.train_counts
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
        old, number = self._manifest, self._events.num_rows
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

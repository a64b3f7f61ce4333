"""`m6rec data prepare`: a data set folder becomes a TFDS data set of rendered text.

Events are read once, into a table on disk, and split. Then all views that are wanted are made
together, bucket by bucket of users (`bucket_run`). A view whose rows depend on what all users did a
moment before, event by event, is made by `ViewRenderer` instead: it folds the training events into
the statistics in the order of time, and renders each group when the fold reaches its moment.

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
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gin
import pyarrow as pa

from m6rec_jax import __version__
from m6rec_jax.data import co_occurrence, statistics_files, views
from m6rec_jax.data.assignment import Assignment, users_in_order
from m6rec_jax.data.bucket_data_dir import local_data_dir
from m6rec_jax.data.bucket_job import Job
from m6rec_jax.data.bucket_run import BucketRun, num_buckets
from m6rec_jax.data.co_occurrence import CoOccurrence, CoOccurrenceOptions, RerankingCandidates
from m6rec_jax.data.event_table import EventTable
from m6rec_jax.data.grouping import SORT_KEYS, Grouping, group_batches, groups_of
from m6rec_jax.data.negatives import NegativeSampler
from m6rec_jax.data.prepared import (
    CATALOGUE,
    MANIFEST,
    STATISTICS,
    Prepared,
    fingerprint,
    folder_of,
    write_catalogue,
    write_manifest,
)
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.render import RowRenderer, events_for_statistics, item_document
from m6rec_jax.data.schema import SPEC_FILE
from m6rec_jax.data.sorting import sorted_batches
from m6rec_jax.data.splits import (
    CONTEXT,
    PARTS,
    STATISTICS_PARTS,
    TRAIN,
    USER_STATISTICS_PARTS,
    Split,
    part_counts,
)
from m6rec_jax.data.statistics import Statistics, StatisticsOptions, as_of
from m6rec_jax.data.template_needs import checked_template, items_without_text
from m6rec_jax.data.tfrecords import build_view
from m6rec_jax.data.views import RowWriter
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.full_disk import full_disk_errors
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.text.records import Event, Item
from m6rec_jax.text.templates import DatasetTemplate

log = logging.getLogger(__name__)
# Views whose rows a model scores candidate by candidate.
_OF_CANDIDATES = ("groups", "reranking")
# Views that are made event by event.
_FOLDED = ("reranking",)
DEFAULT_NEGATIVES = 4
# Groups that are sorted in memory at a time.
_SORTED_ROWS = 200_000

# Raise it when the rendering changes, so that data prepared before are rendered again.
FORMAT = 2


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is rendered and how. Set in gin: `PrepareOptions.group_size = 8`.

    Attributes:
      views: of `views.VIEWS` and `views.FURTHER_VIEWS`; and of `views.WRITING`, those that the
        template has.
      template: entries in place of those of the data set's own template, such as
        `{"candidate": "{title}[, {awards}]"}`: see `DatasetTemplate`.
      group_size: candidates of a row of 'groups', at most.
      max_events: behaviours of a history, at most; the latest ones.
      next_items_size: items of a row of 'next_items', at most; a row of 'reranking' is about the
        first of as many.
      document_events: behaviours in the target of a document, at most.
      document_statistics: whether candidates in documents come with their statistics.
      max_seconds: a row later than its group's first one by more starts a new group; None: never.
      negatives: negatives sampled per positive; None: 4 where all events are positive, else 0.
      negative_power: 0 samples all items alike, 1 by popularity.
      reranking_negatives: candidates of a row of 'reranking' beside the wanted one.
      reranking_depth: they are drawn from so many of the items that occur most with its last ones.
      seed: of the negatives.
    """

    views: Sequence[str] = views.VIEWS
    template: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group_size: int = 8
    max_events: int = 50
    next_items_size: int = 4
    document_events: int = 4
    document_statistics: bool = True
    max_seconds: float | None = None
    negatives: int | None = None
    negative_power: float = 0.5
    reranking_negatives: int = 11
    reranking_depth: int = 200
    seed: int = 0


@gin.configurable
def prepare(
    dataset_dir: str | Path = gin.REQUIRED,
    out: str | Path = gin.REQUIRED,
    split: str = "per_user_temporal",
    options: PrepareOptions | None = None,
    statistics_options: StatisticsOptions | None = None,
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
      progress: whether to show a bar.

    Raises:
      DataError: something is wrong with the folder, there is no such split or view, a part is
        empty, a record lacks what its template needs, or the template says nothing of an item.
      ConfigError: the template has an entry or names a field that does not exist (the message
        names those that do), or an option has an impossible value.
    """
    options = options or PrepareOptions()
    known = (*views.VIEWS, *views.FURTHER_VIEWS, *views.WRITING)
    wanted = tuple(views.check_view(view, known) for view in options.views)
    dataset = with_template(Dataset.open(dataset_dir), options.template)
    parsed = Split.parse(split, dataset.spec.splits)
    with (
        local_data_dir(out, dataset.spec.name, parsed.name) as data_dir,
        full_disk_errors(data_dir),
        contextlib.ExitStack() as opened,
    ):
        preparation = _Preparation(
            dataset, parsed, options, statistics_options, data_dir, progress, opened
        )
        preparation.check(wanted)
        preparation.make(wanted)
        preparation.finish()
    return Prepared.open(out, dataset.spec.name, parsed.name)


class _Preparation:
    """One run of `prepare`: what of it is on disk, and its manifest; `opened` ends it."""

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        options: PrepareOptions,
        statistics_options: StatisticsOptions | None,
        out: Path,
        progress: bool,
        opened: contextlib.ExitStack,
    ) -> None:
        self.dataset, self.split, self.options = dataset, split, options
        self.out, self.progress, self._opened = out, progress, opened
        self.template, self.statistics_options = _checked_template(dataset, statistics_options)
        self.negatives = num_negatives(dataset, options)
        self.item_texts = self._item_texts()
        self.dataset_fingerprint = dataset_fingerprint(dataset)
        self.source = fingerprint(
            FORMAT,
            __version__,
            self.dataset_fingerprint,
            split.kind,
            dict(split.options),
            dict(options.template),
            sorted(split.visible_parts.items()),
        )
        self.folder = folder_of(out, dataset.spec.name, split.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        old = _read_json(self.folder / MANIFEST) or {}
        # What an earlier run left is of use only if it came from the same data.
        same = old.get("source") == self.source
        if not same:
            # Views of other data must not be read beside it; `finish` writes it anew.
            for name in (CATALOGUE, co_occurrence.FILE):
                (self.folder / name).unlink(missing_ok=True)
        counted = old if same else self._counted()
        self.manifest: dict[str, Any] = {
            **self._description(),
            "counts": counted["counts"],
            "buckets": counted["buckets"],
            "source": self.source,
            "views": dict(old["views"]) if same else {},
            "statistics": dict(old["statistics"]) if same else {},
        }

    @cached_property
    def events(self) -> EventTable:
        """The events, which are read when they are asked for."""
        return self._opened.enter_context(EventTable(self.dataset, self._scratch("table")))

    @cached_property
    def assignment(self) -> Assignment:
        """The part of every event."""
        return self.events.assign(self.split)

    @cached_property
    def run(self) -> BucketRun:
        """What makes views bucket by bucket."""
        job = bucket_job(
            self.dataset,
            self.split,
            self.options,
            self.statistics_options,
            self._scratch("buckets"),
        )
        return self._opened.enter_context(
            BucketRun(job, self.events, self.assignment, self.manifest["buckets"], self.progress)
        )

    def check(self, wanted: Sequence[str]) -> None:
        """Raises an error where a view has no text, before any is made."""
        path = self.dataset.directory / SPEC_FILE
        for view in wanted:
            if view in views.WRITING and view not in self.template.writing:
                raise ConfigError(
                    f"{path}: 'template.writing' has no {view!r}, so there is no text to prepare "
                    f"(it has: {', '.join(self.template.writing) or 'none'})"
                )
            if view in _OF_CANDIDATES and not self.template.candidate_template.source.strip():
                raise DataError(
                    f"{path}: the template 'candidate' is empty, and the view '{view}' is of "
                    "candidates: leave it out of PrepareOptions.views, or give them a text"
                )

    def make(self, wanted: Sequence[str]) -> None:
        """Makes those views that are not there: all in one pass, but for those that are folded."""
        made = {view: fingerprint(self.source, *self.settings(view)) for view in wanted}
        targets = {}
        for view in wanted:
            target = views.tfds_folder(self.out, self.dataset.spec.name, self.split.name, view)
            done = self.manifest["views"].get(view, {}).get("fingerprint") == made[view]
            if done and (target / "dataset_info.json").is_file():
                log.info("%s is prepared already", target.parent.name)
                continue
            targets[view] = target
            # Before its rows are replaced: killed in between, it counts as not prepared.
            self.manifest["views"].pop(view, None)
        if not targets:
            return
        write_manifest(self.folder, self.manifest)
        folded = {view: target for view, target in targets.items() if view in _FOLDED}
        entries = self.run.write({v: t for v, t in targets.items() if v not in folded})
        for view, target in folded.items():
            entries[view] = self._fold(view, target)
        if not set(views.COUNTED).isdisjoint(targets):
            self.run.save_co_occurrence(self.folder)
        for view, entry in entries.items():
            self.manifest["views"][view] = {"fingerprint": made[view], **entry}
        write_manifest(self.folder, self.manifest)

    def _fold(self, view: str, target: Path) -> dict[str, Any]:
        """Makes a view event by event."""
        rendered = self._scratch("rendered")
        rendered.mkdir()
        renderer = ViewRenderer(
            self.dataset, self.assignment, self.options, self.statistics_options, self.progress
        )
        entry, _ = renderer.render(view, rendered)
        build_view(rendered, target, view)
        shutil.rmtree(rendered)
        return entry

    def _scratch(self, name: str) -> Path:
        """A folder for what is on the way, without what a run that was killed left there."""
        path = self.folder / "unfinished" / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(exist_ok=True)
        self._opened.callback(shutil.rmtree, path.parent, ignore_errors=True)
        return path

    def settings(self, view: str) -> list[Any]:
        """All that the rows of a view depend on beside the data set and its split (for JSON)."""
        if view == "catalogue":
            return [view]
        found: list[Any] = [
            view,
            statistics_files.FORMAT,
            dataclasses.asdict(self.statistics_options),
            dataclasses.asdict(grouping(view, self.options, self.negatives)),
        ]
        if view == "groups" and self.negatives:
            found.append([self.negatives, self.options.negative_power, self.options.seed])
        if view == "documents":
            found.append(self.options.document_statistics)
        if view in views.COUNTED:
            found.append([co_occurrence.FORMAT, dataclasses.asdict(CoOccurrenceOptions())])
        if view == "reranking":
            drawn = (self.options.reranking_negatives, self.options.reranking_depth)
            found.append([*drawn, self.options.seed])
        return found

    def finish(self) -> None:
        """Writes what all views share."""
        wanted = fingerprint(
            self.source, statistics_files.FORMAT, dataclasses.asdict(self.statistics_options)
        )
        there = (self.folder / STATISTICS / "statistics.json").is_file()
        if self.manifest["statistics"].get("fingerprint") != wanted or not there:
            events = self.run.save_statistics(self.folder / STATISTICS)
            self.manifest["statistics"] = {"fingerprint": wanted, "events": events}
        if not (self.folder / CATALOGUE).is_file():
            write_catalogue(
                self.folder / CATALOGUE,
                self.dataset.item_records,
                self.dataset.items.select(list(self.dataset.spec.items.columns)),
                self.item_texts,
                self.assignment.held_out,
                self.events.item_counts(self.assignment.codes, TRAIN),
            )
        write_manifest(self.folder, self.manifest)

    def _item_texts(self) -> list[str]:
        """What the template says of each item; a model can read no empty text."""
        items = self.dataset.item_records
        for name, empty in items_without_text(self.template, items).items():
            raise DataError(
                f"{self.dataset.directory / SPEC_FILE}: the template '{name}' says nothing of "
                f"{len(empty)} items, the first of which is {empty[0]!r}: let it name a column "
                f"that all items have, or begin with a word"
            )
        return [self.template.item(item) for item in items]

    def _counted(self) -> dict[str, Any]:
        num_users = self.dataset.users.num_rows
        counts = {
            "users": num_users,
            "items": self.dataset.items.num_rows,
            "events": part_counts(self.assignment.codes),
            "held_out_items": int(self.assignment.held_out.sum()),
            "cold_users": self.assignment.num_cold_users,
        }
        return {"counts": counts, "buckets": num_buckets(self.events.num_rows, num_users)}

    def _description(self) -> dict[str, Any]:
        """What the manifest says beside counts, views and statistics."""
        names = dict(enumerate(PARTS)) | {CONTEXT: "context"}
        return {
            "format": FORMAT,
            "version": __version__,
            "dataset": self.dataset.spec.name,
            "dataset_spec": self.dataset.spec.to_dict(),
            "dataset_fingerprint": self.dataset_fingerprint,
            "split": {
                "name": self.split.name,
                "kind": self.split.kind,
                "options": dict(self.split.options),
            },
            "options": dataclasses.asdict(self.options) | {"views": list(self.options.views)},
            "statistics_options": dataclasses.asdict(self.statistics_options),
            "visible": {
                "history": {
                    names[part]: [names[code] for code in seen]
                    for part, seen in self.split.visible_parts.items()
                },
                "history_until": "strictly before the time of a group's first row; in "
                "'next_items' before that row in the user's order",
                "statistics": [names[code] for code in STATISTICS_PARTS],
                "user_statistics": {
                    names[part]: [
                        names[code]
                        for code in seen
                        if code in STATISTICS_PARTS + USER_STATISTICS_PARTS
                    ]
                    for part, seen in self.split.visible_parts.items()
                },
                "statistics_until": "strictly before the time of a group's first row",
            },
        }


def bucket_job(
    dataset: Dataset,
    split: Split,
    options: PrepareOptions,
    statistics_options: StatisticsOptions,
    folder: Path,
) -> Job:
    """What makes views bucket by bucket is told.

    Args:
      dataset, split, options: of the preparation.
      statistics_options: of what the template tells.
      folder: for files on the way.
    """
    negatives = num_negatives(dataset, options)
    return Job(
        folder=folder,
        dataset=dataset,
        visible_parts=split.visible_parts,
        groupings={view: grouping(view, options, negatives) for view in views.COLUMNS},
        max_events=options.max_events,
        document_statistics=options.document_statistics,
        negatives=negatives,
        negative_power=options.negative_power,
        seed=options.seed,
        statistics=statistics_options,
    )


def grouping(view: str, options: PrepareOptions, negatives: int) -> Grouping:
    """How the rows of a view are grouped; `negatives` per positive, of `num_negatives`."""
    size = {
        "groups": max(1, options.group_size // (1 + negatives)),
        "next_items": options.next_items_size,
        "reranking": options.next_items_size,
        "documents": options.document_events,
    }.get(view, 1)
    return Grouping(
        size=size,
        max_events=options.max_events,
        strict=view not in ("next_items", "reranking"),
        max_seconds=options.max_seconds,
        with_seen=view == "reranking" or (view == "groups" and negatives > 0),
    )


class ViewRenderer:
    """Renders views of one data set under one assignment of its events to Parquet files.

    Args:
      dataset: an open data set.
      assignment: part of every event.
      options: what is rendered.
      statistics_options: None for gin's or the defaults.
      progress: whether to show a bar.

    Raises:
      ConfigError: the template names a field that does not exist, or negatives are asked for where
        events have labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        assignment: Assignment,
        options: PrepareOptions,
        statistics_options: StatisticsOptions | None = None,
        progress: bool = False,
    ) -> None:
        self.dataset, self.assignment, self.options = dataset, assignment, options
        self.template, self.statistics_options = _checked_template(dataset, statistics_options)
        self.negatives = num_negatives(dataset, options)
        self._progress = progress

    def new_statistics(self, of_history: bool = False) -> Statistics:
        """Statistics that hold no event yet; with `of_history` only those of a history."""
        options = self.statistics_options
        if of_history:
            options = _needed_only(options, self.template.profile_template.fields)
        return Statistics.for_dataset(self.dataset.spec, options)

    def events_for_statistics(self) -> Iterator[tuple[Event, Item, bool]]:
        """What statistics may hold, in the order of time."""
        visible = self.assignment.split.visible_parts
        return events_for_statistics(self.dataset, self.assignment.codes, visible)

    def render(self, view: str, folder: Path) -> tuple[dict[str, Any], Statistics | None]:
        """Writes the rows of a view to Parquet files in `folder`.

        Returns:
          what the manifest says about the view, and the statistics after the last training event
          (None for views that need few of them).

        Raises:
          DataError: a record lacks what its template needs, or no row is to be made.
        """
        of_history = view in views.WRITING or view == "reranking"
        statistics = self.new_statistics(of_history)
        sampler = self._sampler() if view == "groups" else None
        counts = CoOccurrence(len(self.dataset.item_records)) if view in views.COUNTED else None
        reranking = None
        if view == "reranking" and counts is not None:
            reranking = self._reranking_candidates(counts)
        renderer = RowRenderer(
            self.dataset,
            self.template,
            statistics,
            sampler,
            self.negatives,
            self.options.document_statistics,
            reranking,
        )
        writer = RowWriter(folder, view)
        if view == "documents":
            held_out = self.assignment.held_out
            for item, held in zip(self.dataset.item_records, held_out, strict=True):
                if not held:
                    writer.write("train", item_document(self.template, item))
        grouped = grouping(view, self.options, self.negatives)
        self._render_groups(view, grouped, statistics, counts, renderer, writer)
        if counts is not None:
            counts.save(folder)
        writer.close()
        if not writer.num_rows:
            raise DataError(
                f"{self.dataset.spec.name!r} has no row for the view {view!r}: nothing that a user "
                "liked has what the template asks for"
            )
        entry: dict[str, Any] = {
            "grouping": dataclasses.asdict(grouped),
            "rows": writer.num_rows,
        }
        if sampler is not None and sampler.sampling_rate is not None:
            entry["negatives"] = {
                "per_positive": self.negatives,
                "power": self.options.negative_power,
                "seed": self.options.seed,
                "sampling_rate": sampler.sampling_rate,
            }
        return entry, None if of_history else statistics

    def _render_groups(
        self,
        view: str,
        grouping: Grouping,
        statistics: Statistics,
        counts: CoOccurrence | None,
        renderer: RowRenderer,
        writer: RowWriter,
    ) -> None:
        codes, visible = self.assignment.codes, self.assignment.split.visible_parts
        total = 0

        def counted(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            nonlocal total
            for batch in batches:
                total += batch.num_rows
                yield batch

        def update(event: Event, item: Item, of_user_only: bool) -> None:
            statistics.update(event, item, of_user_only)
            if counts is not None and not of_user_only:
                counts.update(event.user_id, self.dataset.item_index[item.id])

        users = users_in_order(self.dataset)
        batches = sorted_batches(
            counted(group_batches(users, codes, grouping, visible_parts=visible)),
            SORT_KEYS,
            batch_size=1_024,
            memory_rows=_SORTED_ROWS,
        )
        groups = (group for batch in batches for group in groups_of(batch))
        bar = progress_bar(desc=f"rendering {view}", unit=" rows", disable=not self._progress)
        with bar:
            for group in as_of(update, self.events_for_statistics(), groups, lambda g: g.time):
                row = renderer.row(view, group)
                if row is not None:
                    writer.write(PARTS[group.part], row)
                if bar.total is None:  # sorting has read all groups by now
                    bar.total = total
                bar.update()

    def _reranking_candidates(self, counts: CoOccurrence) -> RerankingCandidates:
        return RerankingCandidates(
            counts,
            [self.template.item(item) for item in self.dataset.item_records],
            self.assignment.held_out.nonzero()[0].tolist(),
            negatives=self.options.reranking_negatives,
            depth=self.options.reranking_depth,
            seed=self.options.seed,
        )

    def _sampler(self) -> NegativeSampler | None:
        if not self.negatives:
            return None
        ids = [item.id for item in self.dataset.item_records]
        never = self.assignment.held_out.nonzero()[0].tolist()
        return NegativeSampler(ids, self.options.negative_power, self.options.seed, never)


def with_template(dataset: Dataset, entries: Mapping[str, Any]) -> Dataset:
    """The data set with some entries of its template replaced."""
    template = {**dataset.spec.template, **entries}
    return dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, template=template))


def num_negatives(dataset: Dataset, options: PrepareOptions) -> int:
    """Negatives per positive: as asked for, or 4 where every event is positive, else none.

    Raises:
      ConfigError: fewer than none, or some where events have labels.
    """
    labelled = dataset.spec.label.at_least is not None
    if options.negatives is None:
        return 0 if labelled else DEFAULT_NEGATIVES
    if options.negatives < 0 or (options.negatives and labelled):
        raise ConfigError(
            f"negatives={options.negatives} is impossible for {dataset.spec.name!r}: "
            + ("its events have labels, use those" if labelled else "give 0 or more")
        )
    return options.negatives


def _checked_template(
    dataset: Dataset, options: StatisticsOptions | None
) -> tuple[DatasetTemplate, StatisticsOptions]:
    """The data set's template, and the options of the statistics that it asks for.

    Pairs of items are not counted, and factors not fitted, for a template that does not ask for
    them: they are most of the work.
    """
    spec = dataset.spec
    where = str(dataset.directory / SPEC_FILE)
    statistics = Statistics.for_dataset(spec, options)
    template = checked_template(spec, statistics, where)
    wanted = (*template.candidate_template.fields, *template.profile_template.fields)
    return template, _needed_only(statistics.options, wanted)


def _needed_only(options: StatisticsOptions, wanted: Collection[str]) -> StatisticsOptions:
    """Options without what costs most of the work, unless it is wanted."""
    of_neighbours = {"user_neighbours_percent", "user_taste_difference", "user_neighbours_times"}
    return dataclasses.replace(
        options,
        neighbours=options.neighbours and not of_neighbours.isdisjoint(wanted),
        factors=options.factors if "user_expected_value" in wanted else 0,
    )


def dataset_fingerprint(dataset: Dataset) -> str:
    """SHA-256 over dataset.json and the content of all files of a data set."""
    files = (*dataset.user_files, *dataset.item_files, *dataset.event_files)
    return fingerprint(files=(dataset.directory / SPEC_FILE, *files))


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove it and prepare again") from error
    return found

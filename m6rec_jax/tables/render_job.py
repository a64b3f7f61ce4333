"""Renders the views of a split data set to Parquet files: grouping, sorting, folding, telling."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import pyarrow as pa

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.tables import views
from m6rec_jax.tables.assignment import Assignment, users_in_order
from m6rec_jax.tables.grouping import SORT_KEYS, Grouping, group_batches, groups_of
from m6rec_jax.tables.near_candidates import CountedTogether, NearCandidates
from m6rec_jax.tables.nearness import FORMAT as NEARNESS_FORMAT
from m6rec_jax.tables.nearness import Nearness, NearnessOptions
from m6rec_jax.tables.negatives import NegativeSampler
from m6rec_jax.tables.reading import Dataset
from m6rec_jax.tables.rendering import Renderer, RowWriter, part_of, told_events
from m6rec_jax.tables.schema import SPEC_FILE
from m6rec_jax.tables.sorting import sorted_batches
from m6rec_jax.tables.statistics import Statistics, StatisticsOptions, TakesEvents, as_of
from m6rec_jax.tables.statistics_files import FORMAT as STATISTICS_FORMAT
from m6rec_jax.tables.template_needs import checked_template
from m6rec_jax.text.records import Event, Item
from m6rec_jax.text.templates import DatasetTemplate

DEFAULT_NEGATIVES = 4


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is rendered and how. Set in gin: `PrepareOptions.group_size = 8`.

    Attributes:
      views: which of `views.VIEWS` and `views.FURTHER_VIEWS`; and of `views.WRITING`, those that
        the template tells.
      template: entries in place of those of the data set's own template, such as
        `{"candidate": "{title}[, {awards}]"}`: see `DatasetTemplate`.
      group_size: candidates of a row of 'groups', at most.
      max_events: behaviours of a history, at most; the latest ones.
      next_items_size: items of a row of 'next_items', at most; a row of 'reranking' is about the
        first of as many.
      document_events: behaviours told in the target of a document, at most.
      document_statistics: whether candidates in documents are told with their statistics.
      max_seconds: a row later than its group's first one by more starts a new group; None: never.
      negatives: negatives sampled per positive; None: 4 where all events are positive, else 0.
      negative_power: 0 samples all items alike, 1 by popularity.
      reranking_negatives: candidates of a row of 'reranking' beside the wanted one.
      reranking_depth: they are drawn from so many of the items nearest to the history's last ones.
      seed: of the negatives.
      rows_per_file: rows of one rendered file.
      keep_rendered: keep the rendered Parquet files.
      sort_rows: groups that are sorted in memory at a time, at most.
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
    rows_per_file: int = 100_000
    keep_rendered: bool = False
    sort_rows: int = 200_000


class RenderJob:
    """Renders views of one data set under one assignment of its events.

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
        """Statistics that hold no event yet; with `of_history` only what a history may tell."""
        options = self.statistics_options
        if of_history:
            options = _told_only(options, self.template.profile_template.fields)
        return Statistics.for_dataset(self.dataset.spec, options)

    def told_events(self) -> Iterator[tuple[Event, Item, bool]]:
        """What statistics may hold, in the order of time."""
        visible = self.assignment.split.visible_parts
        return told_events(self.dataset, self.assignment.codes, visible)

    def grouping(self, view: str) -> Grouping:
        """How the rows of a view are grouped."""
        options = self.options
        size = {
            "groups": max(1, options.group_size // (1 + self.negatives)),
            "next_items": options.next_items_size,
            "reranking": options.next_items_size,
            "documents": options.document_events,
        }.get(view, 1)
        return Grouping(
            size=size,
            max_events=options.max_events,
            strict=view not in ("next_items", "reranking"),
            max_seconds=options.max_seconds,
            with_seen=view == "reranking" or (view == "groups" and self.negatives > 0),
        )

    def settings(self, view: str) -> list[Any]:
        """All that the rows of a view depend on beside the data set and its split (for JSON)."""
        if view == "catalogue":
            return [view]
        found: list[Any] = [
            view,
            STATISTICS_FORMAT,
            dataclasses.asdict(self.statistics_options),
            dataclasses.asdict(self.grouping(view)),
        ]
        if view == "groups" and self.negatives:
            found.append([self.negatives, self.options.negative_power, self.options.seed])
        if view == "documents":
            found.append(self.options.document_statistics)
        if view == "reranking":
            drawn = (self.options.reranking_negatives, self.options.reranking_depth)
            near = dataclasses.asdict(NearnessOptions())
            found.append([NEARNESS_FORMAT, near, *drawn, self.options.seed])
        return found

    def render(self, view: str, folder: Path) -> tuple[dict[str, Any], Statistics | None]:
        """Writes the rows of a view to Parquet files in `folder`.

        Returns:
          what the manifest says about the view, and the statistics after the last training event
          (None for the catalogue and for texts to write, which tell few or none of them).

        Raises:
          DataError: a record lacks what its template needs, or no row is to be made.
        """
        of_history = view in views.WRITING or view == "reranking"
        statistics = self.new_statistics(of_history)
        sampler = self._sampler() if view == "groups" else None
        near = self._near_candidates() if view == "reranking" else None
        renderer = Renderer(
            self.dataset.user_records,
            self.dataset.item_records,
            self.template,
            self.dataset.spec.label,
            statistics,
            sampler,
            self.negatives,
            self.options.document_statistics,
            near,
        )
        writer = RowWriter(folder, view, self.options.rows_per_file)
        entry: dict[str, Any] = {}
        if view == "catalogue":
            for row in renderer.catalogue_rows():
                writer.write("train", row)
        else:
            if view == "documents":
                held_out = self.assignment.held_out
                for item, held in zip(self.dataset.item_records, held_out, strict=True):
                    if not held:
                        writer.write("train", renderer.item_document(item))
            grouping = self.grouping(view)
            entry["grouping"] = dataclasses.asdict(grouping)
            counted: TakesEvents = statistics
            if near is not None:
                counted = CountedTogether(statistics, near.nearness, self.dataset.item_records)
            self._render_groups(view, grouping, counted, renderer, writer)
        if near is not None:
            near.nearness.save(folder)
        writer.close()
        if not writer.num_rows:
            raise DataError(
                f"{self.dataset.spec.name!r} has no row for the view {view!r}: nothing that a user "
                "liked has what the template wants to tell"
            )
        entry["rows"] = writer.num_rows
        if sampler is not None and sampler.sampling_rate is not None:
            entry["negatives"] = {
                "per_positive": self.negatives,
                "power": self.options.negative_power,
                "seed": self.options.seed,
                "sampling_rate": sampler.sampling_rate,
            }
        return entry, None if view == "catalogue" or of_history else statistics

    def _render_groups(
        self,
        view: str,
        grouping: Grouping,
        statistics: TakesEvents,
        renderer: Renderer,
        writer: RowWriter,
    ) -> None:
        codes = self.assignment.codes
        total = 0

        def counted(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            nonlocal total
            for batch in batches:
                total += batch.num_rows
                yield batch

        batches = sorted_batches(
            counted(
                group_batches(
                    users_in_order(self.dataset),
                    codes,
                    grouping,
                    visible_parts=self.assignment.split.visible_parts,
                )
            ),
            SORT_KEYS,
            batch_size=1_024,
            memory_rows=self.options.sort_rows,
        )
        groups = (group for batch in batches for group in groups_of(batch))
        bar = progress_bar(desc=f"rendering {view}", unit=" rows", disable=not self._progress)
        with bar:
            for group in as_of(statistics, self.told_events(), groups, lambda g: g.time):
                row = renderer.row(view, group)
                if row is not None:
                    writer.write(part_of(group), row)
                if bar.total is None:  # sorting has read all groups by now
                    bar.total = total
                bar.update()

    def _near_candidates(self) -> NearCandidates:
        items = self.dataset.item_records
        return NearCandidates(
            Nearness(len(items)),
            [self.template.item(item) for item in items],
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
    """The data set's template, and the statistics that it can tell.

    Pairs of items are not counted, and factors not fitted, for a template that does not ask for
    them: they are most of the work.
    """
    spec = dataset.spec
    where = str(dataset.directory / SPEC_FILE)
    statistics = Statistics.for_dataset(spec, options)
    template = checked_template(spec, statistics, where)
    told = (*template.candidate_template.fields, *template.profile_template.fields)
    return template, _told_only(statistics.options, told)


def _told_only(options: StatisticsOptions, told: Collection[str]) -> StatisticsOptions:
    """Options without what costs most of the work, unless it is told."""
    of_neighbours = {"user_neighbours_percent", "user_taste_difference", "user_neighbours_times"}
    return dataclasses.replace(
        options,
        neighbours=options.neighbours and not of_neighbours.isdisjoint(told),
        factors=options.factors if "user_expected_value" in told else 0,
    )

"""`m6rec data prepare`: a data set folder becomes a TFDS data set of rendered text.

For every view: group the rows of each user, sort the groups by time, fold the training events into
the statistics in the order of time and render each group when the fold reaches its moment, write
the rows as Parquet, and let the TFDS builder turn these into shards.

Events are streamed and sorted through disk; in memory are the users and items tables, one byte per
event, the statistics, and a few thousand rows. Each finished step is on disk with the fingerprint
of everything it depends on, so a run that was killed goes on from the last one, and a run with
other options does again only what they change. The same input gives the same bytes of records.

Who may see what is defined in `tables.splits`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import pyarrow as pa
from tqdm import tqdm

from m6rec_jax import __version__
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.tables import views
from m6rec_jax.tables.assignment import Assignment, assign, users_in_order
from m6rec_jax.tables.grouping import SORT_KEYS, Grouping, group_batches, groups_of
from m6rec_jax.tables.negatives import NegativeSampler
from m6rec_jax.tables.prepared import (
    MANIFEST,
    Prepared,
    folder_of,
    write_catalogue,
    write_manifest,
)
from m6rec_jax.tables.reading import Dataset
from m6rec_jax.tables.rendering import Renderer, RowWriter, part_of, training_events
from m6rec_jax.tables.schema import SPEC_FILE
from m6rec_jax.tables.sorting import sorted_batches
from m6rec_jax.tables.splits import (
    CONTEXT,
    PARTS,
    STATISTICS_PARTS,
    VISIBLE_PARTS,
    Split,
    part_counts,
)
from m6rec_jax.tables.statistics import Statistics, StatisticsOptions, as_of
from m6rec_jax.text.templates import DatasetTemplate

log = logging.getLogger(__name__)

# Raise it when the rendering changes, so that data prepared before are rendered again.
FORMAT = 1
DEFAULT_NEGATIVES = 4


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is rendered and how. Set in gin: `PrepareOptions.group_size = 8`.

    Attributes:
      views: which of `views.VIEWS`.
      group_size: candidates of a row of 'groups', at most.
      max_events: behaviours of a history, at most; the latest ones.
      next_items_size: items of a row of 'next_items', at most.
      document_events: behaviours told in the target of a document, at most.
      document_statistics: whether candidates in documents are told with their statistics.
      max_seconds: a row later than its group's first one by more starts a new group; None: never.
      statistics_as_of: 'impression': statistics end before each group's first row, whatever its
        part. 'training': rows of validation and test are told the statistics after the last
        training event, which is what a server that loads them tells. Training rows always get the
        former. Where the training part is not cut off at a time (per-user splits), 'training' lets
        a test row see *training* events later than itself, as the parameters of any model trained
        on that part do.
      negatives: negatives sampled per positive; None: 4 where all events are positive, else 0.
      negative_power: 0 samples all items alike, 1 by popularity.
      seed: of the negatives.
      rows_per_file: rows of one rendered file.
      keep_rendered: keep the rendered Parquet files.
      sort_rows: rows of one group or event stream that are sorted in memory at a time.
    """

    views: Sequence[str] = views.VIEWS
    group_size: int = 8
    max_events: int = 50
    next_items_size: int = 4
    document_events: int = 4
    document_statistics: bool = True
    max_seconds: float | None = None
    statistics_as_of: str = "impression"
    negatives: int | None = None
    negative_power: float = 0.5
    seed: int = 0
    rows_per_file: int = 100_000
    keep_rendered: bool = False
    sort_rows: int = 200_000


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

    Args:
      dataset_dir: the data set folder.
      out: the TFDS data_dir to write to; may hold other data sets and splits.
      split: name of a split, with options where wanted: see `splits.Split.parse`.
      options: what is rendered; None for gin's `PrepareOptions` or the defaults.
      statistics_options: None for gin's `StatisticsOptions` or the defaults.
      progress: whether to show a bar.

    Returns:
      what was written.

    Raises:
      DataError: something is wrong with the folder, there is no such split or view, a part is
        empty, or a record lacks what its template needs.
      ConfigError: the template names a field that does not exist (the message names those that
        do), or an option has an impossible value.
    """
    options = options or PrepareOptions()
    wanted = tuple(views.check_view(view) for view in options.views)
    dataset = Dataset.open(dataset_dir)
    parsed = Split.parse(split, dataset.spec.splits)
    job = _Job(dataset, Path(out), parsed, options, statistics_options, progress)
    for view in wanted:
        job.make(view)
    return job.finish()


class _Job:
    """One run of `prepare`."""

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        split: Split,
        options: PrepareOptions,
        statistics_options: StatisticsOptions | None,
        progress: bool,
    ) -> None:
        self.dataset, self.out, self.split, self.options = dataset, out, split, options
        self.progress = progress
        self.folder = folder_of(out, dataset.spec.name, split.name)
        self.template, self.statistics_options = _checked_template(dataset, statistics_options)
        labelled = dataset.spec.label.at_least is not None
        self.negatives = options.negatives
        if self.negatives is None:
            self.negatives = 0 if labelled else DEFAULT_NEGATIVES
        if self.negatives and labelled:
            raise ConfigError(
                f"negatives={self.negatives}, but {dataset.spec.name!r} has labels: its own "
                "negative events are better than sampled ones; set negatives to 0"
            )
        self.source = self._fingerprint(
            FORMAT, __version__, dataset_fingerprint(dataset), split.kind, dict(split.options)
        )
        self._assignment: Assignment | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest = self._old_manifest()

    # ---- steps

    def make(self, view: str) -> None:
        """Renders and builds one view, unless that is done."""
        fingerprint = self._view_fingerprint(view)
        target = views.tfds_folder(self.out, self.dataset.spec.name, self.split.name, view)
        done = self.manifest["views"].get(view, {}).get("fingerprint") == fingerprint
        if done and (target / "dataset_info.json").is_file():
            log.info("%s is prepared already", target)
            return
        self.manifest["views"].pop(view, None)
        rendered = self.folder / "rendered" / view
        mark = rendered / "done.json"
        entry = _read_json(mark)
        if entry is None or entry["fingerprint"] != fingerprint:
            shutil.rmtree(rendered, ignore_errors=True)
            rendered.mkdir(parents=True)
            entry = {"fingerprint": fingerprint, **self._render(view, rendered)}
            mark.write_text(json.dumps(entry), "utf-8")
        self._build(view, rendered, target)
        self.manifest["views"][view] = entry
        write_manifest(self.folder, self.manifest)
        if not self.options.keep_rendered:
            shutil.rmtree(rendered)

    def finish(self) -> Prepared:
        """Writes what all views share."""
        fingerprint = self._statistics_fingerprint()
        path = self.folder / "statistics"
        entry = self.manifest.get("statistics", {})
        if entry.get("fingerprint") != fingerprint or not (path / "statistics.json").is_file():
            statistics = self._new_statistics()
            for event, item in self._training_events():
                statistics.update(event, item)
            self._save_statistics(statistics)
        items = self.dataset.item_records
        columns = list(self.dataset.spec.items.columns)
        write_catalogue(
            self.folder / "catalogue.parquet",
            items,
            self.dataset.items().select(columns),
            [self.template.item(item) for item in items],
            self.assignment.held_out,
        )
        rendered = self.folder / "rendered"
        if rendered.is_dir() and not any(rendered.iterdir()):
            rendered.rmdir()
        self.manifest |= self._description()
        write_manifest(self.folder, self.manifest)
        return Prepared(self.out, self.manifest)

    @property
    def assignment(self) -> Assignment:
        """The parts, assigned when they are first needed."""
        if self._assignment is None:
            self._assignment = assign(self.dataset, self.split)
        return self._assignment

    def _render(self, view: str, folder: Path) -> dict[str, Any]:
        """Writes the rows of a view to `folder`; returns what the manifest says about it."""
        statistics = self._new_statistics()
        sampler = self._sampler() if view == "groups" else None
        renderer = Renderer(
            self.dataset.user_records,
            self.dataset.item_records,
            self.template,
            self.dataset.spec.label,
            statistics,
            sampler,
            self.negatives or 0,
            self.options.document_statistics,
        )
        writer = RowWriter(folder, view, self.options.rows_per_file)
        entry: dict[str, Any] = {}
        if view == "catalogue":
            for row in renderer.catalogue_rows():
                writer.write("train", row)
        else:
            if view == "documents":
                for item, held_out in zip(
                    self.dataset.item_records, self.assignment.held_out, strict=True
                ):
                    if not held_out:
                        writer.write("train", renderer.item_document(item))
            grouping = self._grouping(view)
            entry["grouping"] = dataclasses.asdict(grouping)
            self._render_groups(view, grouping, statistics, renderer, writer)
            self._save_statistics(statistics)
        writer.close()
        entry["rows"] = writer.num_rows
        if sampler is not None and sampler.sampling_rate is not None:
            entry["negatives"] = {
                "per_positive": self.negatives,
                "power": self.options.negative_power,
                "seed": self.options.seed,
                "sampling_rate": sampler.sampling_rate,
            }
        return entry

    def _render_groups(
        self,
        view: str,
        grouping: Grouping,
        statistics: Statistics,
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
            counted(group_batches(users_in_order(self.dataset), codes, grouping)),
            SORT_KEYS,
            batch_size=1_024,
            memory_rows=self.options.sort_rows,
        )
        groups = (group for batch in batches for group in groups_of(batch))
        with tqdm(desc=f"rendering {view}", unit=" rows", disable=not self.progress) as bar:
            for group in as_of(statistics, self._training_events(), groups, lambda g: g.as_of):
                writer.write(part_of(group), renderer.row(view, group))
                if bar.total is None:  # sorting has read all groups by now
                    bar.total = total
                bar.update()

    def _build(self, view: str, rendered: Path, target: Path) -> None:
        """Runs the TFDS builder over the rendered files."""
        # Imported here: tensorflow_datasets takes seconds to import.
        import tensorflow_datasets as tfds

        from m6rec_jax.tables.recommender_text import recommender_text_dataset_builder as module

        shutil.rmtree(target, ignore_errors=True)
        for left_over in target.parent.glob(f"{target.name}.incomplete*"):
            shutil.rmtree(left_over, ignore_errors=True)
        config = module.RecommenderTextConfig(name=target.parent.name, rendered=str(rendered))
        with tqdm(desc=f"writing {view}", total=1, disable=not self.progress) as bar:
            with _quiet(tfds):
                builder = module.Builder(config=config, data_dir=str(self.out))
                builder.download_and_prepare(
                    download_dir=str(rendered / "downloads"),  # stays empty
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                )
            bar.update()

    # ---- what the steps need

    def _grouping(self, view: str) -> Grouping:
        options, negatives = self.options, self.negatives or 0
        size = {
            "groups": max(1, options.group_size // (1 + negatives)),
            "next_items": options.next_items_size,
            "documents": options.document_events,
        }[view]
        return Grouping(
            size=size,
            max_events=options.max_events,
            strict=view != "next_items",
            max_seconds=options.max_seconds,
            with_seen=view == "groups" and negatives > 0,
            statistics_as_of=options.statistics_as_of,
        )

    def _sampler(self) -> NegativeSampler | None:
        if not self.negatives:
            return None
        ids = [item.id for item in self.dataset.item_records]
        never = self.assignment.held_out.nonzero()[0].tolist()
        return NegativeSampler(ids, self.options.negative_power, self.options.seed, never)

    def _new_statistics(self) -> Statistics:
        return Statistics.for_dataset(self.dataset.spec, self.statistics_options)

    def _training_events(self) -> Iterator[Any]:
        return training_events(self.dataset, self.assignment.codes, STATISTICS_PARTS)

    def _save_statistics(self, statistics: Statistics) -> None:
        fingerprint = self._statistics_fingerprint()
        if self.manifest.get("statistics", {}).get("fingerprint") == fingerprint:
            return
        statistics.save(self.folder / "statistics")
        self.manifest["statistics"] = {"fingerprint": fingerprint, "events": statistics.count}
        write_manifest(self.folder, self.manifest)

    # ---- manifest

    def _old_manifest(self) -> dict[str, Any]:
        """What an earlier run left and this one can go on from."""
        old = _read_json(self.folder / MANIFEST) or {}
        return {"views": old.get("views", {}), "statistics": old.get("statistics", {})}

    def _description(self) -> dict[str, Any]:
        """What the manifest says beside views and statistics."""
        names = dict(enumerate(PARTS)) | {CONTEXT: "context"}
        return {
            "format": FORMAT,
            "version": __version__,
            "dataset": self.dataset.spec.name,
            "dataset_spec": self.dataset.spec.to_dict(),
            "dataset_fingerprint": dataset_fingerprint(self.dataset),
            "split": {
                "name": self.split.name,
                "kind": self.split.kind,
                "options": dict(self.split.options),
            },
            "options": dataclasses.asdict(self.options) | {"views": list(self.options.views)},
            "statistics_options": dataclasses.asdict(self.statistics_options),
            "counts": {
                "users": len(self.dataset.user_records),
                "items": len(self.dataset.item_records),
                "events": part_counts(self.assignment.codes),
                "held_out_items": int(self.assignment.held_out.sum()),
                "cold_users": self.assignment.num_cold_users,
            },
            "visible": {
                "history": {
                    names[part]: [names[code] for code in seen]
                    for part, seen in VISIBLE_PARTS.items()
                },
                "history_until": "strictly before the time of a group's first row; in "
                "'next_items' before that row in the user's order",
                "statistics": [names[code] for code in STATISTICS_PARTS],
                "statistics_until": "strictly before the time of a group's first row"
                if self.options.statistics_as_of == "impression"
                else "as above for training rows, the last training event for the others",
            },
        }

    def _fingerprint(self, *parts: Any) -> str:
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _statistics_fingerprint(self) -> str:
        return self._fingerprint(self.source, dataclasses.asdict(self.statistics_options))

    def _view_fingerprint(self, view: str) -> str:
        if view == "catalogue":
            return self._fingerprint(self.source, view)
        sampling = (self.negatives, self.options.negative_power, self.options.seed)
        return self._fingerprint(
            self._statistics_fingerprint(),
            view,
            dataclasses.asdict(self._grouping(view)),
            sampling if view == "groups" and self.negatives else None,
            self.options.document_statistics if view == "documents" else None,
        )


def dataset_fingerprint(dataset: Dataset) -> str:
    """SHA-256 over dataset.json and the content of all files of a data set."""
    digest = hashlib.sha256()
    files = (*dataset.user_files, *dataset.item_files, *dataset.event_files)
    for path in (dataset.directory / SPEC_FILE, *files):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _checked_template(
    dataset: Dataset, options: StatisticsOptions | None
) -> tuple[DatasetTemplate, StatisticsOptions]:
    """The data set's template, and the statistics that it can tell.

    Pairs of items are not counted for a template that does not ask for them: they are most of the
    work.
    """
    spec = dataset.spec
    where = str(dataset.directory / SPEC_FILE)
    template = DatasetTemplate.parse(spec.template, where)
    statistics = Statistics.for_dataset(spec, options)
    names = statistics.names()
    try:
        template.validate(spec.users.columns, spec.items.columns, names)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    told = {*template.candidate_template.fields, *template.profile_template.fields}
    asked = told & {"user_neighbours_percent", "user_closest_percent", "user_neighbours_times"}
    found = statistics.options
    return template, found if asked else dataclasses.replace(found, neighbours=False)


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keeps TFDS from printing: it announces downloads that do not happen."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove it and prepare again") from error
    return found

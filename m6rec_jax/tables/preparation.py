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

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin

from m6rec_jax import __version__
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.hashing import hash_files, json_sha256
from m6rec_jax.tables import views
from m6rec_jax.tables.assignment import assign, train_counts
from m6rec_jax.tables.building import build_view
from m6rec_jax.tables.nearness import FILE as NEARNESS
from m6rec_jax.tables.prepared import (
    CATALOGUE,
    MANIFEST,
    Prepared,
    folder_of,
    write_catalogue,
    write_manifest,
)
from m6rec_jax.tables.reading import Dataset
from m6rec_jax.tables.render_job import PrepareOptions, RenderJob, with_template
from m6rec_jax.tables.schema import SPEC_FILE
from m6rec_jax.tables.splits import (
    CONTEXT,
    PARTS,
    STATISTICS_PARTS,
    USER_STATISTICS_PARTS,
    VISIBLE_PARTS,
    Split,
    part_counts,
)
from m6rec_jax.tables.statistics import Statistics, StatisticsOptions
from m6rec_jax.tables.statistics_files import FORMAT as STATISTICS_FORMAT
from m6rec_jax.tables.template_needs import silent_items

__all__ = ["PrepareOptions", "dataset_fingerprint", "prepare"]

log = logging.getLogger(__name__)
# Views whose rows a model scores candidate by candidate.
_OF_CANDIDATES = ("groups", "reranking")

# Raise it when the rendering changes, so that data prepared before are rendered again.
FORMAT = 1


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
        empty, a record lacks what its template needs, or the template says nothing of an item.
      ConfigError: the template has an entry or names a field that does not exist (the message
        names those that do), or an option has an impossible value.
    """
    options = options or PrepareOptions()
    known = (*views.VIEWS, *views.FURTHER_VIEWS, *views.WRITING)
    wanted = tuple(views.check_view(view, known) for view in options.views)
    dataset = with_template(Dataset.open(dataset_dir), options.template)
    parsed = Split.parse(split, dataset.spec.splits)
    job = _Job(dataset, Path(out), parsed, options, statistics_options, progress)
    for view in wanted:
        if view in views.WRITING and view not in job.job.template.writing:
            raise ConfigError(
                f"{dataset.directory / SPEC_FILE}: 'template.writing' has no {view!r}, so there is "
                f"no text to prepare (it has: {', '.join(job.job.template.writing) or 'none'})"
            )
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
        self.out, self.split, self.progress = out, split, progress
        self.keep_rendered = options.keep_rendered
        self.job = RenderJob(dataset, assign(dataset, split), options, statistics_options, progress)
        self.item_texts = self._item_texts()
        self.source = _fingerprint(
            FORMAT,
            __version__,
            dataset_fingerprint(dataset),
            split.kind,
            dict(split.options),
            *([options.template] if options.template else []),
            *([split.visible_parts] if split.visible_parts != VISIBLE_PARTS else []),
        )
        self.folder = folder_of(out, dataset.spec.name, split.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        old = _read_json(self.folder / MANIFEST) or {}
        # What an earlier run left is of use only if it came from the same data.
        same = old.get("source") == self.source
        if not same:
            # Views of other data must not be read beside it; `finish` writes it anew.
            for name in (CATALOGUE, NEARNESS):
                (self.folder / name).unlink(missing_ok=True)
        self.manifest: dict[str, Any] = {
            **self._description(),
            "source": self.source,
            "views": dict(old["views"]) if same else {},
            "statistics": dict(old["statistics"]) if same else {},
        }

    # ---- steps

    def make(self, view: str) -> None:
        """Renders and builds one view, unless that is done."""
        if view in _OF_CANDIDATES and not self.job.template.candidate_template.source.strip():
            raise DataError(
                f"{self.job.dataset.directory / SPEC_FILE}: the template 'candidate' is empty, and "
                f"the view '{view}' is of candidates: leave it out of PrepareOptions.views, or say "
                "how they are told"
            )
        fingerprint = _fingerprint(self.source, *self.job.settings(view))
        target = views.tfds_folder(self.out, self.job.dataset.spec.name, self.split.name, view)
        done = self.manifest["views"].get(view, {}).get("fingerprint") == fingerprint
        if done and (target / "dataset_info.json").is_file():
            log.info("%s is prepared already", target)
            return
        if self.manifest["views"].pop(view, None) is not None:
            # Before its rows are replaced: killed in between, it counts as not prepared.
            write_manifest(self.folder, self.manifest)
        rendered = self.folder / "rendered" / view
        mark = rendered / "done.json"
        entry = _read_json(mark)
        if entry is None or entry["fingerprint"] != fingerprint:
            shutil.rmtree(rendered, ignore_errors=True)
            rendered.mkdir(parents=True)
            described, statistics = self.job.render(view, rendered)
            if statistics is not None:
                self._save_statistics(statistics)
            entry = {"fingerprint": fingerprint, **described}
            write_atomically(mark, json.dumps(entry))
        build_view(self.out, rendered, target, self.progress)
        if (rendered / NEARNESS).is_file():  # what serving ranks candidates by
            (rendered / NEARNESS).replace(self.folder / NEARNESS)
        self.manifest["views"][view] = entry
        write_manifest(self.folder, self.manifest)
        if not self.keep_rendered:
            shutil.rmtree(rendered)

    def finish(self) -> Prepared:
        """Writes what all views share."""
        fingerprint = self._statistics_fingerprint()
        path = self.folder / "statistics"
        entry = self.manifest["statistics"]
        if entry.get("fingerprint") != fingerprint or not (path / "statistics.json").is_file():
            statistics = self.job.new_statistics()
            for event, item, of_user_only in self.job.told_events():
                statistics.update(event, item, of_user_only=of_user_only)
            self._save_statistics(statistics)
        items = self.job.dataset.item_records
        columns = list(self.job.dataset.spec.items.columns)
        write_catalogue(
            self.folder / CATALOGUE,
            items,
            self.job.dataset.items().select(columns),
            self.item_texts,
            self.job.assignment.held_out,
            train_counts(self.job.dataset, self.job.assignment.codes),
        )
        rendered = self.folder / "rendered"
        if rendered.is_dir() and not any(rendered.iterdir()):
            rendered.rmdir()
        write_manifest(self.folder, self.manifest)
        return Prepared.open(self.out, self.job.dataset.spec.name, self.split.name)

    def _item_texts(self) -> list[str]:
        """What the template says of each item; a model can read no empty text."""
        dataset = self.job.dataset
        for name, silent in silent_items(self.job.template, dataset.item_records).items():
            raise DataError(
                f"{dataset.directory / SPEC_FILE}: the template '{name}' says nothing of "
                f"{len(silent)} items, the first of which is {silent[0]!r}: let it name a column "
                f"that all items have, or begin with a word"
            )
        return [self.job.template.item(item) for item in dataset.item_records]

    def _save_statistics(self, statistics: Statistics) -> None:
        fingerprint = self._statistics_fingerprint()
        if self.manifest["statistics"].get("fingerprint") == fingerprint:
            return
        statistics.save(self.folder / "statistics")
        self.manifest["statistics"] = {"fingerprint": fingerprint, "events": statistics.count}
        write_manifest(self.folder, self.manifest)

    def _description(self) -> dict[str, Any]:
        """What the manifest says beside views and statistics."""
        names = dict(enumerate(PARTS)) | {CONTEXT: "context"}
        return {
            "format": FORMAT,
            "version": __version__,
            "dataset": self.job.dataset.spec.name,
            "dataset_spec": self.job.dataset.spec.to_dict(),
            "dataset_fingerprint": dataset_fingerprint(self.job.dataset),
            "split": {
                "name": self.split.name,
                "kind": self.split.kind,
                "options": dict(self.split.options),
            },
            "options": dataclasses.asdict(self.job.options)
            | {"views": list(self.job.options.views)},
            "statistics_options": dataclasses.asdict(self.job.statistics_options),
            "counts": {
                "users": len(self.job.dataset.user_records),
                "items": len(self.job.dataset.item_records),
                "events": part_counts(self.job.assignment.codes),
                "held_out_items": int(self.job.assignment.held_out.sum()),
                "cold_users": self.job.assignment.num_cold_users,
            },
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

    def _statistics_fingerprint(self) -> str:
        options = dataclasses.asdict(self.job.statistics_options)
        return _fingerprint(self.source, STATISTICS_FORMAT, options)


def _fingerprint(*parts: Any) -> str:
    return json_sha256(parts)


def dataset_fingerprint(dataset: Dataset) -> str:
    """SHA-256 over dataset.json and the content of all files of a data set."""
    files = (*dataset.user_files, *dataset.item_files, *dataset.event_files)
    return hash_files((dataset.directory / SPEC_FILE, *files)).hexdigest()


def _read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove it and prepare again") from error
    return found

"""A prepared data set on disk: the manifest, the statistics, the catalogue, the TFDS folders.

    DATA_DIR/
      <dataset>.<split>/prepare.json       options, counts, fingerprints, who may see what
      <dataset>.<split>/statistics/        state after the last training event
      <dataset>.<split>/co_occurrence.npz      with the views 'next_items' and 'reranking'
      <dataset>.<split>/ease.npz               likewise
      <dataset>.<split>/catalogue.parquet  item_index, item_id, text, held_out, attributes
      <dataset>.<split>/events/            events that training rows may see, for updates
      recommender_text/<dataset>.<split>.<view>/1.0.0/   TFRecord shards, read by seqio and TFDS

Light: serving opens it without tensorflow.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data import views
from m6rec_jax.data.co_occurrence import CoOccurrence
from m6rec_jax.data.ease import Ease
from m6rec_jax.data.negatives import CHOSEN, NOT_CHOSEN
from m6rec_jax.data.schema import COUNT
from m6rec_jax.data.splits import STATISTICS_PARTS
from m6rec_jax.data.statistics import Statistics
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file, write_atomically
from m6rec_jax.io.buckets import bucket_errors, kept_copy, path_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.io.hashing import hash_files
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate

log = logging.getLogger(__name__)

MANIFEST = "prepare.json"
CATALOGUE = "catalogue.parquet"
STATISTICS = "statistics"
EVENTS = "events"
# Of `EVENTS`; every update adds a file of its own.
PREPARED_EVENTS = "prepared.parquet"
EVENT_COLUMNS = ["row", "user", "item", "time", "value", "part"]
# What an update has ready, see `io.atomic.staged_files`.
UPDATE = "update"
VOCABULARY = "vocabulary.model"


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """All items in the order of the items table.

    Attributes:
      items: with their attributes.
      texts: as the item tower reads them.
      held_out: which items no training text mentions `[items]` bool.
      train_counts: events of each item that count for everybody, those of training and those before
        it, `[items]` int64.
    """

    items: Sequence[Item]
    texts: Sequence[str]
    held_out: np.ndarray
    train_counts: np.ndarray

    @functools.cached_property
    def kinds(self) -> list[tuple[str, ...]]:
        """Of each item the values of the catalogue's first column of lists, such as genres."""
        every = [item.attributes for item in self.items]
        lists = (name for values in every for name, v in values.items() if isinstance(v, tuple))
        column = next(lists, "")
        return [v if isinstance(v := values.get(column), tuple) else () for values in every]

    @property
    def log_frequency(self) -> np.ndarray:
        """Log of each item's share of the training events, one added to each, `[items]` float32."""
        counts = self.train_counts + 1.0
        return np.log(counts / counts.sum()).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared split of a data set. Make it with `Prepared.open`.

    Attributes:
      data_dir: the TFDS data_dir; may be the address of a bucket.
      manifest: what `prepare.json` holds.
    """

    data_dir: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, data_dir: str | os.PathLike[str], dataset: str, split: str) -> Prepared:
        """Opens what `prepare` wrote below the TFDS data_dir.

        Raises:
          DataError: this split is not prepared there (the message names those that are), or an
            update of it was cut short.
        """
        path = folder_of(data_dir, dataset, split) / MANIFEST
        with bucket_errors(path, "read"):
            if not path.is_file():
                there = sorted(str(p.parent.name) for p in path_of(data_dir).glob(f"*/{MANIFEST}"))
                wanted = path.parent.name
                raise DataError(
                    f"{data_dir} holds no prepared {wanted!r}{did_you_mean(wanted, there)} "
                    f"(there: {', '.join(there) or 'nothing'}); run `m6rec data prepare`"
                )
            text = path.read_text("utf-8")
        if (path.parent / UPDATE).exists():
            raise DataError(
                f"{path.parent}: an update was cut short, so that some files are older than "
                "others; `m6rec data update` finishes it"
            )
        try:
            return cls(path_of(data_dir), json.loads(text))
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}; prepare the data set again") from error

    @classmethod
    def find(cls, data_dir: str | os.PathLike[str], name: str) -> Prepared:
        """Opens a split by its data set's name, or by both: `corner-shop.leave_one_out`.

        Raises:
          DataError: there is none; or there are several splits, none of which is the default.
        """
        dataset, _, split = name.rpartition(".")
        if dataset and folder_of(data_dir, dataset, split).is_dir():
            return cls.open(data_dir, dataset, split)
        start = views.config_prefix(name, "")
        found = path_of(data_dir).glob(f"{glob.escape(start)}*/{MANIFEST}")
        names = sorted(path.parent.name.removeprefix(start) for path in found)
        # Splits have no dot in their names: with one it is a split of the data set `NAME.MORE`.
        splits = [split for split in names if "." not in split]
        default = "per_user_temporal"
        if default not in splits and len(splits) > 1:
            there = ", ".join(start + split for split in splits)
            raise DataError(f"{name} has several splits; name one of {there}")
        return cls.open(data_dir, name, default if default in splits or not splits else splits[0])

    @property
    def _names(self) -> tuple[str, str]:
        """Of data set and split."""
        return self.manifest["dataset"], self.manifest["split"]["name"]

    @functools.cached_property
    def folder(self) -> Path:
        """Where all but views and events lie; of a bucket, a copy on the local disk."""
        # Only some jobs read the events, which may be large.
        return kept_copy(folder_of(self.data_dir, *self._names), without=[EVENTS])

    @property
    def vocabulary_file(self) -> Path:
        """Where the data set's tasks look for their vocabulary; `prepare` does not make it."""
        return self.folder / VOCABULARY

    def tfds_folder(self, view: str) -> Path:
        """Folder of a view's TFRecord shards."""
        return views.tfds_folder(self.data_dir, *self._names, view)

    def num_rows(self, view: str) -> dict[str, int]:
        """Rows of each part of a view.

        Raises:
          DataError: the view is not prepared.
        """
        if view not in self.manifest["views"]:
            known = ", ".join(self.manifest["views"]) or "none"
            raise DataError(f"{self.folder}: view {view!r} is not prepared (prepared: {known})")
        return self.manifest["views"][view]["rows"]

    @property
    def updates(self) -> tuple[str, ...]:
        """Names of the parts that updates have added, oldest first."""
        return tuple(entry["name"] for entry in self.manifest.get("updates", ()))

    @property
    def has_template(self) -> bool:
        """Whether rows were rendered by a template; texts have none."""
        return "dataset_spec" in self.manifest

    @property
    def repeats_count(self) -> bool:
        """Whether rows want items that the user had before, and nothing is hidden from users."""
        protocol: str | None = self.manifest["dataset_spec"].get("repeats")
        return protocol == COUNT

    def outcome_words(self) -> tuple[str, str] | None:
        """Words for what came of a negative candidate and of a positive one.

        Where negatives are sampled, those of the template (there is one at most) and of what was
        not chosen. None where candidates have one label, or labels no words of their own.
        """
        template, spec = self.template(), self.manifest["dataset_spec"]
        if "label" not in spec:
            sampled = "negatives" in self.manifest["views"].get("groups", {})
            return (NOT_CHOSEN, template.outcome(None) or CHOSEN) if sampled else None
        if len(template.outcomes) < 2:
            return None
        return template.outcomes[-1].text, template.outcome(float(spec["label"]["at_least"]))

    def statistics(self) -> Statistics:
        """The statistics after the last training event."""
        return Statistics.load(self.folder / STATISTICS)

    def co_occurrence(self) -> CoOccurrence:
        """Which items occur together, after the last training event.

        Raises:
          DataError: no view with them is prepared.
        """
        if views.COUNTED.isdisjoint(self.manifest["views"]):
            raise DataError(
                f"{self.folder}: co-occurrences of items are prepared with the views "
                f"{', '.join(sorted(views.COUNTED))}, of which there is none (PrepareOptions.views)"
            )
        return CoOccurrence.load(self.folder)

    def ease(self) -> Ease:
        """What follows from all that a user had; raises DataError where it is missing."""
        return Ease.load(self.folder)

    def events(self, updates: Sequence[str] = ()) -> pa.Table:
        """Events of all parts, by user, then in the user's order.

        Their columns: `row`, `user`, `item` (indices), `time`, `value` (NaN for none), `part`, a
        code of `splits`, and `update`: 0, or the number of the update that they came with.

        Args:
          updates: those whose events are wanted, too, oldest first.

        Raises:
          DataError: a file is missing or damaged.
        """
        tables: list[pa.Table] = []
        for name in (PREPARED_EVENTS, *(f"{name}.parquet" for name in updates)):
            path = kept_copy(folder_of(self.data_dir, *self._names) / EVENTS / name)
            try:
                table = pq.read_table(path)
                number = pa.array(np.full(len(table), len(tables)))
                tables.append(table.select(EVENT_COLUMNS).append_column("update", number))
            except (OSError, pa.ArrowException, KeyError) as error:
                raise DataError(f"{path}: {error}; prepare the data set again") from error
        order = [(name, "ascending") for name in ("user", "time", "update", "row")]
        return pa.concat_tables(tables).sort_by(order)

    def known_events(self) -> pa.Table:
        """The events that training rows may see: `user`, `item` (indices), `value` (NaN for none).

        So they are those of the training part and, of few-shot splits, what else histories hold;
        those of updates are not among them. Raises DataError as `events`.
        """
        events = self.events()
        known = np.isin(events["part"].to_numpy(), STATISTICS_PARTS)
        return events.filter(pa.array(known)).select(["user", "item", "value"])

    def template(self) -> DatasetTemplate:
        """The template that all text was rendered with."""
        spec = self.manifest["dataset_spec"]["template"]
        return DatasetTemplate.parse(spec, str(self.folder / MANIFEST))

    def catalogue(self) -> Catalogue:
        """All items; raises DataError where the file is missing or damaged."""
        return read_catalogue(self.folder)


def read_catalogue(folder: str | os.PathLike[str]) -> Catalogue:
    """`Prepared.catalogue` of a folder that `prepare` wrote, wherever it was copied to."""
    path = Path(folder) / CATALOGUE
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}; prepare the data set again") from error
    ids, texts, attributes = (
        table.column(name).to_pylist() for name in ("item_id", "text", "attributes")
    )
    items = [
        Item(identifier, {name: _value(value) for name, value in (values or {}).items()})
        for identifier, values in zip(ids, attributes, strict=True)
    ]
    held_out, counts = (table.column(c).to_numpy() for c in ("held_out", "train_count"))
    return Catalogue(items, texts, held_out, counts)


def folder_of(data_dir: str | os.PathLike[str], dataset: str, split: str) -> Path:
    """Where a prepared split keeps its manifest."""
    return path_of(data_dir) / views.config_prefix(dataset, split)


def write_catalogue(
    path: Path,
    items: Sequence[Item],
    attributes: pa.Table,
    texts: Sequence[str],
    held: np.ndarray,
    train_counts: np.ndarray,
) -> None:
    """Writes `catalogue.parquet`; `attributes` are the declared columns of the items table."""
    columns = [attributes.column(name).combine_chunks() for name in attributes.column_names]
    struct = pa.StructArray.from_arrays(columns, names=attributes.column_names)
    table = pa.table(
        {
            "item_index": pa.array(range(len(items)), pa.int64()),
            "item_id": pa.array([item.id for item in items], pa.string()),
            "text": pa.array(texts, pa.string()),
            "held_out": pa.array(held),
            "train_count": pa.array(train_counts, pa.int64()),
            "attributes": struct,
        }
    )
    with atomic_file(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")


def fingerprint(*settings: Any, files: Iterable[Path] = ()) -> str:
    """SHA-256 over settings that JSON can hold, and over names and content of files."""
    digest = hash_files(files)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def old_manifest(folder: Path, dataset: str) -> dict[str, Any]:
    """What an earlier run says of a folder that is to be prepared; empty where nothing can be read.

    Raises:
      DataError: it is of a data set of another name.
    """
    try:
        found = dict(json.loads((folder / MANIFEST).read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (TypeError, ValueError) as error:
        log.warning("%s is damaged (%s), so all is prepared anew", folder / MANIFEST, error)
        return {}
    if found.get("dataset", dataset) != dataset:
        raise DataError(
            f"{folder} has another data set, {found['dataset']!r}: give {dataset!r} another name, "
            "or another output"
        )
    return found


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replaces `prepare.json` in one step."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True)
    write_atomically(folder / MANIFEST, text + "\n")


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

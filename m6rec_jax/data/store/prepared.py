"""A prepared data set on disk: the manifest, the statistics, the catalogue, the TFDS folders.

    DATA_DIR/
      <dataset>.<split>/prepare.json       `Manifest`: options, counts, fingerprints
      <dataset>.<split>/statistics/        state after the last training event
      <dataset>.<split>/co_occurrence.npz      with the view 'next_items'
      <dataset>.<split>/ease.npz               likewise
      <dataset>.<split>/catalogue.parquet  item_index, item_id, text, held_out, attributes
      <dataset>.<split>/events/            all events with their part, of updates a file each
      recommender_text/<dataset>.<split>.<view>/1.0.0/   TFRecord shards, read by seqio and TFDS

Light: serving opens it without tensorflow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.dataset.schema import COUNT
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.features.statistics import Statistics
from m6rec_jax.data.splitting.negatives import CHOSEN, NOT_CHOSEN
from m6rec_jax.data.splitting.splits import STATISTICS_PARTS
from m6rec_jax.data.store import views
from m6rec_jax.data.store.manifest import MANIFEST, Manifest
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file
from m6rec_jax.io.buckets import (
    bucket_copies,
    bucket_errors,
    check_writable,
    in_bucket,
    kept_copy,
    path_of,
)
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate

CATALOGUE = "catalogue.parquet"
STATISTICS = "statistics"
EVENTS = "events"
# Of `EVENTS`; every update adds a file of its own.
PREPARED_EVENTS = "prepared.parquet"
EVENT_COLUMNS = ["row", "user", "item", "time", "value", "part"]
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
    manifest: Manifest

    @classmethod
    def open(cls, data_dir: str | os.PathLike[str], dataset: str, split: str) -> Prepared:
        """Opens what `prepare` wrote below the TFDS data_dir; raises DataError, with the names of
        those that are prepared, where this split is not.
        """
        folder = folder_of(data_dir, dataset, split)
        with bucket_errors(folder, "read"):
            if not (folder / MANIFEST).is_file():
                there = sorted(str(p.parent.name) for p in path_of(data_dir).glob(f"*/{MANIFEST}"))
                raise DataError(
                    f"{data_dir} holds no prepared {folder.name!r}"
                    f"{did_you_mean(folder.name, there)} "
                    f"(there: {', '.join(there) or 'nothing'}); run `m6rec data prepare`"
                )
            return cls(path_of(data_dir), Manifest.read(folder))

    @classmethod
    def find(cls, data_dir: str | os.PathLike[str], name: str) -> Prepared:
        """Opens a split by its data set's name, or by both: `corner-shop.leave_one_out`. Raises
        DataError where there is none, or several, none of which is the default.
        """
        there = [path.parent.name for path in path_of(data_dir).glob(f"*/{MANIFEST}")]
        default = views.config_prefix(name, "per_user_temporal")
        # Splits have no dot in their names: with one it is a split of the data set `NAME.MORE`.
        ends = default.rpartition(".")[0]
        several = sorted(one for one in there if one.rpartition(".")[0] == ends) or [default]
        if name not in there and default not in several and len(several) > 1:
            raise DataError(f"{name} has several splits; name one of {', '.join(several)}")
        chosen = default if default in several else several[0]
        return cls.open(data_dir, *(name if name in there else chosen).rsplit(".", 1))

    @functools.cached_property
    def folder(self) -> Path:
        """Where all but views and events lie; of a bucket, a copy on the local disk."""
        # Only some jobs read the events, which may be large.
        return kept_copy(self.location, without=[EVENTS])

    @property
    def location(self) -> Path:
        """Where the manifest lies; of a bucket, the address."""
        return folder_of(self.data_dir, self.manifest.dataset, self.manifest.split)

    @property
    def vocabulary_file(self) -> Path:
        """Where the data set's tasks look for their vocabulary; `prepare` does not make it."""
        return self.folder / VOCABULARY

    def tfds_folder(self, view: str) -> Path:
        """Folder of a view's TFRecord shards."""
        return views.tfds_folder(self.data_dir, self.manifest.dataset, self.manifest.split, view)

    def num_rows(self, view: str) -> dict[str, int]:
        """Rows of each split of a view; raises DataError where it is not prepared."""
        prepared = self.manifest.views
        if view not in prepared:
            there = ", ".join(prepared) or "none"
            raise DataError(f"{self.folder}: view {view!r} is not prepared (prepared: {there})")
        return prepared[view].rows

    @property
    def updates(self) -> tuple[str, ...]:
        """Names of the parts that updates have added, oldest first."""
        return tuple(update.name for update in self.manifest.updates)

    @property
    def has_template(self) -> bool:
        """Whether rows were rendered by a template; texts have none."""
        return self.manifest.dataset_spec is not None

    @property
    def dataset_spec(self) -> dict[str, Any]:
        """The object of `dataset.json`; raises DataError for texts."""
        if self.manifest.dataset_spec is None:
            raise DataError(f"{self.folder} holds texts, not users, items and events")
        return self.manifest.dataset_spec

    @property
    def repeats_count(self) -> bool:
        """Whether rows want items that the user had before, and nothing is hidden from users."""
        return bool(self.dataset_spec.get("repeats") == COUNT)

    def outcome_words(self) -> tuple[str, str] | None:
        """Words for what came of a negative candidate and of a positive one.

        None where candidates have one label, or labels no words of their own.
        """
        template, spec = self.template(), self.dataset_spec
        if "label" not in spec:
            sampled = self.manifest.view("groups").negatives
            return (NOT_CHOSEN, template.outcome(None) or CHOSEN) if sampled else None
        if len(template.outcomes) < 2:
            return None
        return template.outcomes[-1].text, template.outcome(float(spec["label"]["at_least"]))

    def statistics(self) -> Statistics:
        """The statistics after the last training event."""
        return Statistics.load(self.folder / STATISTICS)

    def co_occurrence(self) -> CoOccurrence:
        """Which items occur together; raises DataError where no view with them is prepared."""
        return CoOccurrence.load(self.folder)

    def ease(self) -> Ease:
        """What follows from all that a user had; raises DataError as `co_occurrence`."""
        return Ease.load(self.folder)

    def events(self, updates: Sequence[str] = ()) -> pa.Table:
        """Events of all parts, by user, then in the user's order.

        Their columns: `row`, `user`, `item` (indices), `time`, `value` (NaN for none), `part`, a
        code of `splits`, and `update`: 0, or the number of the update that they came with, which is
        one of the first `updates`. Raises DataError where a file is missing or damaged.
        """
        tables: list[pa.Table] = []
        for name in (PREPARED_EVENTS, *(f"{name}.parquet" for name in updates)):
            path = kept_copy(self.location / EVENTS / name)
            try:
                table = pq.read_table(path)
                number = pa.array(np.full(len(table), len(tables)))
                tables.append(table.select(EVENT_COLUMNS).append_column("update", number))
            except (OSError, pa.ArrowException, KeyError) as error:
                raise DataError(f"{path}: {error}; prepare the data set again") from error
        order = [(name, "ascending") for name in ("user", "time", "update", "row")]
        return pa.concat_tables(tables).sort_by(order)

    def known_events(self) -> pa.Table:
        """Those of `events` that training rows may see: `user`, `item` and `value`."""
        events = self.events()
        visible = np.isin(events["part"].to_numpy(), STATISTICS_PARTS)
        return events.filter(pa.array(visible)).select(["user", "item", "value"])

    def template(self) -> DatasetTemplate:
        """The template that all text was rendered with."""
        return DatasetTemplate.parse(self.dataset_spec["template"], str(self.folder / MANIFEST))

    def catalogue(self) -> Catalogue:
        """All items; raises DataError where the file is missing or damaged."""
        return read_catalogue(self.folder)


def folder_of(data_dir: str | os.PathLike[str], dataset: str, split: str) -> Path:
    """Where a prepared split keeps its manifest."""
    return path_of(data_dir) / views.config_prefix(dataset, split)


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
        Item(identifier, {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
        for identifier, values in zip(ids, attributes, strict=True)
    ]
    held_out, counts = (table.column(c).to_numpy() for c in ("held_out", "train_count"))
    return Catalogue(items, texts, held_out, counts)


def write_catalogue(
    path: Path,
    items: Sequence[Item],
    attributes: pa.Table,
    texts: Sequence[str],
    held_out: np.ndarray,
    train_counts: np.ndarray,
) -> None:
    """Writes `catalogue.parquet`; `attributes` are the declared columns of the items table."""
    table = pa.table(
        {
            "item_index": pa.array(range(len(items)), pa.int64()),
            "item_id": pa.array([item.id for item in items], pa.string()),
            "text": pa.array(texts, pa.string()),
            "held_out": pa.array(held_out),
            "train_count": pa.array(train_counts, pa.int64()),
            "attributes": attributes.to_struct_array().combine_chunks(),
        }
    )
    with atomic_file(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")


@contextlib.contextmanager
def local_data_dir(out: str | Path, dataset: str, split: str) -> Iterator[Path]:
    """Yields a TFDS data_dir on a local disk that stands for `out`, which may be in a bucket.

    It has what an earlier preparation of this split left in the bucket, but for the rows. Views
    that are made in the block are copied there when it ends without an error, the manifest last: a
    copy that was broken off counts as not prepared. Raises DataError where the bucket refuses.
    """
    if not in_bucket(out):
        yield Path(out)
        return
    check_writable(out)
    with bucket_copies() as copies:
        folder = folder_of(out, dataset, split)
        manifest = copies.fetch(folder) / MANIFEST
        before = manifest.read_bytes() if manifest.exists() else b""
        targets = [views.tfds_folder(out, dataset, split, view) for view in views.COLUMNS]
        for target in targets:
            copies.fetch(target / views.INFO)
        yield copies.of(out)
        # Of a view that was there already only the description was fetched.
        made = [t for t in targets if any(p.name != views.INFO for p in copies.of(t).glob("*"))]
        if not made and manifest.read_bytes() == before:
            return
        with bucket_errors(folder, "written"):
            (folder / MANIFEST).unlink(missing_ok=True)
            for target in made:
                target.rmtree(missing_ok=True)  # type: ignore[attr-defined]
                copies.store(target, last=views.INFO)
                shutil.rmtree(copies.of(target))
        copies.store(folder, last=MANIFEST)

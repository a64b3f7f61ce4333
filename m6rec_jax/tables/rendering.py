"""Renders groups as rows of the views: the only place where a prepared data set's text is made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.tables import views
from m6rec_jax.tables.grouping import Group, part_name
from m6rec_jax.tables.near_candidates import NearCandidates
from m6rec_jax.tables.negatives import NegativeSampler
from m6rec_jax.tables.reading import Dataset
from m6rec_jax.tables.schema import LabelSpec
from m6rec_jax.tables.splits import STATISTICS_PARTS, USER_STATISTICS_PARTS, VISIBLE_PARTS
from m6rec_jax.tables.statistics import Statistics
from m6rec_jax.tables.telling import Teller
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Event, Item, User
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.writing_templates import WRITING, common_values

Row = dict[str, Any]


class Renderer:
    """Rows of the views, as of the moment the statistics stand at.

    Args:
      users: in the order of the users table.
      items: in the order of the items table.
      template: of the data set.
      label: which values are positive.
      statistics: as of the moment of the group that is rendered.
      sampler: draws negatives; None for data with logged outcomes.
      negatives: negatives per positive row.
      document_statistics: whether documents tell candidates with their statistics.
      near: draws the candidates of 'reranking', which is not rendered without.
    """

    def __init__(
        self,
        users: Sequence[User],
        items: Sequence[Item],
        template: DatasetTemplate,
        label: LabelSpec,
        statistics: Statistics,
        sampler: NegativeSampler | None = None,
        negatives: int = 0,
        document_statistics: bool = True,
        near: NearCandidates | None = None,
    ) -> None:
        self._users = users
        self._items = items
        self._items_by_id: Mapping[str, Item] = {item.id: item for item in items}
        self._template = template
        self._label = label
        self._statistics = statistics
        self._teller = Teller(template, statistics)
        self._sampler = sampler
        self._negatives = negatives
        self._document_statistics = document_statistics
        self._near = near
        self._common = {
            kind: common_values(items, entry.shared) for kind, entry in template.writing.items()
        }

    def row(self, view: str, group: Group) -> Row | None:
        """The row of `view` that a group becomes; None where there is none to be made of it.

        Args:
          view: 'groups', 'next_items', 'reranking', 'documents' or one of
            `writing_templates.WRITING`.
          group: of one event where texts are to be written.
        """
        if view in WRITING:
            return self.writing_row(view, group)
        return {
            "groups": self.scoring_row,
            "next_items": self.next_items_row,
            "reranking": self.reranking_row,
            "documents": self.behaviour_document,
        }[view](group)

    def scoring_row(self, group: Group) -> Row:
        """A row of the view 'groups'. Sampled negatives stand after the positive they go with."""
        items, values = group.items, group.values
        labels = self._label.labels(np.asarray(values)).tolist()
        if self._sampler is not None:
            items, values, labels = self._with_negatives(group)
        return {
            "group_id": group.group_id,
            "user_id": self._users[group.user].id,
            "user_index": group.user,
            "time": group.time,
            "history": self._history(group),
            "candidates": self._candidates(group, items),
            "item_indices": items,
            "labels": labels,
            "ratings": values,
        }

    def next_items_row(self, group: Group) -> Row:
        """A row of the view 'next_items'; items are told without statistics, the same for all."""
        return {
            "user_id": self._users[group.user].id,
            "user_index": group.user,
            "time": group.time,
            "history": self._history(group),
            "items": [self._template.item(self._items[index]) for index in group.items],
            "item_indices": group.items,
        }

    def reranking_row(self, group: Group) -> Row | None:
        """A row of the view 'reranking'; None where `NearCandidates.draw` gives none."""
        assert self._near is not None
        drawn = self._near.draw(group)
        if drawn is None:
            return None
        items, texts = drawn
        recent = group.history_items[-self._near.nearness.options.recent :]
        return {
            "user_id": self._users[group.user].id,
            "user_index": group.user,
            "time": group.time,
            "history": self._history(group),
            "recent_indices": recent,
            "candidates": texts,
            "item_indices": items,
            "labels": [1] + [0] * (len(items) - 1),
        }

    def behaviour_document(self, group: Group) -> Row:
        """A document: the history, and what the user did next, each with its outcome in words."""
        if self._document_statistics:
            candidates = self._candidates(group, group.items)
        else:
            candidates = [self._template.candidate(self._items[index]) for index in group.items]
        texts = [
            sentence(sentence(candidate) + " " + self._template.outcome(value))
            for candidate, value in zip(candidates, group.values, strict=True)
        ]
        return {"kind": "behaviour", "source": self._history(group), "target": " ".join(texts)}

    def writing_row(self, kind: str, group: Group) -> Row | None:
        """A text about an item that the user liked, from what stood in the history before.

        Returns:
          None where the user did not like it, or the template has nothing to say.
        """
        (index,), (value,) = group.items, group.values
        if not self._label.is_positive(value):
            return None
        template, item = self._template.writing[kind], self._items[index]
        liked = [
            self._items[past]
            for past, worth in zip(group.history_items, group.history_values, strict=True)
            if self._label.is_positive(worth)
        ]
        written = template.written(item, liked, self._common[kind])
        if written is None:
            return None
        user_id = self._users[group.user].id
        return {
            "text_id": f"{user_id}/{item.id}",
            "text_index": group.group_id,
            "user_id": user_id,
            "item_indices": [index],
            "seen_indices": [],
            "source": template.source(self._history(group), item),
            "prefix": template.render_prefix(item),
            "target": written.text,
            "features": list(written.features),
        }

    def item_document(self, item: Item) -> Row:
        """A document: the item in the wording of the catalogue, then every other attribute."""
        named = self._template.item_template.fields
        told = [
            sentence(f"{name.replace('_', ' ')}: {text_of(value)}")
            for name, value in item.attributes.items()
            if name not in named and text_of(value)
        ]
        target = " ".join([sentence(self._template.item(item)), *told])
        return {"kind": "item", "source": [], "target": target}

    def catalogue_rows(self) -> Iterator[Row]:
        """The rows of the view 'catalogue'."""
        for index, item in enumerate(self._items):
            yield {"item_id": item.id, "item_index": index, "text": self._template.item(item)}

    def _history(self, group: Group) -> list[str]:
        user = self._users[group.user]
        events = [
            Event(user.id, self._items[item].id, time, value)
            for item, time, value in zip(
                group.history_items, group.history_times, group.history_values, strict=True
            )
        ]
        return self._teller.history(
            user, events, self._items_by_id, group.time, ahead=_sees_ahead(group)
        )

    def _candidates(self, group: Group, indices: Sequence[int]) -> list[str]:
        items = [self._items[index] for index in indices]
        user_id = self._users[group.user].id
        return self._teller.candidates(user_id, items, group.time, ahead=_sees_ahead(group))

    def _with_negatives(self, group: Group) -> tuple[list[int], list[float], list[int]]:
        assert self._sampler is not None
        drawn = self._sampler.sample(
            self._statistics,
            key=f"{self._users[group.user].id}:{group.time}:{self._items[group.items[0]].id}",
            acted_on={*group.seen, *group.items},
            count=self._negatives,
            draws=len(group.items),
        )
        items: list[int] = []
        values: list[float] = []
        labels: list[int] = []
        for positive, value, negatives in zip(group.items, group.values, drawn, strict=True):
            items += [positive, *negatives]
            values += [value] + [math.nan] * len(negatives)
            labels += [1] + [0] * len(negatives)
        return items, values, labels


def sentence(text: str) -> str:
    """Ends a text with a full stop, unless it ends a sentence already or is empty."""
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."


def told_events(
    dataset: Dataset,
    codes: np.ndarray,
    visible_parts: Mapping[int, tuple[int, ...]] = VISIBLE_PARTS,
    **sorting: Any,
) -> Iterator[tuple[Event, Item, bool]]:
    """What statistics may hold, in the order of time and streamed: see `statistics.as_of`.

    Args:
      dataset: an open data set.
      codes: part codes of all rows of the events table `[rows]`.
      visible_parts: part of a row -> parts whose events its history may hold.
      **sorting: of `Dataset.events_sorted`.
    """
    seen = {part for parts in visible_parts.values() for part in parts}
    of_users = tuple(part for part in USER_STATISTICS_PARTS if part in seen)
    items = dataset.item_records
    ids = [user.id for user in dataset.user_records]
    for batch in dataset.events_sorted("time", with_ids=False, **sorting):
        parts = codes[batch.column("row").to_numpy()]
        wanted = np.isin(parts, STATISTICS_PARTS + of_users)
        of_user_only = np.isin(parts[wanted], of_users).tolist()
        columns = (
            batch.column(name).to_numpy(zero_copy_only=False)[wanted].tolist()
            for name in ("user_index", "item_index", "time", "value")
        )
        for user, item, time, value, only in zip(*columns, of_user_only, strict=True):
            yield Event(ids[user], items[item].id, time, value), items[item], only


def _sees_ahead(group: Group) -> bool:
    """Whether a group's history may hold more than statistics do."""
    return not set(VISIBLE_PARTS[group.part]).isdisjoint(USER_STATISTICS_PARTS)


class RowWriter:
    """Writes rows of one view to `<part>-<number>.parquet` files of a folder.

    Args:
      folder: must exist.
      view: gives the columns.
      rows_per_file: a file is closed at this many rows.
      buffer_rows: rows in memory per part.
    """

    def __init__(
        self, folder: Path, view: str, rows_per_file: int = 100_000, buffer_rows: int = 1_000
    ) -> None:
        self._folder = folder
        self._schema = views.arrow_schema(view)
        self._rows_per_file = rows_per_file
        self._buffer_rows = min(buffer_rows, rows_per_file)
        self._buffers: dict[str, list[Row]] = {}
        self._files: dict[str, pq.ParquetWriter] = {}
        self.num_rows: dict[str, int] = {}

    def write(self, part: str, row: Row) -> None:
        """Adds a row to a part."""
        buffer = self._buffers.setdefault(part, [])
        buffer.append(row)
        self.num_rows[part] = self.num_rows.get(part, 0) + 1
        full = self.num_rows[part] % self._rows_per_file == 0
        if full or len(buffer) >= self._buffer_rows:
            self._flush(part)
        if full:
            self._files.pop(part).close()

    def close(self) -> None:
        """Writes what is held and closes all files."""
        for part in self._buffers:
            self._flush(part)
        for file in self._files.values():
            file.close()
        self._files = {}

    def _flush(self, part: str) -> None:
        if not self._buffers[part]:
            return
        if part not in self._files:
            number = (self.num_rows[part] - 1) // self._rows_per_file
            path = self._folder / f"{part}-{number:05d}.parquet"
            self._files[part] = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._files[part].write_table(pa.Table.from_pylist(self._buffers[part], self._schema))
        self._buffers[part] = []


def part_of(group: Group) -> str:
    """Name of the part that a group's rows belong to."""
    return part_name(group.part)

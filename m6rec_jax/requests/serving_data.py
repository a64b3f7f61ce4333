"""What a served model looks things up in: the items by id, and the statistics as of now.

    SERVING_DATA/              a prepared split's folder, or what was copied from it
      catalogue.parquet
      statistics/
      prepare.json             says which data set that is

Light: no tensorflow.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.features import co_occurrence, ease
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.features.features import feature_names
from m6rec_jax.data.features.statistics import DESCRIPTION, OF_USERS, Statistics
from m6rec_jax.data.features.statistics_settings import StatisticsSettings
from m6rec_jax.data.store.manifest import MANIFEST, Manifest
from m6rec_jax.data.store.prepared import CATALOGUE, STATISTICS, Catalogue, read_catalogue
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.requests.request import TEXT
from m6rec_jax.text.format_strings import text_of
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.title_search import TitleSearch


@dataclasses.dataclass(frozen=True)
class ServingData:
    """What requests of a model are checked and rendered with; make it with `ServingData.open`."""

    # Of the data set the model was trained on; the model's.
    spec: DatasetSpec
    template: DatasetTemplate
    items: Mapping[str, Item]  # the catalogue by id, in its order; all have titles
    statistics: Statistics | None  # None where requests bring their own, or none are rendered
    fingerprint: str  # of everything above: equal ones give equal text
    # Behaviours of a history, at most, where rows for scoring were prepared.
    max_events: int | None = None
    folder: Path | None = None  # of the prepared data; None where requests bring all

    @classmethod
    def open(
        cls,
        dataset_spec: Mapping[str, Any],
        folder: str | Path | None,
        items_file: str | Path | None = None,
        *,
        with_statistics: bool = True,
    ) -> ServingData:
        """Reads catalogue and statistics.

        Args:
          dataset_spec: what the model folder's `dataset.json` holds.
          folder: catalogue and statistics, as `m6rec data prepare` writes them; None: neither.
          items_file: a Parquet or CSV file of items in place of the folder's catalogue.
          with_statistics: False where only items are asked for: statistics may be large.

        Raises:
          DataError: something is missing or damaged, or an item without a title lacks what its
            text needs.
          ConfigError: another data set, or one without statistics that the template renders.
        """
        spec = DatasetSpec.from_dict(dataset_spec, "the model's dataset.json")
        template = DatasetTemplate.parse(spec.template, "the model's dataset.json")
        digest = hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode())
        items: Sequence[Item] = ()
        statistics, max_events = None, None
        if folder is not None:
            folder = Path(folder)
            manifest = Manifest.read(folder)
            if manifest.dataset != spec.name:
                raise ConfigError(
                    f"{folder} holds the data set {manifest.dataset!r}, and the model was "
                    f"trained on {spec.name!r}"
                )
            digest.update((folder / MANIFEST).read_bytes())
            max_events = manifest.view("groups").max_events
            if with_statistics:
                statistics = Statistics.load(folder / STATISTICS)
                names = feature_names(statistics.settings)
                template.validate(spec.users.columns, spec.items.columns, names)
            if items_file is None:
                items = read_catalogue(folder).items
        if items_file is not None:
            # With DuckDB, which others go without.
            from m6rec_jax.data.dataset.reading import read_items

            items = read_items(items_file, spec)
            digest.update(Path(items_file).read_bytes())
        by_id = {item.id: _titled(item, spec, template) for item in items}
        return cls(spec, template, by_id, statistics, digest.hexdigest(), max_events, folder)

    @functools.cached_property
    def counted(self) -> tuple[Catalogue, CoOccurrence, Ease]:
        """The prepared data's catalogue, and what counts its items in its order; read once, so that
        it stays beside what else was read of the folder. Raises ConfigError without a folder,
        DataError for a damaged one.
        """
        if self.folder is None:
            raise ConfigError("reranking needs prepared data, which hold the items' co-occurrence")
        folder = self.folder
        return read_catalogue(folder), CoOccurrence.load(folder), Ease.load(folder)

    @functools.cached_property
    def title_search(self) -> tuple[TitleSearch, Sequence[Item]]:
        """Finds items by what people write of their titles: places in the items beside it."""
        items = [*self.items.values()]
        return TitleSearch([item.title for item in items]), items

    def details(self, item: Item) -> str:
        """One line of what is known of an item beside its title."""
        apart = (self.spec.items.title_column, "year")
        texts = [text_of(value) for name, value in item.attributes.items() if name not in apart]
        return _line(" · ".join(dict.fromkeys(filter(None, texts))))  # who directs often writes

    def together(self, ids: Sequence[str], past: Sequence[str]) -> list[list[str]]:
        """For each of some items, the titles of those two of a user's items that people have with
        it most often; none where nobody had both. Raises as `counted`.
        """
        places = self._places
        had = [item for item in dict.fromkeys(past) if item in places and item in self.items]
        of_past, of_ids = [places[item] for item in had], [places.get(id_, -1) for id_ in ids]
        shares = self.counted[1].shares(of_past, of_ids)
        best = np.argsort(-shares, axis=0, kind="stable")[:2].T
        return [
            [self.items[had[n]].title for n in row if shares[n, column] > 0]
            for column, row in enumerate(best.tolist())
        ]

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {item.id: place for place, item in enumerate(self.counted[0].items)}

    def item_texts(self) -> dict[str, str]:
        """By id, the text of each item as the item tower reads it; raises DataError where there are
        no items, or one lacks what the template needs.
        """
        if not self.items:
            raise DataError("the catalogue is empty: there is nothing to embed")
        return {id_: self.template.item(item) for id_, item in self.items.items()}

    def statistics_names(self) -> tuple[str, ...]:
        """Names of the statistics that a template may render, and a request may bring."""
        known = self.statistics
        return feature_names(known.settings if known else StatisticsSettings.for_dataset(self.spec))


@functools.cache
def texts_alone() -> ServingData:
    """Of tasks whose requests are one text each: no catalogue, and users who are that text."""
    table = {"id": "id", "columns": {TEXT: "string"}}
    events = {"user": "user", "item": "item", "time": "time"}
    every = dict.fromkeys(("profile", "event", "candidate", "item"), f"{{{TEXT}}}")
    spec = {"name": "texts", "users": table, "items": table, "events": events, "template": every}
    return ServingData.open(spec, None)


def files_without_users(folder: Path, with_counts: bool) -> dict[str, bytes]:
    """Catalogue and statistics of a folder of prepared data, by path within it; no user is left.

    Tables are not compressed: an archive as a whole packs them better. `with_counts` of items
    together, too, which the hybrid retriever reads. Raises DataError where something is missing or
    damaged.
    """
    Manifest.read(folder)  # raises
    read_catalogue(folder)
    Statistics.load(folder / STATISTICS)  # raises
    counts = (co_occurrence.FILE, ease.FILE) if with_counts else ()
    copied = (MANIFEST, f"{STATISTICS}/{DESCRIPTION}", *counts)
    files = {name: path.read_bytes() for name in copied if (path := folder / name).is_file()}
    for path in sorted([folder / CATALOGUE, *(folder / STATISTICS).glob("*.parquet")]):
        table, sink = pq.read_table(path), pa.BufferOutputStream()
        table = table[:0] if path.stem.startswith(OF_USERS) else table
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        files[path.relative_to(folder).as_posix()] = sink.getvalue().to_pybytes()
    return files


def prepared_dataset_spec(folder: str | Path) -> Mapping[str, Any]:
    """The `dataset.json` of prepared data in a folder. Raises DataError where there are none, or
    the manifest is damaged, ConfigError for other data than users, items and events.
    """
    spec = Manifest.read(Path(folder)).dataset_spec
    if spec is None:
        raise ConfigError(
            f"{folder} holds no users, items and events, so a user's history cannot be rendered; "
            "name prepared data that do with --gin.PREPARED=FOLDER"
        )
    return spec


def _titled(item: Item, spec: DatasetSpec, template: DatasetTemplate) -> Item:
    """With its title and year, or else with the beginning of its text in place of them."""
    title = str(item.attributes.get(spec.items.title_column or "") or "")
    year = item.attributes.get("year")
    if title and isinstance(year, int) and str(year) not in title:
        title = f"{title} ({year})"
    return dataclasses.replace(item, title=title or _line(template.item(item)))


def _line(text: str) -> str:
    """What a page says of an item beside its title, or in place of one that it lacks."""
    return textwrap.shorten(text, 72, placeholder=" …")

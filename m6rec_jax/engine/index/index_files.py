"""A catalogue's embeddings on disk, with the items' ids: a `computed_folder`.

INDEX/
  manifest.json
  ids.parquet       item_id, in the order of the embeddings
  embeddings.npy    float32 [items, retrieval], unit vectors
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from m6rec_jax.engine.computed_folder import (
    ComputedManifest,
    blocks_of,
    read_manifest,
    write_folder,
)
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex

INDEX_COMMAND = "m6rec index build"
IDS, EMBEDDINGS = "ids.parquet", "embeddings.npy"


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """An index that was opened. Make it with `open_index`.

    Attributes:
      manifest: of its folder.
      ids: of each item.
      search: answers with places in `ids`.
    """

    manifest: ComputedManifest
    ids: Sequence[str]
    search: CatalogueIndex

    @functools.cached_property
    def _places(self) -> Mapping[str, int]:
        return {id_: place for place, id_ in enumerate(self.ids)}

    def places_of(self, ids: Sequence[str]) -> np.ndarray:
        """Places of ids, as far as the index has them, int64 `[n]`."""
        return np.array([self._places[id_] for id_ in ids if id_ in self._places], np.int64)


def write_index(
    folder: str | Path,
    texts: Mapping[str, str],
    embed: Callable[[Sequence[str]], np.ndarray],
    *,
    model: str,
    task: str,
    dim: int,
    progress: bool = True,
) -> ComputedManifest:
    """Embeds a catalogue into a new folder.

    Args:
      folder: see `write_folder`.
      texts: id -> text of each item, at least one.
      embed: texts to float32 `[texts, dim]`.
      model, task: see `ComputedManifest`.
      dim: width of the embeddings.
      progress: whether to show a bar.

    Raises:
      DataError, CheckpointError: as `write_folder`.
    """
    content, shape = catalogue_fingerprint(texts), [len(texts), dim]
    manifest = ComputedManifest(INDEX_COMMAND, model, content, task, "float32", len(texts), shape)
    ids = pa.table({"item_id": pa.array(list(texts), pa.string())})
    return write_folder(
        Path(folder),
        manifest,
        EMBEDDINGS,
        map(embed, blocks_of(list(texts.values()), progress)),
        {IDS: functools.partial(pq.write_table, ids)},
    )


def open_index(folder: str | Path, model: str, *, mesh: Mesh | None = None) -> StoredIndex:
    """Opens an index for the model that built it.

    Args:
      folder, model: of `write_index`; the model is the one that embeds the users.
      mesh: devices to split the items over; None: the default device.

    Raises:
      CheckpointError: there is none, it is damaged or another model's.
    """
    manifest = read_manifest(folder := Path(folder), INDEX_COMMAND, model)
    ids = pq.read_table(folder / IDS).column("item_id").to_pylist()
    embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
    return StoredIndex(manifest, ids, CatalogueIndex(embeddings, mesh))


def catalogue_fingerprint(texts: Mapping[str, str]) -> str:
    """Of items' ids and texts, in their order."""
    digest = hashlib.sha256()
    for id_, text in texts.items():
        digest.update(json.dumps([id_, text]).encode())
    return digest.hexdigest()

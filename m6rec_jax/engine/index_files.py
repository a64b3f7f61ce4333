"""A catalogue's embeddings on disk, with the items' ids and the model that made them.

    INDEX/
      manifest.json     model fingerprint, width, number of items, checksums of the files
      ids.parquet       item_id, in the order of the embeddings
      embeddings.npy    float32 [items, retrieval], unit vectors
      graph.usearch     only where approximate search was asked for

Embeddings of another model mean nothing to this one's users, so an index is opened by its model's
fingerprint only. While it is written, the folder has `.unfinished` in its name and a lock in it,
since two processes would mix their rows; a run that was killed goes on from the last block of items
that it finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from m6rec_jax import __version__
from m6rec_jax.engine.catalogue_index import CatalogueIndex, ItemSearch, TopK
from m6rec_jax.engine.graph_index import GraphIndex
from m6rec_jax.engine.runtime import smallest_that_fits
from m6rec_jax.errors import CheckpointError, DataError
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.locks import LOCK_FILE, locked_folder
from m6rec_jax.io.progress import progress_bar

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, IDS, EMBEDDINGS, GRAPH = "manifest.json", "ids.parquet", "embeddings.npy", "graph.usearch"
_PROGRESS = "progress.json"
# Items between two records of progress.
DEFAULT_BLOCK = 4096

Embed = Callable[[Iterable[Sequence[str]]], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class IndexManifest:
    """What `manifest.json` holds.

    Attributes:
      model, catalogue: fingerprints: `LoadedModel.fingerprint`; of ids and texts.
      dim, count: width of the embeddings; number of items.
      checksums: file -> SHA-256.
      date, version: UTC, ISO 8601; of m6rec_jax.
      extra: anything else, such as the model's step.
    """

    model: str
    catalogue: str
    dim: int
    count: int
    checksums: Mapping[str, str]
    date: str
    version: str
    extra: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """An index that was opened. Make it with `open_index`.

    Attributes:
      manifest: of its folder.
      ids, index_of: id of each item; index of each id.
      search: answers with indices.
    """

    manifest: IndexManifest
    ids: Sequence[str]
    index_of: Mapping[str, int]
    search: ItemSearch

    def indices(self, ids: Sequence[str]) -> np.ndarray:
        """Indices of those ids that the index has, int64; others cannot be recommended anyway."""
        known = {self.index_of[id_] for id_ in ids if id_ in self.index_of}
        return np.fromiter(known, np.int64, len(known))

    def top_k(
        self,
        users: np.ndarray,
        k: int,
        excluded: Sequence[Sequence[str]],
        batch_sizes: Sequence[int],
    ) -> TopK:
        """The best items of each user, as indices into `ids`.

        Users are searched for in batches of few sizes, so that no number of them compiles anything.

        Args:
          users: float32 `[users, retrieval]`.
          k: how many; fewer where the catalogue has fewer.
          excluded: per user, ids of items that must not be found.
          batch_sizes: numbers of users to pad to, ascending.

        Raises:
          DataError: there are no users, or vectors that hold NaN.
        """
        parts, k = [], min(k, len(self.ids))
        for start in range(0, len(users), batch_sizes[-1]):
            own = users[start : start + batch_sizes[-1]]
            size = smallest_that_fits(len(own), batch_sizes)
            padded = np.pad(own, ((0, size - len(own)), (0, 0)))
            ids = [*excluded[start : start + len(own)], *[()] * (size - len(own))]
            found = self.search.top_k(padded, k, [*map(self.indices, ids)])
            parts.append(TopK(found.ids[: len(own)], found.scores[: len(own)]))
        return TopK(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def warm_up(self, k: int, batch_sizes: Sequence[int]) -> None:
        """Compiles every program of `top_k`."""
        for size in batch_sizes:
            self.search.warm_up(size, min(k, len(self.ids)))


def write_index(
    folder: str | Path,
    texts: Mapping[str, str],
    embed: Embed,
    *,
    model: str,
    dim: int,
    graph: bool = False,
    block: int = DEFAULT_BLOCK,
    extra: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> IndexManifest:
    """Embeds a catalogue into a new folder; goes on where a run that was killed stopped.

    Args:
      folder: new or empty; where the same index lies already, nothing is done.
      texts: id -> text of each item.
      embed: blocks of texts to float32 `[texts, dim]` each, in their order.
      model: fingerprint of what `embed` uses.
      dim: width of the embeddings.
      graph: also build a graph for approximate search.
      block: items embedded at a time.
      extra: kept in the manifest.
      progress: whether to show a bar.

    Raises:
      DataError: something else is there, another process is building it, or there are no items.
      CheckpointError: the index that is there is damaged or of a newer version.
      ConfigError: a graph without usearch.
    """
    folder = Path(folder)
    if not texts:
        raise DataError("the catalogue is empty: there is nothing to embed")
    catalogue = catalogue_fingerprint(texts)
    with contextlib.suppress(OSError):
        folder.rmdir()  # succeeds where it is empty, which is as good as new
    if folder.exists():
        return _same_index(folder, model, catalogue, graph)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    with locked_folder(unfinished, f"building {folder}"):
        _embed_all(unfinished, texts, embed, (model, catalogue), dim, block, progress)
        pq.write_table(pa.table({"item_id": pa.array(list(texts), pa.string())}), unfinished / IDS)
        files = [IDS, EMBEDDINGS]
        if graph:
            log.info("building the graph of %s items", f"{len(texts):,}")
            GraphIndex(np.load(unfinished / EMBEDDINGS, mmap_mode="r")).save(unfinished / GRAPH)
            files.append(GRAPH)
        manifest = IndexManifest(
            model,
            catalogue,
            dim,
            len(texts),
            {name: file_sha256(unfinished / name) for name in files},
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            __version__,
            dict(extra or {}),
        )
        described = {"format": FORMAT, **dataclasses.asdict(manifest)}
        (unfinished / MANIFEST).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
        (unfinished / _PROGRESS).unlink()
        unfinished.rename(folder)
        (folder / LOCK_FILE).unlink()
    return manifest


def open_index(
    folder: str | Path, model: str, *, approximate: bool = False, mesh: Mesh | None = None
) -> StoredIndex:
    """Opens an index for the model that built it.

    Args:
      folder, model: of `write_index`; the model is the one that embeds the users.
      approximate: search the index's graph instead of all items.
      mesh: devices to split the items over, for exact search; None: the default device.

    Raises:
      CheckpointError: there is none, it is damaged or another model's, or it has no graph.
      ConfigError: approximate search without usearch.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.model != model:
        raise CheckpointError(
            f"{folder} was built by another model (fingerprint {manifest.model[:16]}…, the one in "
            f"use has {model[:16]}…), so its vectors mean nothing to this one's users; build it "
            "anew with `m6rec index build`"
        )
    if approximate and GRAPH not in manifest.checksums:
        raise CheckpointError(
            f"{folder} was built without a graph; build it anew with --gin.build_index.graph=True"
        )
    for name, checksum in manifest.checksums.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != checksum:
            raise CheckpointError(f"{path} is missing or damaged; build the index anew")
    ids = pq.read_table(folder / IDS).column("item_id").to_pylist()
    embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
    if embeddings.shape != (manifest.count, manifest.dim) or len(ids) != manifest.count:
        raise CheckpointError(f"{folder / MANIFEST} describes other files; build the index anew")
    search: ItemSearch
    if approximate:
        search = GraphIndex(embeddings, folder / GRAPH)
    else:
        search = CatalogueIndex(embeddings, mesh)
    return StoredIndex(manifest, ids, {id_: index for index, id_ in enumerate(ids)}, search)


def read_manifest(folder: str | Path) -> IndexManifest:
    """The manifest of an index.

    Raises:
      CheckpointError: it is missing, damaged or of a newer version.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no index ({MANIFEST} is missing): `m6rec index build` makes one"
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        if values.pop("format") > FORMAT:
            raise CheckpointError(f"{path} was written by a newer m6rec_jax; update it")
        return IndexManifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; build the index anew") from error


def _embed_all(
    folder: Path,
    texts: Mapping[str, str],
    embed: Embed,
    made_of: tuple[str, str],
    dim: int,
    block: int,
    progress: bool,
) -> None:
    """Fills `embeddings.npy` block by block, from where the last run stopped."""
    wanted = list(texts.values())
    done = _done(folder, made_of, (len(wanted), dim))
    if done:
        log.info("%s of %s items are embedded already", f"{done:,}", f"{len(wanted):,}")
    vectors = np.lib.format.open_memmap(
        folder / EMBEDDINGS, "r+" if done else "w+", np.float32, (len(wanted), dim)
    )
    with progress_bar(
        total=len(wanted), initial=done, desc="embedding", unit=" items", disable=not progress
    ) as bar:
        blocks = (wanted[start : start + block] for start in range(done, len(wanted), block))
        for found in embed(blocks):
            vectors[done : done + len(found)] = found
            vectors.flush()
            done += len(found)
            _write_progress(folder, made_of, done)
            bar.update(len(found))


def _done(folder: Path, made_of: tuple[str, str], shape: tuple[int, int]) -> int:
    """How many items an earlier run has embedded; 0 where that was something else."""
    try:
        found = json.loads((folder / _PROGRESS).read_text("utf-8"))
        vectors = np.load(folder / EMBEDDINGS, mmap_mode="r")
        same = tuple(found["made_of"]) == made_of and vectors.shape == shape
        return int(found["done"]) if same else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _write_progress(folder: Path, made_of: tuple[str, str], done: int) -> None:
    write_atomically(folder / _PROGRESS, json.dumps({"made_of": made_of, "done": done}))


def _same_index(folder: Path, model: str, catalogue: str, graph: bool) -> IndexManifest:
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} exists and is no index; name a new folder")
    manifest = read_manifest(folder)
    same = (manifest.model, manifest.catalogue) == (model, catalogue)
    if same and (GRAPH in manifest.checksums or not graph):
        log.info("%s is built already", folder)
        return manifest
    what = "without a graph" if same else "of another model or catalogue"
    raise DataError(f"{folder} is an index {what}; remove it, or name another folder")


def catalogue_fingerprint(texts: Mapping[str, str]) -> str:
    """Of items' ids and texts, in their order."""
    digest = hashlib.sha256()
    for id_, text in texts.items():
        digest.update(json.dumps([id_, text]).encode())
    return digest.hexdigest()

"""A catalogue's embeddings on disk, with the items' ids and the model that made them.

    INDEX/
      manifest.json     model fingerprint, width, number of items, checksums of the files
      ids.parquet       item_id, in the order of the embeddings
      embeddings.npy    float32 [items, retrieval], unit vectors

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
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex, TopK
from m6rec_jax.engine.programs.runtime import smallest_that_fits
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.locks import Unfinished, unfinished_folder
from m6rec_jax.io.progress import progress_bar

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, IDS, EMBEDDINGS = "manifest.json", "ids.parquet", "embeddings.npy"
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
      embeddings: mapped from disk, float32 `[items, retrieval]`.
    """

    manifest: IndexManifest
    ids: Sequence[str]
    index_of: Mapping[str, int]
    search: CatalogueIndex
    embeddings: np.ndarray

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
          DataError: vectors that hold NaN.
        """
        if not len(users):
            return TopK(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
        seen = [self.indices(ids) for ids in excluded]
        return in_batches(self.search, users, k, seen, batch_sizes)

    def similarities(self, users: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """See `CatalogueIndex.similarities`."""
        return self.search.similarities(users, ids)

    def warm_up(self, k: int, batch_sizes: Sequence[int]) -> None:
        """Compiles every program of `top_k`."""
        for size in batch_sizes:
            self.search.warm_up(size, min(k, self.search.num_items))


def write_index(
    folder: str | Path,
    texts: Mapping[str, str],
    embed: Embed,
    *,
    model: str,
    dim: int,
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
      block: items embedded at a time.
      extra: kept in the manifest.
      progress: whether to show a bar.

    Raises:
      DataError: something else is there, another process is building it, or there are no items.
      CheckpointError: the index that is there is damaged or of a newer version.
      ConfigError: blocks of nothing.
    """
    folder = Path(folder)
    if not texts:
        raise DataError("the catalogue is empty: there is nothing to embed")
    if block < 1:
        raise ConfigError(f"block = {block} must be at least 1")
    catalogue = catalogue_fingerprint(texts)
    with contextlib.suppress(OSError):
        folder.rmdir()  # succeeds where it is empty, which is as good as new
    if folder.exists():
        return _same_index(folder, model, catalogue)
    made_of = [model, catalogue]
    with unfinished_folder(folder, f"building {folder}", made_of) as unfinished:
        _embed_all(unfinished, texts, embed, dim, block, progress)
        path = unfinished.path
        pq.write_table(pa.table({"item_id": pa.array(list(texts), pa.string())}), path / IDS)
        manifest = IndexManifest(
            model,
            catalogue,
            dim,
            len(texts),
            {name: file_sha256(path / name) for name in (EMBEDDINGS, IDS)},
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            __version__,
            dict(extra or {}),
        )
        described = {"format": FORMAT, **dataclasses.asdict(manifest)}
        (path / MANIFEST).write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    return manifest


def open_index(folder: str | Path, model: str, *, mesh: Mesh | None = None) -> StoredIndex:
    """Opens an index for the model that built it.

    Args:
      folder, model: of `write_index`; the model is the one that embeds the users.
      mesh: devices to split the items over; None: the default device.

    Raises:
      CheckpointError: there is none, it is damaged or another model's.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.model != model:
        raise CheckpointError(
            f"{folder} was built by another model (fingerprint {manifest.model[:16]}…, the one in "
            f"use has {model[:16]}…), so its vectors mean nothing to this one's users; build it "
            "anew with `m6rec index build`"
        )
    for name in (EMBEDDINGS, IDS):
        if not (folder / name).is_file() or file_sha256(folder / name) != manifest.checksums[name]:
            raise CheckpointError(f"{folder / name} is missing or damaged; build the index anew")
    ids = pq.read_table(folder / IDS).column("item_id").to_pylist()

    embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
    index_of = {id_: index for index, id_ in enumerate(ids)}
    return StoredIndex(manifest, ids, index_of, CatalogueIndex(embeddings, mesh), embeddings)


def in_batches(
    search: CatalogueIndex,
    users: np.ndarray,
    k: int,
    seen: Sequence[np.ndarray],
    batch_sizes: Sequence[int],
) -> TopK:
    """The best items of users, `[users, min(k, items)]`, some at a time; of at least one user.

    Args:
      search: what is searched.
      users: `[users, dim]`.
      k: items of each user.
      seen: of each user, places of items that must not come.
      batch_sizes: numbers of users to pad to, ascending.
    """
    batches, k = list[TopK](), min(k, search.num_items)
    for start in range(0, len(users), batch_sizes[-1]):
        own = users[start : start + batch_sizes[-1]]
        size = smallest_that_fits(len(own), batch_sizes)
        padded = np.pad(own, ((0, size - len(own)), (0, 0)))
        here = [*seen[start : start + len(own)], *[np.zeros(0, np.int64)] * (size - len(own))]
        found = search.top_k(padded, k, here)
        batches.append(TopK(found.ids[: len(own)], found.scores[: len(own)]))
    return TopK(*(np.concatenate(values) for values in zip(*batches, strict=True)))


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
        values.pop("part_items", None)  # of earlier versions: all items
        return IndexManifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; build the index anew") from error


def _embed_all(
    unfinished: Unfinished,
    texts: Mapping[str, str],
    embed: Embed,
    dim: int,
    block: int,
    progress: bool,
) -> None:
    """Fills the files of embeddings block by block, from where the last run stopped."""
    wanted, folder = list(texts.values()), unfinished.path
    done = unfinished.done()
    if done:
        log.info("%s of %s items are embedded already", f"{done:,}", f"{len(wanted):,}")

    blocks = (wanted[start : start + block] for start in range(done, len(wanted), block))
    shape = len(wanted), dim
    vectors = np.lib.format.open_memmap(
        folder / EMBEDDINGS, "r+" if done else "w+", np.float32, shape
    )
    with progress_bar(
        total=len(wanted), initial=done, desc="embedding", unit=" items", disable=not progress
    ) as bar:
        for found in embed(blocks):
            if not np.isfinite(found).all():
                raise DataError(
                    f"{folder}: vectors of items hold NaN or infinity; did training diverge?"
                )
            vectors[done : done + len(found)] = found
            vectors.flush()
            done += len(found)
            unfinished.record(done)
            bar.update(len(found))


def _same_index(folder: Path, model: str, catalogue: str) -> IndexManifest:
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} exists and is no index; name a new folder")
    manifest = read_manifest(folder)
    if (manifest.model, manifest.catalogue) != (model, catalogue):
        raise DataError(
            f"{folder} is an index of another model or catalogue; remove it, or name another folder"
        )
    log.info("%s is built already", folder)
    return manifest


def catalogue_fingerprint(texts: Mapping[str, str]) -> str:
    """Of items' ids and texts, in their order."""
    digest = hashlib.sha256()
    for id_, text in texts.items():
        digest.update(json.dumps([id_, text]).encode())
    return digest.hexdigest()

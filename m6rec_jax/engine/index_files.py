"""A catalogue's embeddings on disk, with the items' ids and the model that made them.

    INDEX/
      manifest.json     model fingerprint, width, number of items, checksums of the files
      ids.parquet       item_id, in the order of the embeddings
      embeddings.npy    float32 [items, retrieval], unit vectors; of an index in parts
                        embeddings-00000-of-00008.npy and so on

A catalogue that is too large for one memory has an index in parts, searched one after the other, or
by several workers that open some of them each. What is found does not depend on the parts.

Embeddings of another model mean nothing to this one's users, so an index is opened by its model's
fingerprint only. While it is written, the folder has `.unfinished` in its name and a lock in it,
since two processes would mix their rows; a run that was killed goes on from the last block of items
that it finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from m6rec_jax import __version__
from m6rec_jax.engine.catalogue_index import NO_ITEM, CatalogueIndex, TopK, best_of
from m6rec_jax.engine.runtime import smallest_that_fits
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.io.unfinished import Unfinished, unfinished_folder

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
      dim, count, part_items: width of the embeddings; number of items; of a part.
      checksums: file -> SHA-256.
      date, version: UTC, ISO 8601; of m6rec_jax.
      extra: anything else, such as the model's step.
    """

    model: str
    catalogue: str
    dim: int
    count: int
    part_items: int
    checksums: Mapping[str, str]
    date: str
    version: str
    extra: Mapping[str, Any]

    @property
    def files(self) -> list[str]:
        """Of the embeddings, one for each part."""
        return part_files(self.count, self.part_items)


def part_files(count: int, part_items: int) -> list[str]:
    """Names of the files of embeddings of an index in parts."""
    number = -(-count // part_items)
    if number == 1:
        return [EMBEDDINGS]
    stem, suffix = EMBEDDINGS.split(".")
    return [f"{stem}-{n:05}-of-{number:05}.{suffix}" for n in range(number)]


class OpenPart:
    """The part of an index that is on the devices: the one that was asked for last.

    Args:
      open_part: opens a part by its number.

    Attributes:
      lock: to be held while a part is in use.
    """

    def __init__(self, open_part: Callable[[int], CatalogueIndex]) -> None:
        self._open_part, self.lock = open_part, threading.RLock()
        self._number, self._search = -1, cast(CatalogueIndex, None)

    def __getitem__(self, number: int) -> CatalogueIndex:
        if number != self._number:
            # It makes room first.
            self._number, self._search = -1, cast(CatalogueIndex, None)
            self._search = self._open_part(number)
            self._number = number
        return self._search


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """An index that was opened. Make it with `open_index`.

    Attributes:
      manifest: of its folder.
      ids, index_of: id of each item; index of each id.
      parts: answer with indices, from 0 in each.
      embeddings: of a part by its number, mapped from disk, float32 `[items, retrieval]`.
    """

    manifest: IndexManifest
    ids: Sequence[str]
    index_of: Mapping[str, int]
    parts: OpenPart
    embeddings: Callable[[int], np.ndarray]

    @property
    def num_parts(self) -> int:
        """Of the embeddings."""
        return len(self.manifest.files)

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
        place: int = 0,
        of: int = 1,
    ) -> TopK:
        """The best items of each user, as indices into `ids`.

        Users are searched for in batches of few sizes, so that no number of them compiles anything.

        Args:
          users: float32 `[users, retrieval]`.
          k: how many; fewer where the catalogue has fewer.
          excluded: per user, ids of items that must not be found.
          batch_sizes: numbers of users to pad to, ascending.
          place, of: search the parts place, place + of, ... alone; `best_of` what is found so at
            each place is the whole.

        Raises:
          DataError: vectors that hold NaN.
          CheckpointError: a part is missing or damaged.
        """
        seen = [self.indices(ids) for ids in excluded]
        found = [TopK(np.zeros((len(users), 0), np.int32), np.zeros((len(users), 0), np.float32))]
        with self.parts.lock:
            for number in range(place, self.num_parts if len(users) else 0, of):
                first = number * self.manifest.part_items
                search = self.parts[number]
                own = [items - first for items in seen]
                own = [items[(items >= 0) & (items < search.num_items)] for items in own]
                ids, scores = in_batches(search, users, k, own, batch_sizes)
                found.append(TopK(np.where(ids == NO_ITEM, NO_ITEM, ids + first), scores))
                del search  # or the next part would be read beside it
        return best_of(found, k)

    def similarities(self, users: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Of each user and the items named for it: float32 `[users, k]`, -inf at `NO_ITEM`.

        Read from disk, whichever part is on the devices.

        Args:
          users: float32 `[users, retrieval]`.
          ids: int `[users, k]`, indices into `ids`, or `NO_ITEM`.

        Raises:
          CheckpointError: a part is missing or damaged.
        """
        found = np.full(ids.shape, -np.inf, np.float32)
        numbers, places = np.divmod(ids, self.manifest.part_items)
        for number in np.unique(numbers[ids != NO_ITEM]).tolist():
            own = np.nonzero((numbers == number) & (ids != NO_ITEM))
            vectors = self.embeddings(number)[places[own]]
            found[own] = np.einsum("nr,nr->n", vectors, users[own[0]])
        return found

    def warm_up(self, k: int, batch_sizes: Sequence[int]) -> None:
        """Compiles every program of `top_k`."""
        # All parts but the last have one size.
        for number in {0, self.num_parts - 1}:
            with self.parts.lock:
                search = self.parts[number]
                for size in batch_sizes:
                    search.warm_up(size, min(k, search.num_items))
                del search


def write_index(
    folder: str | Path,
    texts: Mapping[str, str],
    embed: Embed,
    *,
    model: str,
    dim: int,
    part_items: int | None = None,
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
      part_items: of a part; None: all.
      block: items embedded at a time.
      extra: kept in the manifest.
      progress: whether to show a bar.

    Raises:
      DataError: something else is there, another process is building it, or there are no items.
      CheckpointError: the index that is there is damaged or of a newer version.
      ConfigError: parts or blocks of nothing.
    """
    folder = Path(folder)
    if not texts:
        raise DataError("the catalogue is empty: there is nothing to embed")
    part_items = len(texts) if part_items is None else min(part_items, len(texts))
    if part_items < 1:
        raise ConfigError(f"part_items = {part_items} must be at least 1")
    if block < 1:
        raise ConfigError(f"block = {block} must be at least 1")
    files = part_files(len(texts), part_items)
    catalogue = catalogue_fingerprint(texts)
    with contextlib.suppress(OSError):
        folder.rmdir()  # succeeds where it is empty, which is as good as new
    if folder.exists():
        return _same_index(folder, model, catalogue, part_items)
    made_of = [model, catalogue, part_items]
    with unfinished_folder(folder, f"building {folder}", made_of) as unfinished:
        _embed_all(unfinished, texts, embed, part_items, dim, block, progress)
        path = unfinished.path
        pq.write_table(pa.table({"item_id": pa.array(list(texts), pa.string())}), path / IDS)
        files.append(IDS)
        manifest = IndexManifest(
            model,
            catalogue,
            dim,
            len(texts),
            part_items,
            {name: file_sha256(path / name) for name in files},
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
    _verify(folder, manifest, IDS)
    ids = pq.read_table(folder / IDS).column("item_id").to_pylist()

    @functools.cache
    def embeddings(number: int) -> np.ndarray:
        _verify(folder, manifest, manifest.files[number])
        return np.load(folder / manifest.files[number], mmap_mode="r")

    def open_part(number: int) -> CatalogueIndex:
        return CatalogueIndex(embeddings(number), mesh)

    index_of = {id_: index for index, id_ in enumerate(ids)}
    index = StoredIndex(manifest, ids, index_of, OpenPart(open_part), embeddings)
    if index.num_parts == 1:
        index.parts[0]  # damage is told at once; of several not all need be on this machine
    return index


def _verify(folder: Path, manifest: IndexManifest, name: str) -> None:
    path = folder / name
    if not path.is_file() or file_sha256(path) != manifest.checksums.get(name):
        raise CheckpointError(f"{path} is missing or damaged; build the index anew")


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
        return IndexManifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; build the index anew") from error


def _embed_all(
    unfinished: Unfinished,
    texts: Mapping[str, str],
    embed: Embed,
    part_items: int,
    dim: int,
    block: int,
    progress: bool,
) -> None:
    """Fills the files of embeddings block by block, from where the last run stopped."""
    wanted, folder = list(texts.values()), unfinished.path
    files = part_files(len(wanted), part_items)
    done = unfinished.done()
    if done:
        log.info("%s of %s items are embedded already", f"{done:,}", f"{len(wanted):,}")

    def blocks() -> Iterator[Sequence[str]]:
        start = done
        while start < len(wanted):
            # None lies in two parts.
            end = min(start + block, start // part_items * part_items + part_items)
            yield wanted[start:end]
            start = end

    with progress_bar(
        total=len(wanted), initial=done, desc="embedding", unit=" items", disable=not progress
    ) as bar:
        for found in embed(blocks()):
            if not np.isfinite(found).all():
                raise DataError(
                    f"{folder}: vectors of items hold NaN or infinity; did training diverge?"
                )
            number, place = divmod(done, part_items)
            shape = min(part_items, len(wanted) - number * part_items), dim
            mode = "r+" if place else "w+"
            vectors = np.lib.format.open_memmap(folder / files[number], mode, np.float32, shape)
            vectors[place : place + len(found)] = found
            vectors.flush()
            done += len(found)
            unfinished.record(done)
            bar.update(len(found))


def _same_index(folder: Path, model: str, catalogue: str, part_items: int) -> IndexManifest:
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} exists and is no index; name a new folder")
    manifest = read_manifest(folder)
    if (manifest.model, manifest.catalogue) != (model, catalogue):
        what = "of another model or catalogue"
    elif part_items != manifest.part_items:
        what = f"in parts of {manifest.part_items:,} items"
    else:
        log.info("%s is built already", folder)
        return manifest
    raise DataError(f"{folder} is an index {what}; remove it, or name another folder")


def catalogue_fingerprint(texts: Mapping[str, str]) -> str:
    """Of items' ids and texts, in their order."""
    digest = hashlib.sha256()
    for id_, text in texts.items():
        digest.update(json.dumps([id_, text]).encode())
    return digest.hexdigest()

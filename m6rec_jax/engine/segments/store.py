"""States of a whole catalogue's candidates on disk, below the pools of `segment_cache`.

    STORE/
      manifest.json   model fingerprint, task, type, number of candidates, checksums of the files
      keys.npy        uint64 [candidates, 2], hashes of the tokens, ascending
      starts.npy      int64 [candidates, 2], first row of the states, number of tokens
      states.npy      [tokens, width], float32, int8, or bfloat16 as uint16
      scales.npy      float32 [tokens], of int8 alone

States are mapped from disk, and checksums are compared when the store is opened. States of another
model mean nothing to this one, so a store is opened by its model's fingerprint only. While it is
written the folder has `.unfinished` in its name; a run that was killed goes on from its last block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from m6rec_jax.errors import CheckpointError, DataError
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.locks import unfinished_folder
from m6rec_jax.io.progress import progress_bar

MANIFEST, KEYS, STARTS = "manifest.json", "keys.npy", "starts.npy"
STATES, SCALES = "states.npy", "scales.npy"
STORED_TYPES = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
# Candidates computed between two records of progress.
BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class StoreManifest:
    """What `manifest.json` holds.

    Attributes:
      model: `LoadedModel.fingerprint` of the task, without exits.
      task: whose prompts the states were computed with.
      dtype: one of `STORED_TYPES`.
      count, tokens, width: candidates, all their tokens, numbers of a token's state.
      checksums: file -> SHA-256.
    """

    model: str
    task: str
    dtype: str
    count: int
    tokens: int
    width: int
    checksums: dict[str, str]


class SegmentStore:
    """A store that was opened.

    Args:
      folder: of `write_segments`.
      model: fingerprint of the model in use, for the task of the manifest.

    Raises:
      CheckpointError: there is none, it is damaged, or another model's.
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        folder = Path(folder)
        self.manifest = read_manifest(folder)
        if self.manifest.model != model:
            raise CheckpointError(
                f"{folder} was computed by another model (fingerprint "
                f"{self.manifest.model[:16]}…, the one in use has {model[:16]}…); make it anew "
                "with `m6rec index segments`"
            )
        for name, checksum in self.manifest.checksums.items():
            if not (folder / name).is_file() or file_sha256(folder / name) != checksum:
                raise CheckpointError(
                    f"{folder / name} is missing or damaged; run `m6rec index segments` anew"
                )
        keys = np.load(folder / KEYS)
        self._high, self._low = keys[:, 0].copy(), keys[:, 1].copy()
        self._starts = np.load(folder / STARTS)
        self._states = np.load(folder / STATES, mmap_mode="r")
        self._scales = np.load(folder / SCALES) if self.manifest.dtype == "int8" else None

    def get(self, tokens: bytes) -> np.ndarray | None:
        """States `[length, width]` of a candidate's int32 tokens, as bytes; None: not there."""
        high, low = _key(tokens)
        place = int(np.searchsorted(self._high, np.uint64(high)))  # of its type: no copy
        while place < len(self._high) and self._high[place] == high:
            if self._low[place] == low:
                return self._read(*map(int, self._starts[place][:2]))
            place += 1
        return None

    def _read(self, start: int, length: int) -> np.ndarray:
        place = slice(start, start + length)
        stored = np.asarray(self._states[place])
        if self._scales is not None:
            return stored.astype(np.float32) * self._scales[place, None]
        return stored.view(ml_dtypes.bfloat16) if self.manifest.dtype == "bfloat16" else stored


def read_manifest(folder: str | Path) -> StoreManifest:
    """The manifest of a store.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no store of segments ({MANIFEST} is missing): `m6rec index segments` "
            "makes one"
        )
    try:
        return StoreManifest(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; make the store anew") from error


def write_segments(
    folder: str | Path,
    candidates: Sequence[np.ndarray],
    compute: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    *,
    model: str,
    task: str,
    width: int,
    dtype: str = "bfloat16",
    block: int = BLOCK,
    progress: bool = True,
) -> StoreManifest:
    """Computes a catalogue's states into a new folder; goes on where a killed run stopped.

    Args:
      folder: new or empty; where the same store lies already, nothing is done.
      candidates: int32 tokens of each, `[BOS]` and `[EOS]` included.
      compute: tokens to states, `[length, width]` each.
      model, task: see `StoreManifest`.
      width: numbers of a state.
      dtype: one of `STORED_TYPES`.
      block: candidates computed at a time.
      progress: whether to show a bar.

    Raises:
      DataError: something else is there, or another process is writing it.
    """
    folder = Path(folder)
    by_key = {_key(tokens.astype(np.int32).tobytes()): tokens for tokens in candidates}
    keys = sorted(by_key)
    lengths = np.array([len(by_key[key]) for key in keys], np.int64)
    starts = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
    shape = (int(lengths.sum()), width)
    own_keys = np.array(keys, np.uint64).reshape(-1, 2)
    with contextlib.suppress(OSError):
        folder.rmdir()  # where it is empty, it is as good as new
    if folder.exists():
        if not (folder / MANIFEST).is_file():
            raise DataError(f"{folder} exists and is no store of segments; name a new folder")
        found = read_manifest(folder)
        with contextlib.suppress(OSError, ValueError):  # damaged keys are something else
            there = np.load(folder / KEYS)
            if (found.model, found.dtype) == (model, dtype) and np.array_equal(there, own_keys):
                return found
        raise DataError(f"{folder} holds states of something else; remove it, or name another")
    made_of = [model, dtype, hashlib.sha256(repr(keys).encode()).hexdigest()]
    with unfinished_folder(folder, f"writing {folder}", made_of) as unfinished:
        path, done = unfinished.path, unfinished.done()
        mode = "r+" if done else "w+"
        states = np.lib.format.open_memmap(path / STATES, mode, STORED_TYPES[dtype], shape)
        scales = (
            np.lib.format.open_memmap(path / SCALES, mode, np.float32, shape[:1])
            if dtype == "int8"
            else None
        )
        with progress_bar(
            total=len(keys), initial=done, desc="segments", unit=" items", disable=not progress
        ) as bar:
            for first in range(done, len(keys), block):
                own = keys[first : first + block]
                values = np.concatenate(compute([by_key[key] for key in own])).astype(np.float32)
                place = slice(starts[first, 0], starts[first, 0] + len(values))
                if scales is not None:
                    scales[place] = np.maximum(np.abs(values).max(axis=1), 1e-30) / 127
                    states[place] = np.rint(values / scales[place, None])
                    scales.flush()
                elif dtype == "bfloat16":
                    states[place] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
                else:
                    states[place] = values
                states.flush()
                unfinished.record(first + len(own))
                bar.update(len(own))
        np.save(path / KEYS, own_keys)
        np.save(path / STARTS, starts)
        files = [KEYS, STARTS, STATES, *([SCALES] if scales is not None else [])]
        checksums = {name: file_sha256(path / name) for name in files}
        manifest = StoreManifest(model, task, dtype, len(keys), *shape, checksums)
        described = json.dumps(dataclasses.asdict(manifest), indent=2)
        (path / MANIFEST).write_text(described + "\n", "utf-8")
    return manifest


def _key(tokens: bytes) -> tuple[int, int]:
    digest = hashlib.blake2b(tokens, digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")

"""States of a whole catalogue's candidates on disk, below the pools of `segments.cache`.

STORE/              a `computed_folder`
  manifest.json
  places.npy        uint64 [candidates, 4], hash of the tokens in two halves, first row of the
                    states, number of tokens; ascending
  states.npy        float32 or bfloat16 [tokens, width]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.computed_folder import (
    ComputedManifest,
    blocks_of,
    read_manifest,
    write_folder,
)
from m6rec_jax.io.hashing import sha256

STORE_COMMAND = "m6rec index segments"
PLACES, STATES = "places.npy", "states.npy"
STORED_TYPES = ("float32", "bfloat16")


class SegmentStore:
    """A store that was opened.

    Args:
      folder: of `write_segments`.
      model: fingerprint of the model in use, for the task of the manifest.

    Raises:
      CheckpointError: there is none, it is damaged, or another model's.
    """

    def __init__(self, folder: str | Path, model: str) -> None:
        manifest = read_manifest(folder := Path(folder), STORE_COMMAND, model)
        self._places = np.load(folder / PLACES)
        self._high = self._places[:, 0].copy()  # side by side: searched without another copy
        dtype = jnp.dtype(manifest.dtype)
        self._states = np.load(folder / STATES, mmap_mode="r").view(dtype)

    def get(self, tokens: bytes) -> np.ndarray | None:
        """States `[length, width]` of a candidate's int32 tokens, as bytes; None: not there."""
        high, low = _hash(tokens)
        place = int(np.searchsorted(self._high, high))
        if place == len(self._high) or (self._places[place, :2] != (high, low)).any():
            return None
        start, length = self._places[place, 2:].tolist()
        return np.asarray(self._states[start : start + length])


def write_segments(
    folder: str | Path,
    candidates: Sequence[np.ndarray],
    compute: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    *,
    model: str,
    task: str,
    width: int,
    dtype: str = "bfloat16",
    progress: bool = True,
) -> ComputedManifest:
    """Computes a catalogue's states into a new folder.

    Args:
      folder: see `write_folder`.
      candidates: int32 tokens of each, `[BOS]` and `[EOS]` included; at least one.
      compute: tokens to states, `[length, width]` each.
      model, task: see `ComputedManifest`.
      width: numbers of a state.
      dtype: one of `STORED_TYPES`.
      progress: whether to show a bar.

    Raises:
      DataError, CheckpointError: as `write_folder`.
    """
    by_hash = {_hash(tokens.astype(np.int32).tobytes()): tokens for tokens in candidates}
    hashes = sorted(by_hash)
    entries = [by_hash[key] for key in hashes]
    lengths = np.array([len(tokens) for tokens in entries], np.uint64)
    ends = np.cumsum(lengths)
    places = np.column_stack([np.array(hashes, np.uint64), ends - lengths, lengths])
    manifest = ComputedManifest(
        STORE_COMMAND,
        model,
        sha256(places.tobytes()),
        task,
        dtype,
        len(entries),
        [int(ends[-1]), width],
    )
    return write_folder(
        Path(folder),
        manifest,
        STATES,
        (np.concatenate(compute(tokens)) for tokens in blocks_of(entries, progress)),
        {PLACES: lambda path: np.save(path, places)},
    )


def _hash(tokens: bytes) -> tuple[np.uint64, np.uint64]:
    high, low = np.frombuffer(hashlib.blake2b(tokens, digest_size=16).digest(), np.uint64)
    return high, low

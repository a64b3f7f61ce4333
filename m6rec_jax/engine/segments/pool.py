"""States of segments on the device: fixed slots, filled as segments are asked for, reused by all.

    pool = SegmentPool("source", width=512, capacity=65536, ...)
    slots = pool.slots(variables, segments)       # where each segment's states are; computes misses
    states = pool.states[np.concatenate(slots)]   # inside jit: a gather

A slot holds the state of one token, and any slots will do for a segment, so nothing ever has to be
moved. The segments longest unused make room for new ones. Beneath may lie a `store.SegmentStore` of
a whole catalogue.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.programs.runtime import Runtime, smallest_that_fits
from m6rec_jax.engine.segments.store import SegmentStore
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec

Array = jax.Array
# Rows of segments in one batch of what is computed; slots in one batch of what is copied.
ROW_SIZES = (1, 4, 16)
COPY_SIZES = (256, 4096)


class Segment(NamedTuple):
    """Tokens whose states depend on each other and on their task alone.

    Attributes:
      tokens: int32 `[length]`.
      task_id: row of the prompts that they are computed with.
      task: what tells the task's prompts from all others, past and present; None: the states are
        the same for all tasks.
    """

    tokens: np.ndarray
    task_id: int
    task: Hashable

    @property
    def key(self) -> Hashable:
        """Equal for segments of equal states."""
        return self.task, self.tokens.tobytes()


# States of packed segments, inside jit: a model, variables, tokens and block ids `[rows, length]`,
# task ids `[rows, 1]` to `[rows, length, width]`.
Compute = Callable[[M6Rec, Any, Array, Array, Array], Array]
# A segment that is computed, and its slots.
Placed = tuple[Segment, np.ndarray]


@dataclasses.dataclass
class PoolCounts:
    """What a pool did so far.

    Attributes:
      hits: segments found on the device.
      store_hits: segments found in the store.
      computed: segments that nobody had.
      evicted: segments that made room.
    """

    hits: int = 0
    store_hits: int = 0
    computed: int = 0
    evicted: int = 0


class SegmentPool:
    """Not safe for several threads: callers hold a lock from `slots` until their program started.

    Args:
      name: for errors.
      model: whose early layers compute states.
      width: numbers of a state.
      capacity: slots, one per token.
      row_lengths: lengths of the rows in which segments are computed, ascending.
      compute: see `Compute`.
      runtime: where programs run.
      dtype: of the states kept.

    Attributes:
      states: `[capacity, width]`. Replaced by every call of `slots`, which donates the one before.
      counts: see `PoolCounts`.
      store: states computed before; None: there is none.
      store_task: the task of its states, where they depend on one.

    Raises:
      ConfigError: no room for the longest row.
    """

    def __init__(
        self,
        name: str,
        model: M6Rec,
        *,
        width: int,
        capacity: int,
        row_lengths: Sequence[int],
        compute: Compute,
        runtime: Runtime,
        dtype: str,
    ) -> None:
        self.name, self.width, self.capacity = name, width, capacity
        if capacity < row_lengths[-1]:
            raise ConfigError(
                f"SegmentCache.{name}_slots = {capacity} is too small for one row of "
                f"{row_lengths[-1]} tokens"
            )
        self.counts = PoolCounts()
        self.store: SegmentStore | None = None
        self.store_task: Hashable = None
        self._dtype, self._runtime = jnp.dtype(dtype), runtime
        self._row_lengths, self._row_sizes = row_lengths, runtime.batch_sizes(ROW_SIZES)
        self._fill = runtime.program(_fill, compute, model, donate=(0,))
        self._write = runtime.program(_write, donate=(0,))
        self._read = runtime.program(_read)
        self.states: Array = self._empty()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        if self.states.is_deleted():  # given to a program that failed
            self.states = self._empty()
        # The segments longest unused come first.
        self._slots = collections.OrderedDict[Hashable, np.ndarray]()
        self._free = np.arange(self.capacity, dtype=np.int32)

    def _empty(self) -> Array:
        return self._runtime.place_whole(np.zeros((self.capacity, self.width), self._dtype))

    def slots(self, variables: Any, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Where the states of each segment are, int32 `[length]` each; computes those missing.

        They stay there until the next call.

        Raises:
          ConfigError: the pool has no room for that many segments at once; it stays as it was.
        """
        keys = [segment.key for segment in segments]
        wanted = dict(zip(keys, segments, strict=True))
        if sum(len(segment.tokens) for segment in wanted.values()) > self.capacity:
            raise ConfigError(
                f"the pool of {self.name} segments has {self.capacity} slots, too few for one "
                f"batch: raise SegmentCache.{self.name}_slots"
            )
        missing = {key: own for key, own in wanted.items() if key not in self._slots}
        self.counts.hits += sum(key not in missing for key in keys)
        for key in wanted:
            if key not in missing:
                self._slots.move_to_end(key)
        if missing:
            try:
                self._bring(variables, missing)
            except BaseException:
                # Slots may be half filled, and the array was donated.
                self.clear()
                raise
        return [self._slots[key] for key in keys]

    def read(self, slots: np.ndarray) -> np.ndarray:
        """The states in slots int32 `[n]`, `[n, width]`."""
        parts = []
        for start, size in _batches(len(slots), COPY_SIZES):
            part = slots[start : start + size]
            padded = np.pad(part, (0, size - len(part)))
            parts.append((self._read(self.states, padded), len(part)))
        return np.concatenate([np.asarray(states)[:number] for states, number in parts])

    def warm_up(self, variables: Any) -> None:
        """Compiles every program that `slots` may run."""
        # Twice: only what a program returned lies as it will lie from then on.
        for length in (*self._row_lengths, *self._row_lengths):
            for size in self._row_sizes:
                self._fill_rows(variables, [], length, size)
        if self.store is not None:
            for size in COPY_SIZES:
                nowhere = np.full(size, self.capacity, np.int32)
                self._copy(nowhere, np.zeros((size, self.width), self._dtype))

    def _bring(self, variables: Any, missing: Mapping[Hashable, Segment]) -> None:
        self._make_room(sum(len(segment.tokens) for segment in missing.values()))
        stored: list[tuple[np.ndarray, np.ndarray]] = []
        computed: list[Placed] = []
        for key, segment in missing.items():
            left = len(self._free) - len(segment.tokens)
            self._free, slots = self._free[:left], self._free[left:]
            self._slots[key] = slots
            states = None
            if self.store is not None and segment.task in (None, self.store_task):
                states = self.store.get(segment.tokens.tobytes())
            if states is None:
                computed.append((segment, slots))
            else:
                stored.append((slots, states))
        self.counts.store_hits += len(stored)
        self.counts.computed += len(computed)
        if stored:
            self._copy(*map(np.concatenate, zip(*stored, strict=True)))
        self._compute(variables, computed)

    def _make_room(self, slots: int) -> None:
        """Drops segments longest unused."""
        free, number = [self._free], len(self._free)
        while number < slots:
            _, dropped = self._slots.popitem(last=False)
            free.append(dropped)
            number += len(dropped)
        self._free = np.concatenate(free)
        self.counts.evicted += len(free) - 1

    def _copy(self, slots: np.ndarray, states: np.ndarray) -> None:
        for start, size in _batches(len(slots), COPY_SIZES):
            part = slice(start, start + size)
            missing = size - len(slots[part])
            padded = np.pad(slots[part], (0, missing), constant_values=self.capacity)
            values = np.pad(states[part].astype(self._dtype), ((0, missing), (0, 0)))
            self.states = self._write(self.states, values, padded)

    def _compute(self, variables: Any, computed: Sequence[Placed]) -> None:
        """Computes segments in rows that hold several of one task."""

        def kind(placed: Placed) -> tuple[int, int]:
            segment, slots = placed
            # What is the same for all tasks may share a row with anything.
            task = -1 if segment.task is None else segment.task_id
            return smallest_that_fits(len(slots), self._row_lengths), task

        rows: dict[int, list[list[Placed]]] = {}
        for (length, _), members in itertools.groupby(sorted(computed, key=kind), kind):
            room, filled = 0, rows.setdefault(length, [])
            for placed in members:
                if room < len(placed[1]):
                    filled.append([])
                    room = length
                filled[-1].append(placed)
                room -= len(placed[1])
        for length, filled in rows.items():
            for start, size in _batches(len(filled), self._row_sizes):
                self._fill_rows(variables, filled[start : start + size], length, size)

    def _fill_rows(
        self, variables: Any, rows: Sequence[Sequence[Placed]], length: int, size: int
    ) -> None:
        features = {name: np.zeros((size, length), np.int32) for name in ("tokens", "block_ids")}
        features["slots"] = np.full((size, length), self.capacity, np.int32)
        features["task_ids"] = np.zeros((size, 1), np.int32)
        for place, row in enumerate(rows):
            start = 0
            for block, (segment, slots) in enumerate(row, start=1):
                tokens = slice(start, start + len(slots))
                features["tokens"][place, tokens] = segment.tokens
                features["block_ids"][place, tokens] = block
                features["slots"][place, tokens] = slots
                features["task_ids"][place] = segment.task_id
                start += len(slots)
        placed = self._runtime.place_shared(features)
        self.states = self._fill(self.states, variables, placed)


def _fill(
    compute: Compute, model: M6Rec, states: Array, variables: Any, features: Mapping[str, Array]
) -> Array:
    """Slots beyond the last one are nobody's: what stands in them is dropped."""
    values = compute(
        model, variables, features["tokens"], features["block_ids"], features["task_ids"]
    )
    values = values.reshape(-1, states.shape[1]).astype(states.dtype)
    return states.at[features["slots"].reshape(-1)].set(values, mode="drop")


def _write(states: Array, values: Array, slots: Array) -> Array:
    return states.at[slots].set(values, mode="drop")


def _read(states: Array, slots: Array) -> Array:
    return states.at[slots].get(mode="clip")


def _batches(number: int, sizes: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Starts and padded sizes of batches that hold so many."""
    start = 0
    while start < number:
        size = smallest_that_fits(number - start, sizes)
        yield start, size
        start += size

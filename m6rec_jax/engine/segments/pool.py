"""States of segments on the device: fixed slots, filled as segments are asked for, reused by all.

    pool = SegmentPool("source", width=512, capacity=65536, ...)
    slots = pool.slots(variables, segments)       # where each segment's states are; computes misses
    states = pool.states[np.concatenate(slots)]   # inside jit: a gather

A slot holds the state of one token. Segments take slots in pages, so nothing ever has to be moved.
The segments longest unused make room for new ones. Beneath may lie a `segment_store.SegmentStore`
of a whole catalogue.
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
# Slots that are given out together. A segment of n tokens takes the next multiple of it.
PAGE = 4
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


@dataclasses.dataclass
class _Entry:
    slots: np.ndarray
    used: int


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
        dtype: str = "float32",
    ) -> None:
        self.name, self.width, self.capacity = name, width, capacity // PAGE * PAGE
        if self.capacity < _pages(row_lengths[-1]) * PAGE:
            raise ConfigError(
                f"SegmentCache.{name}_slots = {capacity} is too small for one row of "
                f"{row_lengths[-1]} tokens"
            )
        self.counts = PoolCounts()
        self._dtype, self._runtime = jnp.dtype(dtype), runtime
        self.store: SegmentStore | None = None
        self.store_task: Hashable = None
        self._row_lengths = tuple(row_lengths)
        self._row_sizes = runtime.batch_sizes(ROW_SIZES)
        self._time = itertools.count(1)

        self._fill = runtime.program(_fill, compute, model, donate=(0,))
        self._write = runtime.program(_write, donate=(0,))
        self._read = runtime.program(_read)
        self.states: Array = runtime.place_whole(self._empty())
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        if self.states.is_deleted():  # given to a program that failed
            self.states = self._runtime.place_whole(self._empty())
        self._entries = collections.OrderedDict[Hashable, _Entry]()
        self._free = collections.deque(range(0, self.capacity, PAGE))

    def _empty(self) -> np.ndarray:
        return np.zeros((self.capacity, self.width), self._dtype)

    @property
    def slots_used(self) -> int:
        """Slots of pages that are taken."""
        return self.capacity - len(self._free) * PAGE

    def usage(self) -> dict[str, int]:
        """Slots, those that are taken, bytes of all on the devices."""
        return {
            "slots": self.capacity,
            "slots_used": self.slots_used,
            "bytes": self.capacity * self.width * self._dtype.itemsize,
        }

    def slots(self, variables: Any, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Where the states of each segment are, int32 `[length]` each; computes those missing.

        They stay there until the next call.

        Raises:
          ConfigError: the pool has no room for that many segments at once.
        """
        now = next(self._time)
        missing: dict[Hashable, Segment] = {}
        keys = [segment.key for segment in segments]
        for key, segment in zip(keys, segments, strict=True):
            entry = self._entries.get(key)
            if entry is None:
                missing[key] = segment
            else:
                entry.used = now
                self._entries.move_to_end(key)
                self.counts.hits += 1
        if missing:
            try:
                self._bring(variables, missing, now)
            except BaseException:
                # Slots may be half filled, and the array was donated.
                self.clear()
                raise
        return [self._entries[key].slots for key in keys]

    def read(self, slots: np.ndarray) -> np.ndarray:
        """The states in slots int32 `[n]`, `[n, width]`."""
        parts = []
        for start, size in _batches(len(slots), COPY_SIZES):
            own = slots[start : start + size]
            padded = np.pad(own, (0, size - len(own)))
            parts.append((self._read(self.states, padded), len(own)))
        return np.concatenate([np.asarray(found)[:number] for found, number in parts])

    def warm_up(self, variables: Any) -> None:
        """Compiles every program that `slots` may run."""
        # Twice: only what a program returned lies as it will lie from then on.
        for length in self._row_lengths * 2:
            for size in self._row_sizes:
                self._fill_rows(variables, [], length, size)
        if self.store is not None:
            for size in COPY_SIZES:
                nowhere = np.full(size, self.capacity, np.int32)
                self._write_all([(nowhere[:1], np.zeros((1, self.width), self._dtype))] * size)

    def _bring(self, variables: Any, missing: Mapping[Hashable, Segment], now: int) -> None:
        self._make_room(sum(_pages(len(s.tokens)) for s in missing.values()), now)
        copied: list[tuple[np.ndarray, np.ndarray]] = []
        computed: dict[Hashable, Segment] = {}
        for key, segment in missing.items():
            length = len(segment.tokens)
            pages = [self._free.popleft() for _ in range(_pages(length))]
            slots = (np.array(pages, np.int32)[:, None] + np.arange(PAGE, dtype=np.int32)).ravel()
            self._entries[key] = _Entry(slots[:length], now)
            found = self._stored(segment)
            if found is None:
                computed[key] = segment
            else:
                copied.append((slots[:length], found))
        self.counts.computed += len(computed)
        self._write_all(copied)
        self._compute(variables, computed)

    def _make_room(self, pages: int, now: int) -> None:
        """Drops segments longest unused."""
        while len(self._free) < pages:
            key, entry = next(iter(self._entries.items()), (None, None))
            if entry is None or entry.used == now:
                raise ConfigError(
                    f"the pool of {self.name} segments has {self.capacity} slots, too few for one "
                    f"batch: raise SegmentCache.{self.name}_slots"
                )
            del self._entries[key]
            self._free.extend(entry.slots[::PAGE].tolist())
            self.counts.evicted += 1

    def _stored(self, segment: Segment) -> np.ndarray | None:
        """States from the store."""
        if self.store is None or segment.task not in (None, self.store_task):
            return None
        found = self.store.get(segment.tokens.tobytes())
        self.counts.store_hits += found is not None
        return found

    def _write_all(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        if not parts:
            return
        slots = np.concatenate([slots for slots, _ in parts])
        values = np.concatenate([values for _, values in parts])
        for start, size in _batches(len(slots), COPY_SIZES):
            own = slice(start, start + size)
            number = len(slots[own])
            padded = np.full(size, self.capacity, np.int32)
            padded[:number] = slots[own]
            filled = np.zeros((size, self.width), self._dtype)
            filled[:number] = values[own]
            self.states = self._write(self.states, filled, padded)

    def _compute(self, variables: Any, computed: Mapping[Hashable, Segment]) -> None:
        """Computes segments in rows that hold several of one task."""
        rows: dict[tuple[int, int], list[list[Hashable]]] = {}
        room: dict[tuple[int, int], int] = {}
        for key, segment in computed.items():
            number = len(segment.tokens)
            length = smallest_that_fits(number, self._row_lengths)
            # What is the same for all tasks may share a row with anything.
            kind = (length, segment.task_id if segment.task is not None else -1)
            if room.get(kind, -1) < number:
                rows.setdefault(kind, []).append([])
                room[kind] = length
            rows[kind][-1].append(key)
            room[kind] -= number
        by_length: dict[int, list[list[Hashable]]] = {}
        for (length, _), own in rows.items():
            by_length.setdefault(length, []).extend(own)
        for length, filled in by_length.items():
            for start, size in _batches(len(filled), self._row_sizes):
                part = [
                    [(computed[key], self._entries[key].slots) for key in row]
                    for row in filled[start : start + size]
                ]
                self._fill_rows(variables, part, length, size)

    def _fill_rows(
        self,
        variables: Any,
        rows: Sequence[Sequence[tuple[Segment, np.ndarray]]],
        length: int,
        size: int,
    ) -> None:
        features = {name: np.zeros((size, length), np.int32) for name in ("tokens", "block_ids")}
        features["slots"] = np.full((size, length), self.capacity, np.int32)
        features["task_ids"] = np.zeros((size, 1), np.int32)
        for place, row in enumerate(rows):
            start = 0
            for block, (segment, slots) in enumerate(row, start=1):
                own = slice(start, start + len(slots))
                features["tokens"][place, own] = segment.tokens
                features["block_ids"][place, own] = block
                features["slots"][place, own] = slots
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
    return states.at[slots].set(values.astype(states.dtype), mode="drop")


def _read(states: Array, slots: Array) -> Array:
    return states.at[slots].get(mode="clip")


def _pages(length: int) -> int:
    return -(-length // PAGE)


def _batches(number: int, sizes: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Starts and padded sizes of batches that hold so many."""
    start = 0
    while start < number:
        size = smallest_that_fits(number - start, sizes)
        yield start, size
        start += size

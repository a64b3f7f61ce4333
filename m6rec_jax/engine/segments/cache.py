"""Late interaction at run time: what early layers make of segments is computed once (section 4).

    cache = SegmentCache(model, source_length=256, target_length=64, runtime=runtime)
    with cache.lock:
        slots = cache.source.slots(variables, rows, settings)
        program(variables, cache.pools(), slots, ...)       # gathers, then runs the late layers

Two pools: segments of histories with the soft prompts, and candidates. A state depends on the
tokens of its segment and on the backbone. On the task it depends where the task changes early
layers or the embedding of one of the tokens; `PromptConfig.adapters_late_only` keeps early layers
free of tasks, and all tasks then share their segments.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.programs.runtime import Runtime, smallest_that_fits
from m6rec_jax.engine.segments.store import SegmentStore
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.model.attention import KeyValue
from m6rec_jax.model.tuning import METHODS
from m6rec_jax.text.layout import Row

Array = jax.Array
Variables = Mapping[str, Any]


# Tokens of a short row; rows in one batch of what is computed; slots in one of what is copied.
SHORT_ROW = 64
ROW_SIZES = (1, 4, 16)
COPY_SIZES = (256, 4096)


class Segment(NamedTuple):
    """Tokens whose states depend on each other and on their task alone.

    Attributes:
      tokens: int32 `[length]`.
      task_id: row of the prompts that they are computed with.
      task: with whose prompts; None: the states are the same for all tasks. The object counts, not
        what it says: prompts that are replaced may have equal settings.
    """

    tokens: np.ndarray
    task_id: int
    task: TaskSettings | None

    @property
    def key(self) -> Hashable:
        """Equal for segments of equal states, as long as their tasks are held."""
        return self.task and id(self.task), self.tokens.tobytes()


# A segment, and its slots.
Placed = tuple[Segment, np.ndarray]


class SegmentPool:
    """Not safe for several threads: callers hold a lock from `slots` until their program started.

    Args:
      model: whose early layers compute states.
      side: 'encoder', segments of histories with the soft prompts, or 'decoder', candidates.
      capacity: slots, one per token.
      longest: tokens of the longest row in which segments are computed.
      runtime: where programs run.
      dtype: of the states kept.

    Attributes:
      name: 'source' or 'candidate'.
      width: numbers of a state.
      states: `[capacity, width]`. Replaced by every call of `slots`, which donates the one before.
      computed: segments so far that were neither on the device nor in the store.
      store: states computed before, and the task of those that depend on one; None: there is none.

    Raises:
      ConfigError: no room for the longest row.
    """

    def __init__(
        self, model: M6Rec, side: str, *, capacity: int, longest: int, runtime: Runtime, dtype: str
    ) -> None:
        config, prompts = model.config, model.config.prompts
        is_source = side == "encoder"
        at_ends = not is_source and config.cross_attention_at == "ends"
        self.name = "source" if is_source else "candidate"
        self.capacity, self._side = capacity, side
        if capacity < longest:
            raise ConfigError(
                f"SegmentCache.{self.name}_slots = {capacity} is too small for one row of "
                f"{longest} tokens"
            )
        self.width = config.embed_dim
        if at_ends:  # with keys and values of late layers
            late = config.num_decoder_layers - config.first_cross_layer
            self.width += 2 * late * config.num_heads * config.head_dim
        early = [method for method in METHODS if method.in_early_layers and method.used(prompts)]
        self._of_task = (
            at_ends
            or (prompts.in_layers and not prompts.adapters_late_only)
            or any(side in method.towers for method in early)
        )
        self._own_tokens = frozenset(prompts.special_token_ids)
        num_prompts = prompts.num_prompts if is_source else 0
        self._soft_prompts = -1 - np.arange(num_prompts, dtype=np.int32)
        self.computed = 0
        self.store: tuple[SegmentStore, TaskSettings] | None = None
        self._dtype, self._runtime = jnp.dtype(dtype), runtime
        # Most segments are short: a short row holds several of them.
        self._row_lengths = sorted({min(SHORT_ROW, longest), longest})
        self._row_sizes = runtime.batch_sizes(ROW_SIZES)
        compute = (
            "encode_segments" if is_source else "candidate_states" if at_ends else "decode_early"
        )
        self._fill = runtime.program(_fill, model, compute, donate=(0,))
        self._write = runtime.program(_write, donate=(0,))
        self.states: Array = self._empty()
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        if self.states.is_deleted():  # given to a program that failed
            self.states = self._empty()
        # The segments longest unused come first. They hold their tasks, by which they are known.
        self._placed = collections.OrderedDict[Hashable, Placed]()
        self._free = np.arange(self.capacity, dtype=np.int32)

    def _empty(self) -> Array:
        return self._runtime.place_whole(np.zeros((self.capacity, self.width), self._dtype))

    def slots(
        self, variables: Any, rows: Sequence[Row], settings: Sequence[TaskSettings]
    ) -> list[np.ndarray]:
        """Where the states of each row's tokens are, int32 `[length]`, of a source after those of
        the soft prompts. Computes those that are missing. They stay there until the next call.

        Args:
          variables: of the model.
          rows: of `text.rows`.
          settings: of the task of each row.

        Raises:
          ConfigError: the pool has no room for so many segments at once; it stays as it was.
        """
        segments, numbers = list[Segment](), list[int]()
        for row, task in zip(rows, settings, strict=True):
            tokens, blocks = row[f"{self._side}_input_tokens"], row[f"{self._side}_block_ids"]
            parts = np.split(tokens, np.flatnonzero(np.diff(blocks)) + 1)
            if len(self._soft_prompts):
                parts.insert(0, self._soft_prompts)
            numbers.append(len(parts))
            segments += [self._segment(part, task) for part in parts]
        slots = iter(self._slots(variables, segments))
        return [np.concatenate([next(slots) for _ in range(number)]) for number in numbers]

    def states_of(
        self, variables: Any, texts: Sequence[np.ndarray], settings: TaskSettings
    ) -> list[np.ndarray]:
        """What is kept of texts, `[length, width]` each; int32 tokens with `[BOS]` and `[EOS]`."""
        states: list[np.ndarray] = []
        segments = [self._segment(tokens, settings) for tokens in texts]
        at_once = self.capacity // max(map(len, texts))
        for start in range(0, len(segments), at_once):
            slots = self._slots(variables, segments[start : start + at_once])
            pool = np.asarray(self.states)  # most of it is asked for
            states += [pool[one] for one in slots]
        return states

    def _segment(self, tokens: np.ndarray, settings: TaskSettings) -> Segment:
        of_task = self._of_task or tokens[0] < 0 or not self._own_tokens.isdisjoint(tokens.tolist())
        return Segment(tokens, settings.task_id, settings if of_task else None)

    def _slots(self, variables: Any, segments: Sequence[Segment]) -> list[np.ndarray]:
        keys = [segment.key for segment in segments]
        wanted = dict(zip(keys, segments, strict=True))
        if sum(len(segment.tokens) for segment in wanted.values()) > self.capacity:
            raise ConfigError(
                f"the pool of {self.name} segments has {self.capacity} slots, too few for one "
                f"batch: raise SegmentCache.{self.name}_slots"
            )
        missing = {key: segment for key, segment in wanted.items() if key not in self._placed}
        for key in wanted:
            if key not in missing:
                self._placed.move_to_end(key)
        if missing:
            try:
                self._bring(variables, missing)
            except BaseException:
                # Slots may be half filled, and the array was donated.
                self.clear()
                raise
        return [self._placed[key][1] for key in keys]

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
            slots, self._free = np.split(self._free, [len(segment.tokens)])
            self._placed[key] = segment, slots
            states = None
            if self.store and (segment.task is None or segment.task is self.store[1]):
                states = self.store[0].get(segment.tokens.tobytes())
            if states is None:
                computed.append((segment, slots))
            else:
                stored.append((slots, states))
        self.computed += len(computed)
        if stored:
            self._copy(*map(np.concatenate, zip(*stored, strict=True)))
        self._compute(variables, computed)

    def _make_room(self, slots: int) -> None:
        """Drops segments longest unused."""
        free, number = [self._free], len(self._free)
        while number < slots:
            _, (_, dropped) = self._placed.popitem(last=False)
            free.append(dropped)
            number += len(dropped)
        self._free = np.concatenate(free)

    def _copy(self, slots: np.ndarray, states: np.ndarray) -> None:
        for start, size in _batches(len(slots), COPY_SIZES):
            part = slice(start, start + size)
            missing = size - len(slots[part])
            padded = np.pad(slots[part], (0, missing), constant_values=self.capacity)
            values = np.pad(states[part].astype(self._dtype), ((0, missing), (0, 0)))
            self.states = self._write(self.states, values, padded)

    def _compute(self, variables: Any, computed: Sequence[Placed]) -> None:
        """Computes segments in rows that hold several of one task."""
        rows: dict[tuple[int, int], list[list[Placed]]] = {}
        for segment, slots in computed:
            length = smallest_that_fits(len(slots), self._row_lengths)
            # What is the same for all tasks may share a row with anything.
            task = -1 if segment.task is None else segment.task_id
            of_task = rows.setdefault((length, task), [[]])
            if sum(len(there) for _, there in of_task[-1]) + len(slots) > length:
                of_task.append([])
            of_task[-1].append((segment, slots))
        for length in self._row_lengths:
            filled = [row for key in rows if key[0] == length for row in rows[key]]
            for start, size in _batches(len(filled), self._row_sizes):
                self._fill_rows(variables, filled[start : start + size], length, size)

    def _fill_rows(
        self, variables: Any, rows: Sequence[Sequence[Placed]], length: int, size: int
    ) -> None:
        tokens, blocks = np.zeros((2, size, length), np.int32)
        slots_of = np.full((size, length), self.capacity, np.int32)
        task_ids = np.zeros((size, 1), np.int32)
        for place, row in enumerate(rows):
            segments, slots = zip(*row, strict=True)
            lengths = [len(own) for own in slots]
            end = sum(lengths)
            tokens[place, :end] = np.concatenate([segment.tokens for segment in segments])
            blocks[place, :end] = np.repeat(np.arange(len(row)) + 1, lengths)
            slots_of[place, :end] = np.concatenate(slots)
            task_ids[place] = segments[-1].task_id
        features = {"tokens": tokens, "block_ids": blocks, "slots": slots_of, "task_ids": task_ids}
        self.states = self._fill(self.states, variables, self._runtime.place_shared(features))


def _fill(
    model: M6Rec, method: str, states: Array, variables: Any, features: Mapping[str, Array]
) -> Array:
    """Computes packed segments by a method of the model: what a token has, one after the other."""
    packed = (features[name] for name in ("tokens", "block_ids", "task_ids"))
    values = model.apply(variables, *packed, method=method)
    if isinstance(values, tuple):
        hidden, keys = values
        # [late layers, rows, heads, length, head_dim]: what a token has of all layers together.
        flat = [part.transpose(1, 3, 0, 2, 4).reshape(*hidden.shape[:2], -1) for part in keys]
        values = jnp.concatenate([hidden, *flat], axis=-1)
    values = values.reshape(-1, states.shape[1]).astype(states.dtype)
    return _write(states, values, features["slots"].reshape(-1))


def _write(states: Array, values: Array, slots: Array) -> Array:
    """Slots beyond the last one are nobody's: what stands in them is dropped."""
    return states.at[slots].set(values, mode="drop")


def _batches(number: int, sizes: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Starts and padded sizes of batches that hold so many."""
    start = 0
    while start < number:
        size = smallest_that_fits(number - start, sizes)
        yield start, size
        start += size


@gin.configurable(denylist=["model", "source_length", "target_length", "runtime"])
class SegmentCache:
    """Segments, soft prompts and candidates of one model, for all its engines and tasks.

    Args:
      model: with `late_layers_start` above 0.
      source_length, target_length: S and T.
      runtime: where programs run.
      source_slots, candidate_slots: tokens that there is room for on the device, each.
      dtype: of the states kept; None: that of the model's activations. 'bfloat16' halves them.

    Attributes:
      lock: to be held from asking for slots until the program that reads them has started.
      source, candidates: the pools.

    Raises:
      ConfigError: a pool too small for the longest row.
    """

    def __init__(
        self,
        model: M6Rec,
        *,
        source_length: int,
        target_length: int,
        runtime: Runtime,
        source_slots: int = 32768,
        candidate_slots: int = 32768,
        dtype: str | None = None,
    ) -> None:
        self.lock = threading.RLock()
        every: dict[str, Any] = {"runtime": runtime, "dtype": dtype or model.config.dtype}
        longest = max(source_length, model.config.prompts.num_prompts)
        self.source = SegmentPool(model, "encoder", capacity=source_slots, longest=longest, **every)
        self.candidates = SegmentPool(
            model, "decoder", capacity=candidate_slots, longest=target_length, **every
        )
        self._pools = (self.source, self.candidates)

    def pools(self) -> dict[str, Array]:
        """What programs gather from, as features: now, until slots are asked for again."""
        return {f"{pool.name}_pool": pool.states for pool in self._pools}

    def warm_up(self, variables: Variables) -> None:
        """Compiles what computes and copies states."""
        with self.lock:
            for pool in self._pools:
                pool.warm_up(variables)


def gathered_ends(
    model: M6Rec, encoded: Encoded, variables: Variables, features: Mapping[str, Array]
) -> Array:
    """Final states at the candidates' ends, `[rows, embed]`; for use inside jit.

    `features`: `candidate_pool`, `candidate_slots` `[rows, length]` with a candidate's tokens to
    the right, `candidate_visible` bool of the same shape, `task_ids` of the sources.
    """
    config = model.config
    found = features["candidate_pool"][features["candidate_slots"]].astype(config.dtype)
    rows, length, _ = found.shape
    hidden = found[:, -1, : config.embed_dim]
    keys = found[..., config.embed_dim :].reshape(
        rows, length, 2, -1, config.num_heads, config.head_dim
    )
    past = KeyValue(*keys.transpose(2, 3, 0, 4, 1, 5))
    return model.apply(
        variables,
        encoded,
        hidden,
        past,
        features["candidate_visible"],
        features["task_ids"],
        method=model.decode_ends,
    )

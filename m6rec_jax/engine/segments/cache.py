"""Late interaction at run time: what early layers make of segments is computed once (section 4).

    cache = SegmentCache(model, source_length=256, target_length=64, runtime=runtime)
    with cache.lock:
        slots = cache.source_slots(variables, rows, settings)
        program(variables, cache.pools(), slots, ...)       # gathers, then runs the late layers

Two pools: segments of histories with the soft prompts, and candidates. A state depends on the
tokens of its segment and on the backbone. On the task it depends where the task changes early
layers or the embedding of one of the tokens; `PromptConfig.adapters_late_only` keeps early layers
free of tasks, and all tasks then share their segments.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.segments.pool import PoolCounts, Segment, SegmentPool
from m6rec_jax.engine.segments.store import SegmentStore
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.model.attention import KeyValue
from m6rec_jax.model.tuning import METHODS
from m6rec_jax.text.layout import Row

Array = jax.Array
Variables = Mapping[str, Any]
# Most segments are short: rows of this many tokens hold several of them.
_ROW_LENGTH = 64


class _Prompts:
    """Tells the prompts of a task from those of other tasks, and of the same name before it."""

    __slots__ = ("settings",)

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings  # held, so that its id stays its own

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Prompts) and self.settings is other.settings

    def __hash__(self) -> int:
        return id(self.settings)


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
      scores_ends: whether candidates are scored at their ends alone (`cross_attention_at`).

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
        config = model.config
        self.model, self.lock = model, threading.RLock()
        self.scores_ends = config.cross_attention_at == "ends"
        prompts = config.prompts
        early = [method for method in METHODS if method.in_early_layers and method.used(prompts)]
        self._of_task = {
            side: (prompts.in_layers and not prompts.adapters_late_only)
            or any(side in method.towers for method in early)
            for side in ("encoder", "decoder")
        }
        self._own_tokens = frozenset(prompts.special_token_ids)
        self._soft_prompts = -1 - np.arange(prompts.num_prompts, dtype=np.int32)
        late = config.num_decoder_layers - config.first_cross_layer
        keys_width = 2 * late * config.num_heads * config.head_dim if self.scores_ends else 0
        every: dict[str, Any] = {"runtime": runtime, "dtype": dtype or config.dtype}
        self._source = SegmentPool(
            "source",
            model,
            width=config.embed_dim,
            capacity=source_slots,
            row_lengths=_row_lengths(max(source_length, prompts.num_prompts)),
            compute=_encode,
            **every,
        )
        self._candidates = SegmentPool(
            "candidate",
            model,
            width=config.embed_dim + keys_width,
            capacity=candidate_slots,
            row_lengths=_row_lengths(target_length),
            compute=_decode_ends if self.scores_ends else _decode,
            **every,
        )
        self._pools = (self._source, self._candidates)

    def pools(self) -> dict[str, Array]:
        """What programs gather from, as features: now, until slots are asked for again."""
        return {f"{pool.name}_pool": pool.states for pool in self._pools}

    def counts(self) -> dict[str, PoolCounts]:
        """By pool, 'source' and 'candidate'."""
        return {pool.name: pool.counts for pool in self._pools}

    def clear(self) -> None:
        """Forgets all states."""
        with self.lock:
            for pool in self._pools:
                pool.clear()

    def source_slots(
        self, variables: Variables, rows: Sequence[Row], settings: Sequence[TaskSettings]
    ) -> list[np.ndarray]:
        """Where the states of soft prompts and tokens are, int32 `[prompts + length]` each.

        Those that are missing are computed.

        Args:
          variables: of the model.
          rows: of `text.rows.source_row`.
          settings: of the task of each row.
        """
        return self._slots(self._source, "encoder", variables, rows, settings)

    def candidate_slots(
        self, variables: Variables, rows: Sequence[Row], settings: Sequence[TaskSettings]
    ) -> list[np.ndarray]:
        """As `source_slots`, of rows of packed candidates: int32 `[length]` each."""
        return self._slots(self._candidates, "decoder", variables, rows, settings)

    def use_store(self, store: SegmentStore, settings: TaskSettings) -> None:
        """Reads candidates from a store that was made for the task of these settings."""
        self._candidates.store, self._candidates.store_task = store, _Prompts(settings)

    @property
    def candidate_width(self) -> int:
        """Numbers of the state of a candidate's token."""
        return self._candidates.width

    def candidate_states(
        self, variables: Variables, tokens: Sequence[np.ndarray], settings: TaskSettings
    ) -> list[np.ndarray]:
        """What is kept of candidates, `[length, width]` each; tokens with `[BOS]` and `[EOS]`."""
        states: list[np.ndarray] = []
        segments = [self._segment(one, settings, "decoder") for one in tokens]
        at_once = self._candidates.capacity // max(map(len, tokens))
        with self.lock:
            for start in range(0, len(segments), at_once):
                slots = self._candidates.slots(variables, segments[start : start + at_once])
                together = self._candidates.read(np.concatenate(slots))
                states += np.split(together, np.cumsum([len(own) for own in slots])[:-1])
        return states

    def warm_up(self, variables: Variables) -> None:
        """Compiles what computes and copies states."""
        with self.lock:
            for pool in self._pools:
                pool.warm_up(variables)

    def _slots(
        self,
        pool: SegmentPool,
        side: str,
        variables: Variables,
        rows: Sequence[Row],
        settings: Sequence[TaskSettings],
    ) -> list[np.ndarray]:
        segments: list[Segment] = []
        numbers = []
        for row, own in zip(rows, settings, strict=True):
            tokens, blocks = row[f"{side}_input_tokens"], row[f"{side}_block_ids"]
            parts = np.split(tokens, np.flatnonzero(np.diff(blocks)) + 1)
            if side == "encoder" and len(self._soft_prompts):
                parts.insert(0, self._soft_prompts)
            numbers.append(len(parts))
            segments += [self._segment(part, own, side) for part in parts]
        found = iter(pool.slots(variables, segments))
        return [np.concatenate([next(found) for _ in range(number)]) for number in numbers]

    def _segment(self, tokens: np.ndarray, settings: TaskSettings, side: str) -> Segment:
        of_task = (
            self._of_task[side]
            or (self.scores_ends and side == "decoder")  # with keys of late layers
            or tokens[0] < 0
            or not self._own_tokens.isdisjoint(tokens.tolist())
        )
        return Segment(tokens, settings.task_id, _Prompts(settings) if of_task else None)


def _encode(
    model: M6Rec, variables: Variables, tokens: Array, blocks: Array, tasks: Array
) -> Array:
    return model.apply(variables, tokens, blocks, tasks, method=model.encode_segments)


def _decode(
    model: M6Rec, variables: Variables, tokens: Array, blocks: Array, tasks: Array
) -> Array:
    return model.apply(variables, tokens, blocks, tasks, method=model.decode_early)


def _decode_ends(
    model: M6Rec, variables: Variables, tokens: Array, blocks: Array, tasks: Array
) -> Array:
    hidden, keys = model.apply(variables, tokens, blocks, tasks, method=model.candidate_states)
    # [late layers, rows, heads, length, head_dim]: what a token has of all layers together.
    flat = [part.transpose(1, 3, 0, 2, 4).reshape(*tokens.shape, -1) for part in keys]
    return jnp.concatenate([hidden, *flat], axis=-1)


def gathered_source(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> Encoded:
    """What the decoder reads of cached segments; for use inside jit.

    `features`: `source_pool` and `source_slots` `[batch, prompts + source]`, `encoder_block_ids`
    `[batch, source]`, `task_ids`.
    """
    hidden = features["source_pool"][features["source_slots"]].astype(model.config.dtype)
    return model.apply(
        variables,
        hidden,
        features["encoder_block_ids"],
        features["task_ids"],
        method=model.encode_late,
    )


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


def _row_lengths(limit: int) -> tuple[int, ...]:
    return (limit,) if limit <= _ROW_LENGTH else (_ROW_LENGTH, limit)

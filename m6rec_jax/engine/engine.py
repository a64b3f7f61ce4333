"""What scorers, retrievers and generators share: a model, options, batches of few shapes.

    options = EngineOptions(source_length=256, target_length=64)
    scorer = Scorer(model, variables, vocabulary, options)

Shapes come from a few buckets, so a new request compiles nothing once each bucket has been seen.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.engine.programs.runtime import Runtime, checked_buckets
from m6rec_jax.engine.segments.cache import SegmentCache, gathered_source
from m6rec_jax.engine.task_settings import (
    RequestedTasks,
    TaskSettings,
    check_part,
)
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.model.decoding_layout import for_decoding_on_cpu
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
Variables = Mapping[str, Any]

# One program for all engines of a model.
_lay_out = jax.jit(for_decoding_on_cpu, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """How an engine lays out and runs requests.

    Attributes:
      source_length: most tokens of a history, S; older behaviours are dropped as in training.
      target_length: most tokens of a decoder row, T.
      tasks: settings of the tasks that requests may name.
      task: the task of requests that name none; empty: the only one.
      candidate_length: most tokens of a candidate or item, `[BOS]` and `[EOS]` included; None: T.
      batch_sizes: numbers of rows to pad to, ascending.
      source_buckets, target_buckets: lengths to pad to; None: S, S/2, S/4 and T, T/2, T/4.
      mesh: devices to spread rows over; None: the default device.
      rules: logical-axis rules, with a mesh.
      segments: cache of what early layers compute; None: it is computed for every request.
      early_exit: leave the decoder where tasks say so (`TaskSettings.exits`).
      programs: makes a compiled program of its name and its function of variables and features;
        None: `jax.jit` does. An export has its own, and `m6rec export` records them.
      progress: show bars over the batches of a catalogue, or of texts that are written.
    """

    source_length: int
    target_length: int
    tasks: Mapping[str, TaskSettings] = dataclasses.field(
        default_factory=lambda: {"": TaskSettings()}
    )
    task: str = ""
    candidate_length: int | None = None
    batch_sizes: Sequence[int] = (1, 8, 32)
    source_buckets: Sequence[int] | None = None
    target_buckets: Sequence[int] | None = None
    mesh: Mesh | None = None
    rules: LogicalRules = ()
    segments: SegmentCache | None = None
    early_exit: bool = True
    programs: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None = None
    progress: bool = False

    not_traced = ("tasks", "task", "progress")


def encoded_source(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> Encoded:
    """What the decoder reads of a batch of sources; for use inside jit."""
    tokens, blocks = features["encoder_input_tokens"], features["encoder_block_ids"]
    return model.apply(variables, tokens, blocks, features["task_ids"], method=model.encode)


class Engine:
    """Requests of unlike tasks may share a call, and then share batches.

    Args:
      model, vocabulary, options: the model, the vocabulary it was trained with, how to run both.
      variables: parameters and prompts; may be replaced between calls.

    Raises:
      ConfigError: a model without what is needed, or buckets that do not end with S and T.
    """

    # What a task must have, see `RequestedTasks`.
    needed_part: str = ""
    # Attributes that no program depends on, see `kept_programs`.
    not_traced = ("variables", "_tasks", "_traced", "_laid_out", "_programs")

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        self.model, self.variables, self.vocabulary = model, variables, vocabulary
        self.options = options
        names = ", ".join(filter(None, sorted(options.tasks))) or "none"
        check_part(model.config.prompts, self.needed_part, f"the model (tasks: {names})")
        self._traced: list[None] = []  # shared with what `over` makes
        self._segments = options.segments
        self._tasks = RequestedTasks(options.tasks, options.task, self.needed_part)
        self._runtime = Runtime(options.mesh, options.rules)
        self._laid_out: tuple[Any, Variables] = (None, {})
        self._batch_sizes = self._runtime.batch_sizes(options.batch_sizes)
        self._source_buckets = checked_buckets(
            "source_buckets", options.source_buckets, options.source_length
        )
        self._target_buckets = checked_buckets(
            "target_buckets", options.target_buckets, options.target_length
        )
        self.candidate_length = min(
            options.candidate_length or options.target_length, options.target_length
        )

    def over(self, variables: Variables, tasks: Mapping[str, TaskSettings]) -> Self:
        """The same compiled programs for other variables of the same shapes, and other tasks."""
        other = copy.copy(self)
        other.variables, other.options = variables, dataclasses.replace(self.options, tasks=tasks)
        other._tasks = RequestedTasks(tasks, self.options.task, self.needed_part)
        return other

    @property
    def num_compilations(self) -> int:
        """Programs traced so far."""
        return len(self._traced)

    def check_task(self, name: str) -> None:
        """Raises ConfigError where there is no such task, or it lacks what the engine needs."""
        self._tasks.one(name)

    def warm_up_histories(self) -> list[list[str]]:
        """A history for each source bucket, which fills more than the bucket before."""
        found, segments, length = [], list[str](), 0
        for bucket in self._source_buckets:
            while True:
                longer = [*segments, "a"]
                grown = len(self._source_row(longer, TaskSettings())["encoder_input_tokens"])
                if grown > bucket or grown == length:
                    break
                segments, length = longer, grown
            found.append(segments)
        return found

    def _jit(
        self, function: Callable[..., Any], donate: int | Sequence[int] = ()
    ) -> Callable[..., Any]:
        """`Runtime.jit` of a function whose tracings are counted."""

        # Not `self`: programs outlive the engine that made them, and what it holds. Nor the list,
        # by whose length `kept_programs` would tell equal programs apart.
        count = self._traced.append

        def counted(*args: Any) -> Any:
            count(None)
            return function(*args)

        return self._runtime.jit(counted, donate)

    def _program(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled function of variables, features and what else it takes."""
        made = self.options.programs
        return self._jit(function) if made is None else made(name, function)

    def _for_decoding(self, variables: Variables) -> Variables:
        """The variables as decoding step by step reads them fastest; laid out once for each.

        A decoder of bytes stays as it is, since its copy would take as much memory as floats.
        """
        if (
            "embedding_scale" in variables["params"]["token_embedder"]
            or jax.default_backend() != "cpu"
            or self.options.mesh is not None
            or self.options.programs is not None
        ):
            return variables
        params = variables["params"]
        if self._laid_out[0] is not params:
            self._laid_out = (params, _lay_out(self.model.config, {"params": params}))
        return {**variables, **self._laid_out[1]}

    @contextlib.contextmanager
    def _segments_held(self) -> Iterator[None]:
        """Slots that a batch names stay as they are: until the program that reads them started."""
        with self._segments.lock if self._segments else contextlib.nullcontext():
            yield

    def _placed(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """A batch on the devices, with the pools that its slots are of."""
        placed = self._runtime.place_shared(batch)
        return placed | self._segments.pools() if self._segments else placed

    def _encoded(self, variables: Variables, features: Mapping[str, Array]) -> Encoded:
        """What the decoder reads, of the features of `_history_batch`; for use inside jit."""
        if self._segments:
            return gathered_source(self.model, variables, features)
        return encoded_source(self.model, variables, features)

    def _history_batch(
        self,
        variables: Variables,
        sources: Sequence[Row],
        settings: Sequence[TaskSettings],
        length: int,
        size: int,
    ) -> dict[str, np.ndarray]:
        """Features of `_encoded`, `[size, ...]`; computes segments that nobody had."""
        names = dict.fromkeys(("encoder_input_tokens", "encoder_block_ids"), length)
        batch = rows.pad_batch(sources, names, size)
        batch["task_ids"] = np.zeros((size, 1), np.int32)
        batch["task_ids"][: len(sources), 0] = [own.task_id for own in settings]
        if self._segments:
            del batch["encoder_input_tokens"]
            # Where there is no token, any slot.
            slots = np.zeros((size, self.model.config.prompts.num_prompts + length), np.int32)
            found = self._segments.source_slots(variables, sources, settings)
            for place, own_slots in enumerate(found):
                slots[place, : len(own_slots)] = own_slots
            batch["source_slots"] = slots
        return batch

    def _source_row(self, segments: Sequence[rows.Text], settings: TaskSettings) -> Row:
        """A history as the task was trained to read it."""
        limit = self.options.source_length
        return rows.source_row(
            self.vocabulary, segments, min(settings.source_length or limit, limit)
        )

"""What scorers, retrievers and generators share: a model, options, batches of few shapes.

    options = EngineOptions(source_length=256, target_length=64)
    scorer = Scorer(model, variables, vocabulary, options)

Shapes come from a few buckets, so a new request compiles nothing once each bucket has been seen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.engine.runtime import Runtime, checked_buckets
from m6rec_jax.engine.task_settings import RequestedTasks, TaskSettings
from m6rec_jax.model import M6Rec
from m6rec_jax.model.m6rec import for_decoding_on_cpu
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
Variables = Mapping[str, Any]


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


class Engine:
    """Requests of unlike tasks may share a call, and then share batches.

    Args:
      model, vocabulary, options: the model, the vocabulary it was trained with, how to run both.
      variables: parameters and prompts; may be replaced between calls.

    Attributes:
      num_compilations: programs traced so far.

    Raises:
      ConfigError: buckets that do not end with S and T.
    """

    # What a task must have, see `RequestedTasks`.
    needed_part: str = ""

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        self.model, self.variables, self.vocabulary = model, variables, vocabulary
        self.options = options
        self.num_compilations = 0
        self._tasks = RequestedTasks(options.tasks, options.task, self.needed_part)
        self._runtime = Runtime(options.mesh, options.rules)
        self._lay_out = self._runtime.jit(functools.partial(for_decoding_on_cpu, model.config))
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

        def counted(*args: Any) -> Any:
            self.num_compilations += 1
            return function(*args)

        return self._runtime.jit(counted, donate)

    def _for_decoding(self, variables: Variables) -> Variables:
        """The variables as decoding step by step reads them fastest; laid out once for each."""
        if jax.default_backend() != "cpu" or self.options.mesh is not None:
            return variables
        params = variables["params"]
        if self._laid_out[0] is not params:
            self._laid_out = (params, self._lay_out({"params": params}))
        return {**variables, **self._laid_out[1]}

    def _source_row(self, segments: Sequence[str], settings: TaskSettings) -> Row:
        """A history as the task was trained to read it."""
        limit = self.options.source_length
        return rows.source_row(
            self.vocabulary, segments, min(settings.source_length or limit, limit)
        )

    def _source_batch(
        self, sources: Sequence[Row], task_ids: Sequence[int], length: int, size: int
    ) -> dict[str, np.ndarray]:
        """Encoder features `[size, length]` and `task_ids` `[size, 1]`."""
        names = dict.fromkeys(("encoder_input_tokens", "encoder_block_ids"), length)
        batch = rows.pad_batch(sources, names, size)
        batch["task_ids"] = np.zeros((size, 1), np.int32)
        batch["task_ids"][: len(sources), 0] = task_ids
        return batch

"""What scorers, retrievers and generators share: a model, options, batches of few shapes.

    options = EngineOptions(source_length=256, target_length=64)
    scorer = Scorer(model, variables, vocabulary, options)

Shapes come from a few buckets, so a new request compiles nothing once each bucket has been seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.trees import PyTree, flatten
from m6rec_jax.engine.programs.runtime import Runtime, checked_buckets
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.engine.task_settings import (
    SIZES,
    TaskSettings,
    check_number,
    check_part,
    task_settings,
)
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.model.decoding_layout import for_decoding_on_cpu
from m6rec_jax.text import rows
from m6rec_jax.text.layout import Row, pad_batch
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
Variables = Mapping[str, Any]
_lay_out = jax.jit(for_decoding_on_cpu, static_argnums=0)


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """Tasks may come and go beside it; nothing in here depends on them.

    Attributes:
      model: with its configuration.
      params: on the devices.
      runtime: where programs run.
      source_length, target_length: S and T, most tokens of a history and a decoder row.
    """

    model: M6Rec
    params: PyTree
    runtime: Runtime
    source_length: int
    target_length: int

    @functools.cached_property
    def checksums(self) -> Any:
        """Of the parameters, by name."""
        return checksums(flatten(self.params))

    @functools.cached_property
    def segments(self) -> SegmentCache | None:
        """What early layers computed for any engine; None: late interaction is off."""
        if not self.model.config.late_layers_start:
            return None
        return SegmentCache(
            self.model,
            source_length=self.source_length,
            target_length=self.target_length,
            runtime=self.runtime,
        )

    @functools.cached_property
    def for_decoding(self) -> Variables:
        """What stands in for variables where decoding step by step reads them faster so.

        On a CPU that is a copy of the decoder. A decoder of bytes stays as it is, since its copy
        would take as much memory as floats.
        """
        if (
            "embedding_scale" in self.params["token_embedder"]
            or jax.default_backend() != "cpu"
            or self.runtime.mesh is not None
        ):
            return {}
        return _lay_out(self.model.config, {"params": self.params})


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
      runtime: where programs run.
      backbone: what engines of the model share; None: the engine makes its own.
      segments: cache of what early layers compute; None: it is computed for every request.
      early_exit: leave the decoder where tasks say so (`TaskSettings.exits`).
      programs: makes a compiled program of its name and its function of variables and features;
        None: `jax.jit` does; `m6rec export` records them.
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
    runtime: Runtime = dataclasses.field(default_factory=Runtime)
    backbone: Backbone | None = None
    segments: SegmentCache | None = None
    early_exit: bool = True
    programs: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None = None
    progress: bool = False


def encoded_source(model: M6Rec, variables: Variables, features: Mapping[str, Array]) -> Encoded:
    """What the decoder reads, of the features of `Engine._history_batch`; for use inside jit."""
    blocks, task_ids = features["encoder_block_ids"], features["task_ids"]
    if "source_slots" in features:
        early = features["source_pool"][features["source_slots"]].astype(model.config.dtype)
        return model.apply(variables, early, blocks, task_ids, method=model.encode_late)
    tokens = features["encoder_input_tokens"]
    return model.apply(variables, tokens, blocks, task_ids, method=model.encode)


class Engine:
    """Requests of unlike tasks may share a call, and then share batches.

    An engine is made for one state of a model and is never changed: for other variables or tasks
    make another one. That compiles nothing, since programs take variables as an argument.

    Args:
      model, vocabulary, options: the model, the vocabulary it was trained with, how to run both.
      variables: parameters and prompts.

    Raises:
      ConfigError: a model without what is needed, or buckets that do not end with S and T.
    """

    # What a task must have: 'classes' or 'retrieval projections'.
    needed_part: str = ""

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        self.model, self.variables, self.vocabulary = model, variables, vocabulary
        self.options = options
        names = ", ".join(filter(None, sorted(options.tasks))) or "none"
        check_part(model.config.prompts, self.needed_part, f"the model (tasks: {names})")
        self._segments, self._runtime = options.segments, options.runtime
        self._backbone = options.backbone or Backbone(
            model,
            variables["params"],
            self._runtime,
            options.source_length,
            options.target_length,
        )
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

    def settings(self, task: str | None = None) -> TaskSettings:
        """Settings of one task; None: the default.

        Raises:
          ConfigError: no such task, or one that lacks what the engine needs.
        """
        name = task or self.options.task
        settings = task_settings(self.options.tasks, name)
        if self.needed_part and getattr(settings, SIZES[self.needed_part]) == 0:
            kind = f", a task of kind '{settings.kind}'," if settings.kind else ""
            raise ConfigError(f"'{name}'{kind} has no {self.needed_part}")
        return settings

    def settings_of(self, tasks: Sequence[str] | None, number: int) -> list[TaskSettings]:
        """Settings of `number` requests by the names of their tasks; None: all have the default.

        Raises:
          DataError: another number of names. ConfigError: as `settings`.
        """
        if tasks is None:
            return [self.settings()] * number if number else []
        if isinstance(tasks, str):  # a string is a sequence of strings, too
            raise ConfigError(f"tasks = {tasks!r}: give one task per request, [{tasks!r}, ...]")
        check_number(number, tasks=tasks)
        settings = {name: self.settings(name) for name in set(tasks)}
        return [settings[name] for name in tasks]

    def warm_up_batches(self) -> Iterator[list[list[str]]]:
        """Histories for each source bucket, which fill more than the bucket before, in batches of
        every size.
        """
        segments, length = list[str](), 0
        for bucket in self._source_buckets:
            while True:
                longer = [*segments, "a"]
                grown = len(self._source_row(longer, TaskSettings())["encoder_input_tokens"])
                if grown > bucket or grown == length:
                    break
                segments, length = longer, grown
            for size in self._batch_sizes:
                yield [segments] * size

    def _program(self, name: str, function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
        """A compiled `function(*static, ...)` of variables, features and what else it takes."""
        if self.options.programs is not None:
            return self.options.programs(name, functools.partial(function, *static))
        return self._runtime.program(function, *static)

    def _decoding_variables(self) -> Variables:
        """The variables as decoding reads them fastest; what is recorded takes them as they are."""
        if self.options.programs is not None:
            return self.variables
        return {**self.variables, **self._backbone.for_decoding}

    def _segments_held(self) -> contextlib.AbstractContextManager[Any]:
        """Slots that a batch names stay as they are: until the program that reads them started."""
        return self._segments.lock if self._segments else contextlib.nullcontext()

    def _placed(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """A batch on the devices, with the pools that its slots are of."""
        placed = self._runtime.place_shared(batch)
        return placed | self._segments.pools() if self._segments else placed

    def _history_batch(
        self,
        sources: Sequence[Row],
        settings: Sequence[TaskSettings],
        length: int,
        size: int,
    ) -> dict[str, np.ndarray]:
        """Features of `encoded_source`, `[size, ...]`; computes segments that nobody had."""
        names = dict.fromkeys(("encoder_input_tokens", "encoder_block_ids"), length)
        batch = pad_batch(sources, names, size)
        batch["task_ids"] = np.zeros((size, 1), np.int32)
        batch["task_ids"][: len(sources), 0] = [task.task_id for task in settings]
        if self._segments:
            del batch["encoder_input_tokens"]
            # Where there is no token, any slot.
            slots = np.zeros((size, self.model.config.prompts.num_prompts + length), np.int32)
            of_sources = self._segments.source.slots(self.variables, sources, settings)
            for row, of_source in zip(slots, of_sources, strict=False):
                row[: len(of_source)] = of_source
            batch["source_slots"] = slots
        return batch

    def _source_row(self, segments: Sequence[rows.Text], settings: TaskSettings) -> Row:
        """A history as the task was trained to read it."""
        limit = self.options.source_length
        return rows.source_row(
            self.vocabulary, segments, min(settings.source_length or limit, limit)
        )

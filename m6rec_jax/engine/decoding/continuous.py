"""Continuous batching: texts of unlike lengths, asked for at any time, share every step.

    generator = ContinuousGenerator(model, variables, vocabulary, EngineOptions(256, 64))
    stream = generator.submit(generator.stream(TextRequest(segments, task="explain"), 40))
    while stream.finish_reason is None:
        generator.step()
        print(*stream.take(), sep="", end="")

A fixed number of slots lies on the device, with all that decoding must know of their texts. A
request is encoded into a free slot, takes part in the next step, and leaves when its text ends. All
tasks, greedy and sampled texts, and positions share one program. A text does not depend on what
else is under way: it is the one of `Generator.write` for the same request.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.engine.decoding.generation import TextEngine, TextRequest
from m6rec_jax.engine.decoding.graphs import graphs_of_choices
from m6rec_jax.engine.decoding.sampling import SamplingOptions
from m6rec_jax.engine.decoding.slots import FREE, Slots, Written, advance, model_step
from m6rec_jax.engine.decoding.stream import GenerationStream
from m6rec_jax.engine.engine import EngineOptions, Variables, encoded_source
from m6rec_jax.engine.programs.runtime import smallest_that_fits
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
logger = logging.getLogger(__name__)
# Between two looks at the queue. More save calls; fewer let requests start, and stop texts end,
# sooner.
_STEPS_PER_CALL = 4
# Numbers of requests that are encoded together.
_JOIN_SIZES = (1, 4)


class _State(NamedTuple):
    """What lies on the device: `slots`, the task of each, and what each may write."""

    slots: Slots
    task_ids: Array
    automaton: Automaton


class ContinuousGenerator(TextEngine):
    """Texts for requests as they come. Any thread may submit; whoever calls `step` lets them grow,
    as `serving.scheduler.Scheduler` does.

    Args:
      model, variables, vocabulary, options: see `Engine`.
      row_counts: numbers of texts for which a step is compiled, raised to multiples of a mesh's
        rows; so many as the largest grow at the same time.

    Raises:
      ConfigError: no room for a word, or numbers that do not fit.
    """

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        options: EngineOptions,
        row_counts: Sequence[int] = (1, 4, 16),
    ) -> None:
        super().__init__(model, variables, vocabulary, options)
        self._row_counts = self._runtime.batch_sizes(row_counts)
        self._join_sizes = self._runtime.batch_sizes(_JOIN_SIZES)
        self.num_slots = self._row_counts[-1]
        # Columns of the encoder's output: soft prompts come first.
        width = model.config.prompts.num_prompts + options.source_length
        program = self._runtime.program
        self._join = program(join, model, donate=(1,))
        self._advance = program(advance_some, model, _STEPS_PER_CALL, donate=(1,))
        self._start = program(empty_slots, model, self.num_slots, self.max_tokens, width)
        self._state: _State | None = None  # made at the first step
        self._column = 0
        self._running: list[GenerationStream] = []
        self._free = list(range(self.num_slots))
        self._pending = collections.deque[GenerationStream]()
        self._waiting = threading.Lock()  # over `_pending`
        self._stepping = threading.Lock()

    @property
    def num_running(self) -> int:
        """Texts under way."""
        return len(self._running)

    @property
    def num_pending(self) -> int:
        """Requests that wait for a slot."""
        return len(self._pending)

    def stream(
        self, request: TextRequest, max_tokens: int | None = None, stop: Sequence[str] = ()
    ) -> GenerationStream:
        """A text that can be submitted: its request in tokens, made by any thread of the host.

        Args:
          request: what is written.
          max_tokens: most tokens after the prefix, `[EOS]` included; None: what there is room for,
            as much as the task was trained to write.
          stop: texts that end it and are no part of it.

        Raises:
          DataError, ConfigError: as `prepared`, and for a number out of range.
        """
        if (max_tokens is not None and max_tokens < 1) or "" in stop:
            raise ConfigError(
                f"max_tokens = {max_tokens} and stop = {stop}: at least one token, "
                "and no empty text"
            )
        text = self.prepared(request)
        limit = min(self.max_tokens, (text.settings.target_length or self.max_tokens + 1) - 1)
        if max_tokens is not None:
            limit = min(limit, len(text.given) + max_tokens)
        return GenerationStream(self.vocabulary, text, limit, stop)

    def submit(self, stream: GenerationStream) -> GenerationStream:
        """Queues a text; returns at once."""
        with self._waiting:
            self._pending.append(stream)
        return stream

    def warm_up(self) -> None:
        """Compiles every program that requests may run."""
        with self._stepping:
            if self._segments:
                self._segments.warm_up(self.variables)
            for bucket in self._source_buckets:
                for size in self._join_sizes:
                    self._let_into_slots([], bucket, size)
            for count in self._row_counts:
                self._take_steps([], count)

    def step(self) -> bool:
        """Lets requests in, takes a few steps; returns whether there is more to do."""
        with self._stepping:
            try:
                self._leave()
                self._let_in()
                if self._running:
                    self._step_all()
            except Exception as error:
                # The state may be gone with the call that failed: begin anew, without these texts.
                logger.exception("a step of generation failed")
                self._state = None
                for stream in self._running:
                    stream.finish("error", error)
                self._running, self._free = [], list(range(self.num_slots))
            return bool(self._running or self._pending)

    def _leave(self) -> None:
        """Those that nobody waits for go."""
        with self._waiting:
            for stream in [one for one in (*self._running, *self._pending) if one.is_cancelled]:
                stream.finish("cancelled")
                if stream in self._running:
                    self._release(stream)
                else:
                    self._pending.remove(stream)

    def _release(self, stream: GenerationStream) -> None:
        self._running.remove(stream)
        self._free.append(stream.slot)

    def _let_in(self) -> None:
        """Encodes the first that wait into free slots, together."""
        with self._waiting:
            number = min(len(self._free), len(self._pending), self._join_sizes[-1])
            streams = [self._pending.popleft() for _ in range(number)]
        if not streams:
            return
        longest = max(len(one.prepared.source["encoder_input_tokens"]) for one in streams)
        bucket = smallest_that_fits(longest, self._source_buckets)
        for stream in streams:
            stream.slot = self._free.pop()
        self._running += streams
        self._let_into_slots(streams, bucket, smallest_that_fits(number, self._join_sizes))

    def _let_into_slots(self, streams: Sequence[GenerationStream], bucket: int, size: int) -> None:
        """Puts texts into their slots, rows of padding into none."""
        if self._state is None:
            slots, task_ids = self._start(self._decoding_variables())
            graphs = graphs_of_choices((), range(self.num_slots))
            self._state = _State(slots, task_ids, self._whole(graphs))
        texts = [stream.prepared for stream in streams]
        batch = self._columns(texts, size)
        places = np.full((2, size), self.num_slots, np.int32)
        for row, stream in enumerate(streams):
            places[:, row] = stream.slot, stream.limit
        batch["places"], batch["limit"] = places
        choices = [text.request.choices for text in texts]
        graphs = self._whole(graphs_of_choices(choices, batch["places"].tolist()))
        with self._segments_held():
            sources, settings = [text.source for text in texts], [text.settings for text in texts]
            batch |= self._history_batch(sources, settings, bucket, size)
            placed = self._placed(batch)
            self._state = self._join(self._decoding_variables(), self._state, placed, graphs)

    def _whole(self, automaton: Automaton) -> Automaton:
        placed: Automaton = jax.tree.map(self._runtime.place_whole, automaton)
        return placed

    def _step_all(self) -> None:
        """Takes steps with all texts under way, and hands on what they say."""
        running = sorted(self._running, key=lambda stream: stream.slot)
        count = smallest_that_fits(len(running), self._row_counts)
        tokens, gained = self._take_steps(running, count)
        for stream, new, scores in zip(running, tokens.tolist(), gained.tolist(), strict=True):
            stream.add(new, scores)
            if stream.finish_reason is not None:
                self._release(stream)

    def _take_steps(
        self, running: Sequence[GenerationStream], count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and their log probabilities, `[running, steps]` both.

        Args:
          running: texts under way, by their slots.
          count: rows to take part, at least the running ones.
        """
        slots = [stream.slot for stream in running]
        if count == self.num_slots:
            rows, places = list(range(count)), slots
        else:
            rows, places = [*slots, *self._free][:count], list(range(len(running)))
        active = np.zeros(count, bool)
        active[places] = True
        assert self._state is not None
        batch = self._runtime.place_shared({"rows": np.array(rows, np.int32), "active": active})
        self._state, written = self._advance(
            self._decoding_variables(),
            self._state,
            batch,
            self._any_text.free,
            np.int32(self._column),
        )
        tokens, gained, _, num_steps = jax.device_get(written)
        self._column = (self._column + int(num_steps)) % self.max_tokens
        return tokens[places], gained[places]


def empty_slots(
    model: M6Rec, num_slots: int, length: int, width: int, variables: Variables
) -> tuple[Slots, Array]:
    """Slots that hold nothing, and the tasks of each; for use inside jit."""
    hidden = jnp.zeros((num_slots, width, model.config.embed_dim), model.config.dtype)
    encoded = Encoded(hidden, jnp.zeros((num_slots, width), bool))
    numbers, floats = jnp.zeros(num_slots, jnp.int32), jnp.zeros(num_slots, jnp.float32)
    cache: Any = model.apply(
        variables, encoded, numbers, max_length=length, method=model.start_decoding
    )
    nothing = {
        "prefix_ids": jnp.full((num_slots, length), FREE, jnp.int32),
        "seed": numbers.astype(jnp.uint32),
        **SamplingOptions(floats, numbers, floats)._asdict(),
    }
    return Slots.of(cache, Automaton(), nothing)._replace(position=numbers), numbers


def join(
    model: M6Rec, variables: Variables, state: _State, batch: Mapping[str, Array], graphs: Automaton
) -> _State:
    """Encodes sources into slots, and puts what their texts begin with there.

    Args:
      batch: of `Engine._history_batch` and `TextEngine._columns`, `[size, ...]`; `limit` int32
        `[size]`, and `places`, slots, those past the last one going nowhere.
      graphs: of `graphs_of_choices` for these places.
    """
    new: Any = model.apply(
        variables,
        encoded_source(model, variables, batch),
        batch["task_ids"],
        max_length=1,
        method=model.start_decoding,
    )
    width, places = new.source_mask.shape[1], batch["places"]

    def put_source(old: Array, source: Array) -> Array:
        at = (*_before_rows(old), places, slice(None), slice(width))
        return old.at[at].set(source, mode="drop")

    def put(old: Array, values: Array) -> Array:
        return old.at[places].set(values, mode="drop")

    def put_graphs(name: str) -> Array:
        values = getattr(graphs, name).reshape(len(places), -1)
        old = getattr(state.automaton, name).reshape(-1, values.shape[1])
        return put(old, values).reshape(-1)

    slots, cache = state.slots, state.slots.cache
    mask = jnp.pad(new.source_mask, ((0, 0), (0, cache.source_mask.shape[1] - width)))
    begun = Slots.of(None, graphs, batch)
    begun = begun._replace(limit=batch["limit"], position=jnp.zeros_like(places))
    cache = cache._replace(
        source=jax.tree.map(put_source, cache.source, new.source),
        source_mask=put(cache.source_mask, mask),
    )
    names = ("first_edge", "token", "target", "rest")
    return _State(
        jax.tree.map(put, slots._replace(cache=None), begun)._replace(cache=cache),
        put(state.task_ids, batch["task_ids"][:, 0]),
        state.automaton._replace(**{name: put_graphs(name) for name in names}),
    )


def advance_some(
    model: M6Rec,
    num_steps: int,
    variables: Variables,
    state: _State,
    batch: Mapping[str, Array],
    free: Array,
    column: Array,
) -> tuple[_State, Written]:
    """Takes steps with the texts of some slots.

    Args:
      batch: `rows`, slots that take part; where they are all, in order; `active` of `advance`.
      free: see `Automaton`.
      column, num_steps: see `advance`.
    """
    rows, slots = batch["rows"], state.slots
    are_all = rows.shape[0] == slots.cache.num_rows

    def taken(array: Array) -> Array:
        return array if are_all else array[(*_before_rows(array), rows)]

    def put(old: Array, new: Array) -> Array:
        return new if are_all else old.at[(*_before_rows(old), rows)].set(new)

    step = model_step(model, variables, taken(state.task_ids))
    some, written = advance(
        step,
        jax.tree.map(taken, slots),
        state.automaton._replace(free=free),
        batch["active"],
        num_steps,
        column,
    )
    # The sources stay as they are.
    past = jax.tree.map(put, slots.cache.past, some.cache.past)
    others = jax.tree.map(put, slots._replace(cache=None), some._replace(cache=None))
    return state._replace(slots=others._replace(cache=slots.cache._replace(past=past))), written


def _before_rows(array: Array) -> tuple[slice, ...]:
    """Indices of what stands before the rows of an array: layers, where they are stacked."""
    return (slice(None),) * (array.ndim == 5)

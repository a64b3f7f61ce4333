"""Continuous batching: texts of unlike lengths, asked for at any time, share every step.

    stream = generator.submit(generator.stream(TextRequest(segments, task="explain")))
    while stream.finish_reason is None:
        generator.step()
        print(*stream.take(), sep="", end="")

A fixed number of slots lies on the device, with all that decoding must know of their texts. A
request is encoded into a free slot, takes part in the next step, and leaves when its text ends. All
tasks, greedy and sampled texts, and positions share one program. A text does not depend on what
else is under way: it is the one of `Generator.write` for the same request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.decoding.graphs import graphs_of_choices
from m6rec_jax.engine.decoding.sampling import SamplingOptions
from m6rec_jax.engine.decoding.slots import FREE, Slots, Written, advance, model_step
from m6rec_jax.engine.decoding.stream import GenerationStream
from m6rec_jax.engine.engine import EngineOptions, Variables, encoded_source
from m6rec_jax.engine.programs.runtime import smallest_that_fits
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


class ContinuousGenerator(Generator):
    """Texts for requests as they come. Any thread may prepare a `stream`; one thread submits them
    and lets them grow, as that of `serving.scheduler.Scheduler` does.

    Args:
      model, variables, vocabulary, options: see `Engine`.
      row_counts: numbers of texts for which a step is compiled, raised to multiples of a mesh's
        rows; so many as the largest grow at the same time.

    Raises:
      ConfigError: numbers that do not fit.

    Attributes:
      num_slots: how many texts grow at the same time, at most.
      pending: texts that wait for a slot.
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
        self._running: dict[int, GenerationStream] = {}  # by slot
        self.pending: list[GenerationStream] = []

    @property
    def num_running(self) -> int:
        """Texts under way."""
        return len(self._running)

    def stream(self, request: TextRequest) -> GenerationStream:
        """A text that can be submitted: its request in tokens; errors as `prepared`."""
        text = self.prepared(request)
        limit = min(self.max_tokens, (text.settings.target_length or self.max_tokens + 1) - 1)
        if request.max_tokens is not None:
            limit = min(limit, len(text.given) + request.max_tokens)
        return GenerationStream(self.vocabulary, text, limit)

    def submit(self, stream: GenerationStream) -> GenerationStream:
        """Queues a text; returns at once."""
        self.pending.append(stream)
        return stream

    def warm_up(self) -> None:
        """Compiles every program that requests may run."""
        if self._segments:
            self._segments.warm_up(self.variables)
        for bucket in self._source_buckets:
            for size in self._join_sizes:
                self._let_into_slots([], [], bucket, size)
        for count in self._row_counts:
            self._take_steps([], count)

    def step(self) -> bool:
        """Lets requests in, takes a few steps; returns whether there is more to do."""
        try:
            for stream in [*self._running.values(), *self.pending]:
                if stream.is_cancelled:
                    stream.finish("cancelled")
            self.pending = [one for one in self.pending if one.finish_reason is None]
            self._keep_unfinished()
            self._let_in()
            if self._running:
                self._step_all()
        except Exception as error:
            # The state may be gone with the call that failed: begin anew, without these texts.
            logger.exception("a step of generation failed")
            self._state = None
            for stream in self._running.values():
                stream.finish("error", error)
            self._running = {}
        return bool(self._running or self.pending)

    def _keep_unfinished(self) -> None:
        running = self._running.items()
        self._running = {slot: one for slot, one in running if one.finish_reason is None}

    def _let_in(self) -> None:
        """Encodes the first that wait into free slots, together."""
        number = min(self.num_slots - self.num_running, len(self.pending), self._join_sizes[-1])
        if not number:
            return
        streams, self.pending = self.pending[:number], self.pending[number:]
        longest = max(len(one.prepared.source["encoder_input_tokens"]) for one in streams)
        bucket = smallest_that_fits(longest, self._source_buckets)
        slots = self._free_slots()[:number]
        self._running |= dict(zip(slots, streams, strict=True))
        self._let_into_slots(streams, slots, bucket, smallest_that_fits(number, self._join_sizes))

    def _free_slots(self) -> list[int]:
        return [slot for slot in range(self.num_slots) if slot not in self._running]

    def _let_into_slots(
        self, streams: Sequence[GenerationStream], slots: Sequence[int], bucket: int, size: int
    ) -> None:
        """Puts texts into slots, rows of padding into none."""
        if self._state is None:
            empty, task_ids = self._start(self._decoding_variables())
            graphs = graphs_of_choices((), range(self.num_slots))
            self._state = _State(empty, task_ids, self._whole(graphs))
        texts = [stream.prepared for stream in streams]
        batch = self._columns(texts, size)
        places, limits = np.full((2, size), self.num_slots, np.int32)
        places[: len(slots)] = slots
        limits[: len(slots)] = [stream.limit for stream in streams]
        choices = [text.request.choices for text in texts]
        graphs = self._whole(graphs_of_choices(choices, places.tolist()))
        batch |= {"places": places, "limit": limits}
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
        slots = sorted(self._running)
        count = smallest_that_fits(len(slots), self._row_counts)
        tokens, gained = self._take_steps(slots, count)
        for slot, new, scores in zip(slots, tokens.tolist(), gained.tolist(), strict=True):
            self._running[slot].add(new, scores)
        self._keep_unfinished()

    def _take_steps(self, slots: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and their log probabilities, `[slots, steps]` both.

        Args:
          slots: of the texts under way, ascending.
          count: rows to take part, at least these.
        """
        if count == self.num_slots:
            rows, places = list(range(count)), list(slots)
        else:
            rows, places = [*slots, *self._free_slots()][:count], list(range(len(slots)))
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
        **SamplingOptions(floats, floats)._asdict(),
    }
    return Slots.of(cache, Automaton(), nothing)._replace(position=numbers), numbers


def join(
    model: M6Rec, variables: Variables, state: _State, batch: Mapping[str, Array], graphs: Automaton
) -> _State:
    """Encodes sources into slots, and puts what their texts begin with there.

    Args:
      batch: of `Engine._history_batch` and `Generator._columns`, `[size, ...]`; `limit` int32
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

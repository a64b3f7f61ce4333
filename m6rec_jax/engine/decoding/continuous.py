"""Continuous batching: texts of unlike lengths, asked for at any time, share every step.

    generator = ContinuousGenerator(model, variables, vocabulary, EngineOptions(256, 64))
    stream = generator.submit(segments, task="explain", max_tokens=40)
    while stream.finish_reason is None:
        generator.step()
        print(*stream.take(), sep="", end="")

A fixed number of slots lies on the device, with all that decoding must know of their texts. A
request is encoded into a free slot, takes part in the next step, and leaves when its text ends. All
tasks, greedy and sampled texts, and positions share one program. A text does not depend on what
else is under way: it is the one of `Generator.greedy` or, with a temperature, of `Generator.sample`
with the same seed.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.decoding.automaton import Automaton, Graphs, Place, any_text
from m6rec_jax.engine.decoding.sampling import SamplingOptions, check_sampling
from m6rec_jax.engine.decoding.slots import FREE, Slots, Written, advance, model_step
from m6rec_jax.engine.decoding.stream import GenerationStream, GrowingText
from m6rec_jax.engine.decoding.text_choices import TextChoices, stacked_graphs
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables, encoded_source
from m6rec_jax.engine.programs.runtime import smallest_that_fits
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.model.decoder_cache import DecoderCache
from m6rec_jax.text.layout import Row
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID, Vocabulary

Array = jax.Array
logger = logging.getLogger(__name__)
# Between two looks at the queue. More save calls; fewer let requests start, and stop texts end,
# sooner.
_STEPS_PER_CALL = 4


class _State(NamedTuple):
    """What lies on the device: `slots`, and of each its task and its graph `[slots, ...]`."""

    slots: Slots
    task_ids: Array
    graphs: Graphs


@dataclasses.dataclass(eq=False)
class _Request:
    """One text that was asked for; what stands below `slot` changes as it grows."""

    settings: TaskSettings
    source: Row
    given: list[int]
    limit: int  # tokens, the prefix's included
    sampling: tuple[float, int, float, int]  # temperature, top k, top p, seed
    stream: GenerationStream
    text: GrowingText
    choices: TextChoices | None
    slot: int = -1
    width: int = 0  # of the source's bucket
    position: int = 0


class ContinuousGenerator(Engine):
    """Texts for requests as they come. Any thread may submit; whoever calls `step` lets them grow,
    as `serving.scheduler.Scheduler` does.

    Args:
      model, variables, vocabulary, options: see `Engine`.
      num_slots: texts that grow at the same time; on a mesh, raised to a multiple of its rows.
      row_counts: numbers of texts for which a step is compiled, the largest one `num_slots`; None:
        1, a quarter of the slots, all.
      join_sizes: numbers of requests that are encoded together.

    Raises:
      ConfigError: no room for a word, or numbers that do not fit.
    """

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        options: EngineOptions,
        *,
        num_slots: int = 16,
        row_counts: Sequence[int] | None = None,
        join_sizes: Sequence[int] = (1, 4),
    ) -> None:
        super().__init__(model, variables, vocabulary, options)
        if options.target_length < 3 or num_slots < 1:
            raise ConfigError(
                f"target_length = {options.target_length} and num_slots = {num_slots} must be at "
                "least 3 and 1"
            )
        counts = sorted(row_counts or {1, max(1, num_slots // 4), num_slots})
        if counts[0] < 1 or counts[-1] != num_slots:
            raise ConfigError(f"row_counts = {counts} must end with num_slots = {num_slots}")
        self._row_counts = self._runtime.batch_sizes(counts)
        self._join_sizes = self._runtime.batch_sizes(join_sizes)
        self.max_tokens = options.target_length - 1  # [EOS] is the last token, never an input
        self.num_slots = self._row_counts[-1]
        self._any_text = any_text(vocabulary, model.config.vocab_size)
        program = self._runtime.program
        self._join = program(join, model, donate=(1,))
        self._put_graph = program(put_graph, donate=(0,))
        self._advance = {
            width: program(advance_some, model, _STEPS_PER_CALL, width, donate=(1,))
            for width in self._widths()
        }
        self._start = program(
            empty_slots, model, self.num_slots, self.max_tokens, self._widths()[-1]
        )
        self._state: _State | None = None  # made at the first step
        self._column = 0
        self._running: list[_Request] = []
        self._free = list(range(self.num_slots))
        self._pending = collections.deque[_Request]()
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

    def submit(
        self,
        segments: Sequence[str],
        task: str = "",
        *,
        prefix: str = "",
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        choices: TextChoices | None = None,
    ) -> GenerationStream:
        """Asks for a text; returns at once.

        Args:
          segments: the source, as of `DatasetTemplate.history_segments`.
          task: its name; empty: the default one.
          prefix: how the text begins; see `Generator`.
          max_tokens: most tokens after the prefix, `[EOS]` included; None: what there is room for.
          temperature, top_k, top_p: see `SamplingOptions`; temperature 0 takes the likeliest token.
          seed: of the request; equal requests with equal seeds give equal texts.
          stop: texts that end it and are no part of it.
          choices: what it may say after the prefix; None: anything.

        Raises:
          DataError: a prefix that leaves no room. ConfigError: no such task, a number out of range.
        """
        settings = self._tasks.one(task)
        given = self.vocabulary.encode(prefix)
        if len(given) >= self.max_tokens:
            raise DataError(
                f"the prefix has {len(given)} tokens and leaves no room in {self.max_tokens}: "
                f"{prefix!r}"
            )
        check_sampling(temperature, top_k, top_p)
        if (max_tokens is not None and max_tokens < 1) or "" in stop:
            raise ConfigError(
                f"max_tokens = {max_tokens} and stop = {stop}: at least one token, "
                "and no empty text"
            )
        room = self.max_tokens - len(given)
        stream = GenerationStream()
        request = _Request(
            settings=settings,
            source=self._source_row(segments, settings),
            given=given,
            limit=len(given) + min(room, max_tokens or room),
            sampling=(temperature, top_k, top_p, seed % 2**32),
            stream=stream,
            text=GrowingText(self.vocabulary, len(given), stop, stream),
            choices=choices,
        )
        with self._waiting:
            self._pending.append(request)
        return stream

    def warm_up(self) -> None:
        """Compiles every program that requests may run."""
        with self._stepping:
            if self._segments:
                self._segments.warm_up(self.variables)
            for bucket in self._source_buckets:
                for size in self._join_sizes:
                    self._let_into_slots([], bucket, size)
            self._send_graph(TextChoices(()), self.num_slots)
            for width in self._widths():
                for count in self._row_counts:
                    self._take_steps([], width, count)

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
                for request in self._running:
                    request.stream.finish("error", error=error)
                self._running, self._free = [], list(range(self.num_slots))
            return bool(self._running or self._pending)

    def _leave(self) -> None:
        """Those that nobody waits for go."""
        with self._waiting:
            cancelled = [one for one in (*self._running, *self._pending) if one.stream.is_cancelled]
            for request in cancelled:
                request.text.finish("cancelled")
                if request in self._running:
                    self._release(request)
                else:
                    self._pending.remove(request)

    def _release(self, request: _Request) -> None:
        self._running.remove(request)
        self._free.append(request.slot)

    def _let_in(self) -> None:
        """Encodes the first that wait into free slots, together."""
        with self._waiting:
            number = min(len(self._free), len(self._pending), self._join_sizes[-1])
            requests = [self._pending.popleft() for _ in range(number)]
        if not requests:
            return
        lengths = [len(request.source["encoder_input_tokens"]) for request in requests]
        bucket = smallest_that_fits(max(lengths), self._source_buckets)
        for request in requests:
            request.slot, request.width = self._free.pop(), self._width(bucket)
        self._running += requests
        size = smallest_that_fits(len(requests), self._join_sizes)
        self._let_into_slots(requests, bucket, size)
        for request in requests:
            if request.choices is not None:
                self._send_graph(request.choices, request.slot)

    def _let_into_slots(self, requests: Sequence[_Request], bucket: int, size: int) -> None:
        """Puts requests into their slots, rows of padding into none."""
        if self._state is None:
            slots, task_ids = self._start(self._decoding_variables())
            self._state = _State(slots, task_ids, self._whole(stacked_graphs((), self.num_slots)))
        batch: dict[str, np.ndarray] = {
            "slots": np.full(size, self.num_slots, np.int32),
            "given": np.full((size, self.max_tokens), FREE, np.int32),
            "limit": np.zeros(size, np.int32),
            "before": np.zeros(size, np.int32),
            "graph": np.full(size, -1, np.int32),
            "temperature": np.zeros(size, np.float32),
            "top_k": np.zeros(size, np.int32),
            "top_p": np.ones(size, np.float32),
            "seed": np.zeros(size, np.uint32),
        }
        for row, request in enumerate(requests):
            batch["slots"][row], batch["limit"][row] = request.slot, request.limit
            batch["given"][row, : len(request.given)] = request.given
            batch["before"][row] = len(request.given)
            if request.choices is not None:
                batch["graph"][row] = request.slot
            names = ("temperature", "top_k", "top_p", "seed")
            for name, value in zip(names, request.sampling, strict=True):
                batch[name][row] = value
        sources = [request.source for request in requests]
        with self._segments_held():
            batch |= self._history_batch(
                sources, [request.settings for request in requests], bucket, size
            )
            self._state = self._join(self._decoding_variables(), self._state, self._placed(batch))

    def _send_graph(self, choices: TextChoices, slot: int) -> None:
        assert self._state is not None
        graph = self._whole(stacked_graphs([choices], 1))
        self._state = self._state._replace(
            graphs=self._put_graph(self._state.graphs, graph, np.int32(slot))
        )

    def _whole(self, graphs: Graphs) -> Graphs:
        placed: Graphs = jax.tree.map(self._runtime.place_whole, graphs)
        return placed

    def _step_all(self) -> None:
        """Takes steps with all texts under way, and hands on what they say."""
        running = sorted(self._running, key=lambda request: request.slot)
        tokens, gained = self._take_steps(
            running,
            max(request.width for request in running),
            smallest_that_fits(len(running), self._row_counts),
        )
        for request, new, scores in zip(running, tokens.tolist(), gained.tolist(), strict=True):
            number = min(len(new), request.limit - request.position)
            if EOS_ID in new[:number]:
                number = new.index(EOS_ID) + 1
            request.position += number
            ended = request.text.add(new[:number], scores[:number])
            if not ended and request.position >= request.limit:
                request.text.finish("length")
                ended = True
            if ended:
                self._release(request)

    def _take_steps(
        self, running: Sequence[_Request], width: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and their log probabilities, `[running, steps]` both.

        Args:
          width: columns of the sources that are read.
          count: rows to take part, at least the running ones.
        """
        slots = [request.slot for request in running]
        if count == self.num_slots:
            rows, places = list(range(count)), slots
        else:
            rows, places = [*slots, *self._free][:count], list(range(len(running)))
        active = np.zeros(count, bool)
        active[places] = True
        assert self._state is not None
        batch = {"rows": np.array(rows, np.int32), "active": active}
        self._state, written = self._advance[width](
            self._decoding_variables(),
            self._state,
            self._runtime.place_shared(batch),
            self._any_text.free,
            np.int32(self._column),
        )
        self._column = (self._column + int(written.num_steps)) % self.max_tokens
        return np.asarray(written.tokens)[places], np.asarray(written.gained)[places]

    def _width(self, bucket: int) -> int:
        """Columns of the encoder's output: soft prompts come first."""
        return self.model.config.prompts.num_prompts + bucket

    def _widths(self) -> list[int]:
        return [self._width(bucket) for bucket in self._source_buckets]


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
    slots = Slots(
        cache,
        given=jnp.full((num_slots, length), FREE, jnp.int32),
        limit=numbers,
        place=Place(*[numbers] * len(Place._fields)),
        last=numbers,
        position=numbers,
        seed=numbers.astype(jnp.uint32),
        number=numbers,
        sampling=SamplingOptions(floats, numbers, floats),
    )
    return slots, numbers


def join(model: M6Rec, variables: Variables, state: _State, batch: Mapping[str, Array]) -> _State:
    """Encodes sources into slots, and puts what their texts begin with there.

    Args:
      batch: of `Engine._history_batch`, `[size, ...]`; `slots` int32 `[size]`, those past the last
        one going nowhere; and by name fields of `Slots`, `Place` and `SamplingOptions`.
    """
    new: Any = model.apply(
        variables,
        encoded_source(model, variables, batch),
        batch["task_ids"],
        max_length=1,
        method=model.start_decoding,
    )
    width, places = new.source_mask.shape[1], batch["slots"]

    def put_source(old: Array, own: Array) -> Array:
        at = (places, slice(None), slice(width))
        return old.at[at if old.ndim == 4 else (slice(None), *at)].set(own, mode="drop")

    def put(old: Array, own: Array) -> Array:
        return old.at[places].set(own, mode="drop")

    slots, cache, nothing = state.slots, state.slots.cache, jnp.zeros_like(places)
    mask = jnp.pad(new.source_mask, ((0, 0), (0, cache.source_mask.shape[1] - width)))
    begun = Slots(
        None,
        given=batch["given"],
        limit=batch["limit"],
        place=Place(
            nothing, batch["graph"], nothing, batch["before"], batch["limit"] - batch["before"]
        ),
        last=jnp.full_like(places, PAD_ID),  # [BOS]
        position=nothing,
        seed=batch["seed"],
        number=nothing,
        sampling=SamplingOptions(batch["temperature"], batch["top_k"], batch["top_p"]),
    )
    put_all = jax.tree.map(put, slots._replace(cache=None), begun)
    cache = cache._replace(
        source=jax.tree.map(put_source, cache.source, new.source),
        source_mask=put(cache.source_mask, mask),
    )
    return state._replace(
        slots=put_all._replace(cache=cache),
        task_ids=put(state.task_ids, batch["task_ids"][:, 0]),
    )


def put_graph(graphs: Graphs, graph: Graphs, slot: Array) -> Graphs:
    """Graphs with another one, `[1, ...]`, for a slot; past the last one it goes nowhere."""
    put = {
        name: getattr(graphs, name).at[slot].set(getattr(graph, name)[0], mode="drop")
        for name in ("first_edge", "token", "target", "rest")
    }
    return graphs._replace(**put)


def advance_some(
    model: M6Rec,
    num_steps: int,
    width: int,
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
      width: columns of the sources that are read.
    """
    rows, slots = batch["rows"], state.slots
    everybody = rows.shape[0] == slots.cache.num_rows

    def taken(array: Array) -> Array:
        return array if everybody else array[rows]

    def taken_of_cache(array: Array) -> Array:
        return array if everybody else jnp.take(array, rows, axis=-4)

    def put(old: Array, new: Array) -> Array:
        return new if everybody else old.at[rows].set(new)

    def put_into_cache(old: Array, new: Array) -> Array:
        if everybody:
            return new
        return old.at[rows if old.ndim == 4 else (slice(None), rows)].set(new)

    cache = DecoderCache(
        jax.tree.map(taken_of_cache, slots.cache.past),
        jax.tree.map(lambda array: taken_of_cache(array)[..., :width, :], slots.cache.source),
        taken(slots.cache.source_mask)[:, :width],
    )
    some = jax.tree.map(taken, slots._replace(cache=None))._replace(cache=cache)
    step = model_step(model, variables, taken(state.task_ids))
    automaton = Automaton(free, state.graphs)
    some, written = advance(step, some, automaton, batch["active"], num_steps, column)
    past = jax.tree.map(put_into_cache, slots.cache.past, some.cache.past)
    others = jax.tree.map(put, slots._replace(cache=None), some._replace(cache=None))
    slots = others._replace(cache=slots.cache._replace(past=past))
    return state._replace(slots=slots), written

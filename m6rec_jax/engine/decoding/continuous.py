"""Continuous batching: texts of unlike lengths, asked for at any time, share every step.

    generator = ContinuousGenerator(model, variables, vocabulary, EngineOptions(256, 64))
    stream = generator.submit(segments, task="explain", max_tokens=40)
    while stream.finish_reason is None:
        generator.step()
        print(*stream.take(), sep="", end="")

A fixed number of slots lies on the device: the source's keys and values, and the decoder's cache.
A request is encoded into a free slot, takes part in the next step, and leaves when its text ends.
All tasks, greedy and sampled texts, and positions share one program. A text does not depend on what
else is under way: it is the one of `Generator.greedy` or, with a temperature, of
`Generator.sample` with the same seed.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import logging
import operator
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.decoding.constraints import any_text
from m6rec_jax.engine.decoding.loop import FREE
from m6rec_jax.engine.decoding.sampling import check_sampling
from m6rec_jax.engine.decoding.slot_steps import advance_slots, empty_slots
from m6rec_jax.engine.decoding.stream import GenerationStream, GrowingText
from m6rec_jax.engine.decoding.text_choices import RowChoices, TextChoices
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables
from m6rec_jax.engine.programs.runtime import smallest_that_fits
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.model import M6Rec
from m6rec_jax.model.decoder_cache import DecoderCache
from m6rec_jax.text.layout import Row
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID, Vocabulary

Array = jax.Array
logger = logging.getLogger(__name__)
# Between two looks at the queue. More save calls; fewer let requests start, and stop texts end,
# sooner.
_STEPS_PER_CALL = 4


@dataclasses.dataclass(eq=False)
class _Request:
    """One text that was asked for; what stands below `slot` changes as it grows."""

    segments: Sequence[str]
    task: str
    settings: TaskSettings
    source: Row
    given: list[int]
    limit: int  # tokens, the prefix's included
    sampling: tuple[float, int, float, int]  # temperature, top k, top p, seed
    stream: GenerationStream
    text: GrowingText
    choices: TextChoices | None
    node: int = 0  # of the choices
    slot: int = -1
    width: int = 0  # of the source's bucket
    position: int = 0
    last: int = PAD_ID  # [BOS]


class ContinuousGenerator(Engine):
    """Texts for requests as they come. Any thread may submit; whoever calls `step` lets them grow,
    as `serving.scheduler.Scheduler` does.

    Where tasks leave the decoder early, a step lasts until the last of its tokens has left.

    Args:
      model, variables, vocabulary, options: see `Engine`. A new prompt bank is taken up as soon as
        no text is under way whose task it changes; a text ends with the prompts it began with.
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
        # Of a copy: what `over` makes shares the program, and must not keep this one's cache.
        self._join = self._jit(copy.copy(self)._join_sources, donate=1)
        self._advance = {
            width: self._jit(
                functools.partial(advance_slots, model, num_steps=_STEPS_PER_CALL, width=width),
                donate=1,
            )
            for width in self._widths()
        }
        self._start = self._jit(
            functools.partial(
                empty_slots, model, self.num_slots, self.max_tokens, self._widths()[-1]
            )
        )
        self._free_rows: dict[int, RowChoices] = {}
        self._begin()

    def _begin(self) -> None:
        """Nothing is under way."""
        self._cache: DecoderCache | None = None  # made at the first step
        self._column = 0
        self._running: list[_Request] = []
        self._free = list(range(self.num_slots))
        self._taken: Variables = {}  # the variables of those that run
        self._pending = collections.deque[_Request]()
        self._waiting = threading.Lock()  # over `_pending`
        self._stepping = threading.Lock()

    def over(self, variables: Variables, tasks: Mapping[str, TaskSettings]) -> Self:
        """See `Engine.over`. Slots and queue are its own; this one's texts go on here."""
        other = super().over(variables, tasks)
        other._begin()
        return other

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
        source = self._source_row(segments, settings)
        stream = GenerationStream()
        request = _Request(
            segments=segments,
            task=task,
            settings=settings,
            source=source,
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
            variables = dict(self.variables)
            if self._segments:
                self._segments.warm_up(variables)
            for bucket in self._source_buckets:
                for size in self._join_sizes:
                    self._encode_into(variables, [], bucket, size)
            for width in self._widths():
                for count in self._row_counts:
                    self._take_steps(variables, [], width, count)

    def step(self) -> bool:
        """Lets requests in, takes a few steps; returns whether there is more to do."""
        with self._stepping:
            try:
                self._leave()
                self._let_in()
                if self._running:
                    self._step_all()
            except Exception as error:
                # The cache may be gone with the call that failed: begin anew, without these texts.
                logger.exception("a step of generation failed")
                self._cache = None
                for request in self._running:
                    request.stream.finish("error", error=error)
                self._running, self._free = [], list(range(self.num_slots))
            return bool(self._running or self._pending)

    def _leave(self) -> None:
        """Those that nobody waits for go."""
        with self._waiting:
            asked = [*self._running, *self._pending]
            for request in [one for one in asked if one.stream.is_cancelled]:
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
            asked = [self._pending.popleft() for _ in range(number)]
        asked = [request for request in asked if self._renewed(request)]
        if not asked:
            return
        everybody = [*self._running, *asked]
        names = [request.task for request in everybody]
        try:
            taken, settings = self._tasks.with_variables(self.variables, names, len(names))
            same = all(map(operator.is_, settings, (request.settings for request in everybody)))
        except ConfigError:  # a task is gone
            same = False
        if not same:
            # A text under way ends with the prompts it began with; till then nobody is let in.
            with self._waiting:
                self._pending.extendleft(reversed(asked))
            return
        self._taken = taken
        lengths = [len(request.source["encoder_input_tokens"]) for request in asked]
        bucket = smallest_that_fits(max(lengths), self._source_buckets)
        for request in asked:
            request.slot, request.width = self._free.pop(), self._width(bucket)
        self._running += asked
        self._encode_into(
            self._taken, asked, bucket, smallest_that_fits(len(asked), self._join_sizes)
        )

    def _renewed(self, request: _Request) -> bool:
        """Has the newest settings of its task; False where there is no such task any more."""
        try:
            settings = self._tasks.one(request.task)
        except ConfigError as error:
            request.stream.finish("error", error=error)
            return False
        if settings is not request.settings:
            request.settings = settings
            request.source = self._source_row(request.segments, settings)
        return True

    def _encode_into(
        self, variables: Variables, requests: Sequence[_Request], bucket: int, size: int
    ) -> None:
        """Puts the sources of requests into their slots."""
        slots = np.full(size, self.num_slots, np.int32)  # rows of padding go nowhere
        slots[: len(requests)] = [request.slot for request in requests]
        if self._cache is None:
            self._cache = self._start(self._for_decoding(variables))
        sources = [request.source for request in requests]
        with self._segments_held():
            batch = self._history_batch(
                variables, sources, [request.settings for request in requests], bucket, size
            )
            placed = self._placed(batch | {"slots": slots})
            self._cache = self._join(self._for_decoding(variables), self._cache, placed)

    def _join_sources(
        self, variables: Variables, cache: DecoderCache, batch: Mapping[str, Array]
    ) -> DecoderCache:
        """Encodes sources into slots; for use inside jit.

        Args:
          batch: of `Engine._history_batch`, `[size, ...]`; `slots` int32 `[size]`, those past the
            last one going nowhere.
        """
        model, encoded = self.model, self._encoded(variables, batch)
        new: Any = model.apply(
            variables, encoded, batch["task_ids"], max_length=1, method=model.start_decoding
        )
        width = new.source_mask.shape[1]

        def put(old: Array, own: Array) -> Array:
            at = (batch["slots"], slice(None), slice(width))
            return old.at[at if old.ndim == 4 else (slice(None), *at)].set(own, mode="drop")

        mask = jnp.pad(new.source_mask, ((0, 0), (0, cache.source_mask.shape[1] - width)))
        return cache._replace(
            source=jax.tree.map(put, cache.source, new.source),
            source_mask=cache.source_mask.at[batch["slots"]].set(mask, mode="drop"),
        )

    def _step_all(self) -> None:
        """Takes steps with all texts under way, and hands on what they say."""
        running = sorted(self._running, key=lambda request: request.slot)
        tokens, gained = self._take_steps(
            self._taken,
            running,
            max(request.width for request in running),
            smallest_that_fits(len(running), self._row_counts),
        )
        for request, new, scores in zip(running, tokens.tolist(), gained.tolist(), strict=True):
            number = min(len(new), request.limit - request.position)
            if EOS_ID in new[:number]:
                number = new.index(EOS_ID) + 1
            if request.choices is not None:
                written = new[max(0, len(request.given) - request.position) : number]
                request.node = request.choices.walk(request.node, written)
            request.position += number
            request.last = new[number - 1]
            ended = request.text.add(new[:number], scores[:number])
            if not ended and request.position >= request.limit:
                request.text.finish("length")
                ended = True
            if ended:
                self._release(request)

    def _take_steps(
        self, variables: Variables, running: Sequence[_Request], width: int, count: int
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
        batch = {
            "rows": np.array(rows, np.int32),
            "active": np.zeros(count, bool),
            "given": np.full((count, _STEPS_PER_CALL), FREE, np.int32),
            "temperature": np.zeros(count, np.float32),
            "top_k": np.zeros(count, np.int32),
            "top_p": np.ones(count, np.float32),
            "seeds": np.zeros(count, np.uint32),
        }
        batch |= {
            name: np.zeros(count, np.int32) for name in ("last", "position", "limit", "num_given")
        }
        batch["task_ids"] = np.zeros(count, np.int32)
        for place, request in zip(places, running, strict=True):
            batch["active"][place] = True
            coming = request.given[request.position :][:_STEPS_PER_CALL]
            batch["given"][place, : len(coming)] = coming
            batch["num_given"][place] = max(0, len(request.given) - request.position)
            for name, value in zip(
                ("temperature", "top_k", "top_p", "seeds"), request.sampling, strict=True
            ):
                batch[name][place] = value
            batch["last"][place], batch["position"][place] = request.last, request.position
            batch["limit"][place] = request.limit
            batch["task_ids"][place] = request.settings.task_id
        assert self._cache is not None
        self._cache, tokens, gained, taken = self._advance[width](
            self._for_decoding(variables),
            self._cache,
            self._runtime.place_shared(batch),
            self._constraint(dict(zip(places, running, strict=True)), count),
            np.int32(self._column),
        )
        self._column = (self._column + int(taken)) % self.max_tokens
        return np.asarray(tokens)[places], np.asarray(gained)[places]

    def _constraint(self, running: Mapping[int, _Request], count: int) -> RowChoices:
        """What may come next in each row."""
        choices = {place: request.choices for place, request in running.items()}
        if not any(choices.values()):
            if count not in self._free_rows:
                rows = RowChoices.of({}, {}, count, self._any_text)
                self._free_rows[count] = jax.device_put(rows)
            return self._free_rows[count]
        room = {place: r.limit - max(r.position, len(r.given)) for place, r in running.items()}
        node = {place: r.node for place, r in running.items()}
        return RowChoices.of(choices, room, count, self._any_text, node)

    def _width(self, bucket: int) -> int:
        """Columns of the encoder's output: soft prompts come first."""
        return self.model.config.prompts.num_prompts + bucket

    def _widths(self) -> list[int]:
        return [self._width(bucket) for bucket in self._source_buckets]

"""A number for each of many candidates: one pass over the history, candidates packed into rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.candidates.early_exit import exiting_scores
from m6rec_jax.engine.candidates.rows import PackedTexts, pack_texts, text_ends
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables, encoded_source
from m6rec_jax.engine.programs.runtime import length_buckets, smallest_that_fits
from m6rec_jax.engine.segments.cache import gathered_ends
from m6rec_jax.engine.task_settings import NEVER, ExitSettings, TaskSettings, check_number
from m6rec_jax.errors import DataError
from m6rec_jax.model import M6Rec
from m6rec_jax.text.layout import Row, pad_batch
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array

# Features given once per source, repeated for each of its rows.
_OF_TASK = ("task_ids", "positive_classes", "sampling_rates", "exit_threshold", "exit_depth")


class _Part(NamedTuple):
    """Some decoder rows of one request: all of them, unless it has more than a batch holds.

    `candidates` are those of each row, as indices.
    """

    request: int
    rows: Sequence[Row]
    candidates: list[list[int]]


class Read(Protocol):
    """For use inside jit."""

    def __call__(
        self, model: M6Rec, variables: Variables, hidden: Array, features: Mapping[str, Array]
    ) -> Array:
        """A number for each position, float32 `[rows, target]`.

        Args:
          model, variables: the model.
          hidden: final states, `[rows, target, embed]`.
          features: `decoder_features`, `task_ids` and those of `task_features`.
        """


# Of numbers `[rows, target]` and features, as of `Read`; for use inside jit.
Finish = Callable[[Array, Mapping[str, Array]], Array]


def as_read(values: Array, features: Mapping[str, Array]) -> Array:
    """A `Finish` that changes nothing."""
    del features
    return values


def score_rows(
    model: M6Rec,
    read: Read,
    finish: Finish,
    exits: bool,
    variables: Variables,
    features: Mapping[str, Array],
) -> Array:
    """float32 `[sources, rows, target]`; for use inside jit."""
    encoded, own = encoded_source(model, variables, features), _of_rows(features)
    blocks, task_ids = own["decoder_block_ids"], own["task_ids"]
    if "candidate_slots" in own:
        early = features["candidate_pool"][own["candidate_slots"]].astype(model.config.dtype)
    else:
        tokens = own["decoder_input_tokens"]
        early = model.apply(variables, tokens, blocks, task_ids, method=model.decode_early)
    if exits:
        values = exiting_scores(
            model,
            variables,
            encoded,
            early,
            own,
            lambda hidden: read(model, variables, hidden, own),
        ).values
    else:
        hidden = model.apply(variables, encoded, early, blocks, task_ids, method=model.decode_late)
        values = read(model, variables, hidden, own)
    return finish(values, own).reshape(features["decoder_block_ids"].shape)


def score_ends(
    model: M6Rec,
    read: Read,
    finish: Finish,
    variables: Variables,
    features: Mapping[str, Array],
) -> Array:
    """float32 `[sources, rows, 1]`: rows are candidates, whose ends alone are computed."""
    encoded, own = encoded_source(model, variables, features), _of_rows(features)
    gathered = {**features, **own, "task_ids": features["task_ids"]}
    hidden = gathered_ends(model, encoded, variables, gathered)
    values = finish(read(model, variables, hidden[:, None], own), own)
    return values.reshape(*features["candidate_slots"].shape[:2], 1)


class CandidateScorer(Engine):
    """A number for every candidate of a history; subclasses say what it means.

    The rows of a request stand together in a batch, so cross attention projects its history once,
    not once per row. Every request of a batch has the same number of rows, some of them padding.
    """

    # By how much the next larger number of rows is larger: each takes programs of its own.
    row_growth = 2
    # Whether its programs may leave the decoder early.
    may_exit = False
    # Reads a number off every decoder position; those at `[EOS]` are kept.
    read: Read
    # What becomes of the numbers, after early exits have compared them.
    finish: Finish
    # What an export calls the program.
    program_name = ""
    # Decoder features that the jitted function sees.
    decoder_features: tuple[str, ...] = ("decoder_input_tokens", "decoder_block_ids")

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        super().__init__(model, variables, vocabulary, options)
        # Scored at its end alone, a candidate is a row of its own.
        self._ends = self._segments is not None and self._segments.scores_ends
        self._exits = (
            self.may_exit
            and options.early_exit
            and not self._ends  # a few layers over one position: nothing to leave early
            and any(task.exits is not None for task in options.tasks.values())
        )
        if self._ends:
            self._target_buckets = length_buckets(self.candidate_length)
        share = self.options.target_length // self.candidate_length if self._ends else 1
        self._sizes = [size * share for size in options.batch_sizes]
        most = self._sizes[-1]
        # Rows of a request, up to the largest batch.
        powers = (self.row_growth**i for i in range(32))
        self._row_sizes = [*itertools.takewhile(lambda n: n < most, powers), most]

        function, static = (score_ends, ()) if self._ends else (score_rows, (self._exits,))
        self._score_batch = self._program(
            self.program_name, function, model, self.read, self.finish, *static
        )

    def check(self, text: str, task: str | None = None) -> None:
        """Makes sure that a candidate's text can be scored by a task (None: the default one).

        Raises:
          DataError: it has no words.
        """
        del task
        if not len(self.vocabulary.encode_array(text)):
            raise DataError(f"there is no text to score: {text!r}")

    def pack(self, texts: Sequence[str], candidate_length: int) -> PackedTexts:
        """Lays out the candidates of one request, each of so many tokens at most."""
        return pack_texts(self.vocabulary, texts, self.options.target_length, candidate_length)

    def task_features(self, settings: Sequence[TaskSettings], size: int) -> dict[str, np.ndarray]:
        """What `read` must know of each source's task: arrays `[size, n]`, as in `_OF_TASK`."""
        del settings, size
        return {}

    def _exit_features(self, settings: Sequence[TaskSettings], size: int) -> dict[str, np.ndarray]:
        """`exit_threshold` and `exit_depth` `[size, 1]` of each row's task; none without exits."""
        if not self._exits:
            return {}
        last = ExitSettings(NEVER, self.model.config.num_exits)
        own = [one.exits or last for one in settings]
        own += [last] * (size - len(own))
        return {
            "exit_threshold": np.array([one.threshold for one in own], np.float32)[:, None],
            "exit_depth": np.array([one.depth for one in own], np.int32)[:, None],
        }

    def score_requests(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        tasks: Sequence[str] | None = None,
        repeats: Sequence[Sequence[bool]] | None = None,
    ) -> list[np.ndarray]:
        """Scores candidates given as text, for histories given as text segments.

        Args:
          histories: per request, segments as `DatasetTemplate.history_segments` gives them.
          candidates: per request, any number of texts as `DatasetTemplate.candidate` gives them.
          tasks: the task of each request; None: the default one.
          repeats: per request, which candidates the user had before; None: none of them. It counts
            for tasks whose negatives were sampled by two rates (`TaskSettings.sampling_rates`).

        Returns:
          For each request the score of each candidate, float32 `[candidates]`, in order.

        Raises:
          DataError: numbers that do not fit each other, or a text without words.
          ConfigError: no such task, or one without what is needed.
        """
        if repeats is None:
            repeats = [[False] * len(texts) for texts in candidates]
        check_number(len(histories), candidates=candidates, repeats=repeats)
        settings = self._tasks.each(tasks, len(histories))
        sources = list(map(self._source_row, histories, settings))
        by_shape: dict[tuple[int, int, int], list[_Part]] = {}
        most = self._row_sizes[-1]
        for request, (texts, marks) in enumerate(zip(candidates, repeats, strict=True)):
            if len(marks) != len(texts):
                raise DataError(f"{len(marks)} repeats for {len(texts)} candidates")
            packed = self._packed(texts, settings[request].text_length(self.candidate_length))
            for row, members in zip(packed.rows, packed.indices, strict=True):
                row["decoder_repeats"] = np.array(marks, np.int32)[members][
                    row["decoder_block_ids"] - 1
                ]
            for start in range(0, len(packed.rows), most):
                rows = slice(start, start + most)
                part = _Part(request, packed.rows[rows], packed.indices[rows])
                by_shape.setdefault(self._shape(sources[request], part.rows), []).append(part)
        pending: list[tuple[list[_Part], Array]] = []
        for (*lengths, num_rows), parts in sorted(by_shape.items(), key=lambda item: item[0]):
            sizes = self._numbers_of_sources(num_rows)
            for start in range(0, len(parts), sizes[-1]):
                batch = parts[start : start + sizes[-1]]
                # Not read back here: the devices go on while Python prepares the next batch.
                values = self._run(
                    [sources[part.request] for part in batch],
                    [part.rows for part in batch],
                    [settings[part.request] for part in batch],
                    (*lengths, num_rows, smallest_that_fits(len(batch), sizes)),
                )
                pending.append((batch, values))
        scores = [np.zeros(len(texts), np.float32) for texts in candidates]
        for batch, on_device in pending:
            for part, of_rows in zip(batch, np.asarray(on_device), strict=False):
                for row, members, values in zip(part.rows, part.candidates, of_rows, strict=False):
                    ends = [0] if self._ends else text_ends(row["decoder_block_ids"])
                    scores[part.request][members] = values[ends]
        return scores

    def _shape(self, source: Row, rows: Sequence[Row]) -> tuple[int, int, int]:
        """Lengths of a history and of rows, and the number of rows, that a program is padded to."""
        longest = max(len(row["decoder_input_tokens"]) for row in rows)
        return (
            smallest_that_fits(len(source["encoder_input_tokens"]), self._source_buckets),
            smallest_that_fits(longest, self._target_buckets),
            smallest_that_fits(len(rows), self._row_sizes),
        )

    def _packed(self, texts: Sequence[str], candidate_length: int) -> PackedTexts:
        if not self._ends:
            return self.pack(texts, candidate_length)
        alone = [self.pack([text], candidate_length).rows[0] for text in texts]
        return PackedTexts(alone, [[index] for index in range(len(texts))])

    def warm_up(self) -> None:
        """Compiles every shape that a request can have."""
        if self._segments:
            self._segments.warm_up(self.variables)
        for length in self._source_buckets:
            for target_length in self._target_buckets:
                for num_rows in self._row_sizes:
                    for size in self._numbers_of_sources(num_rows):
                        shape = (length, target_length, num_rows, size)
                        self._run([], [], [], shape)

    def _numbers_of_sources(self, num_rows: int) -> list[int]:
        """Requests of a batch, ascending, where each has so many rows."""
        sizes = {max(1, size // num_rows) for size in self._sizes}
        return self._runtime.batch_sizes(sizes)

    def _run(
        self,
        sources: Sequence[Row],
        targets: Sequence[Sequence[Row]],
        settings: Sequence[TaskSettings],
        shape: tuple[int, ...],
    ) -> Array:
        """Starts one batch.

        Args:
          sources, targets, settings: of the batch's requests.
          shape: tokens of a history and of a row, rows of a request, requests.

        Returns:
          float32 `[requests, rows, target]`.
        """
        length, target_length, num_rows, size = shape

        with self._segments_held():
            batch = self._history_batch(sources, settings, length, size)
            batch |= self.task_features(settings, size) | self._exit_features(settings, size)
            rows_of = self._target_batch(targets, settings, target_length, num_rows, size)
            batch |= {name: own.reshape(size, num_rows, -1) for name, own in rows_of.items()}
            found: Array = self._score_batch(self.variables, self._placed(batch))
        return found

    def _target_batch(
        self,
        targets: Sequence[Sequence[Row]],
        settings: Sequence[TaskSettings],
        length: int,
        num_rows: int,
        size: int,
    ) -> dict[str, np.ndarray]:
        """Decoder features `[size * rows, length]`, the rows of a request one after the other."""
        names = dict.fromkeys(self.decoder_features, length)
        nothing: Row = {name: np.zeros(0, np.int32) for name in names}
        filled = [row for own in targets for row in (*own, *[nothing] * (num_rows - len(own)))]
        batch = pad_batch(filled, names, size * num_rows)
        if self._segments is None:
            return batch
        present = [(k, row) for k, row in enumerate(filled) if row is not nothing]
        of_rows = [own for own, part in zip(settings, targets, strict=True) for _ in part]
        found = self._segments.candidate_slots(self.variables, [row for _, row in present], of_rows)
        slots = np.zeros((size * num_rows, length), np.int32)
        visible = np.zeros(slots.shape, bool)
        for (k, _), own in zip(present, found, strict=True):
            place = slice(length - len(own), None) if self._ends else slice(len(own))
            slots[k, place], visible[k, place] = own, True
        if self._ends:
            # A row is one candidate, and its number one.
            others = self.decoder_features[len(CandidateScorer.decoder_features) :]
            own_marks = {name: batch[name][:, :1] for name in others}
            return {"candidate_slots": slots, "candidate_visible": visible} | own_marks
        return batch | {"candidate_slots": slots}


def _of_rows(features: Mapping[str, Array]) -> dict[str, Array]:
    """Features of all decoder rows, those of a source together; for use inside jit.

    Args:
      features: of rows `[sources, rows, length]`, of tasks `[sources, n]`, and others.

    Returns:
      Those of rows and of tasks, `[sources * rows, ...]`.
    """
    found = {name: value for name, value in features.items() if value.ndim == 3}
    shape = next(iter(found.values())).shape[:2]
    for name in _OF_TASK:
        if name in features:
            value = features[name]
            found[name] = jnp.broadcast_to(value[:, None], (*shape, value.shape[1]))
    return {name: value.reshape(-1, value.shape[2]) for name, value in found.items()}

"""Scores candidates for users: the probability that a user likes, clicks or buys (paper section 2).

    scorer = Scorer(model, variables, vocabulary, EngineOptions(source_length=256, ...))
    scorer.score_requests([history], [candidates])      # text in, one probability per candidate out
    bank.scorer().score_requests(histories, candidates, ["ctr", "stars"])      # a task per request
    scorer = LikelihoodScorer(model, variables, vocabulary, options, Contrast("liked", "disliked"))
    scorer.score_requests([history], [candidates])      # zero-shot: log odds of "liked"

A history is encoded once, however many candidates it has; candidates are packed into decoder rows.
Shapes come from a few buckets, so a new request compiles nothing once each bucket has been seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.data.splitting.negatives import corrected_probability
from m6rec_jax.engine.candidates.rows import PackedTexts, pack_texts, text_ends
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables, encoded_source
from m6rec_jax.engine.programs.runtime import length_buckets, smallest_that_fits
from m6rec_jax.engine.segments.cache import gathered_ends
from m6rec_jax.engine.task_settings import NEVER, ExitSettings, TaskSettings, check_number
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.model import Encoded, M6Rec, masks
from m6rec_jax.objectives.language_modelling import target_logits
from m6rec_jax.text.labels import Contrast
from m6rec_jax.text.layout import Row, pad_batch
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
# For use inside jit: of a model, its variables, the decoder's final states `[rows, target, embed]`
# and features (decoder rows and `task_features`) a number for each position, `[rows, target]`.
Read = Callable[[M6Rec, Variables, Array, Mapping[str, Array]], Array]
# Features given once per source, repeated for each of its rows.
_OF_TASK = ("task_ids", "positive_classes", "sampling_rates", "exit_threshold", "exit_depth")


def class_log_probabilities(
    model: M6Rec, variables: Variables, features: Mapping[str, Array]
) -> Array:
    """Log probability of every class at every decoder position, `[batch, target, classes]`.

    Only positions whose input token is `[EOS]` mean anything. For use inside jit.
    """
    hidden = model.apply(variables, features).hidden
    return read_log_probabilities(model, variables, hidden, features["task_ids"])


def read_log_probabilities(
    model: M6Rec, variables: Variables, hidden: Array, task_ids: Array
) -> Array:
    """`class_log_probabilities` of the decoder's final states, `[batch, target, embed]`."""
    logits = model.apply(variables, hidden, task_ids, method=model.option_logits)
    return jax.nn.log_softmax(logits, axis=-1)


def positive_probability(log_probabilities: Array, positive: Array) -> Array:
    """Sum of the positive classes' probabilities, `[batch, target, classes]` to `[batch, target]`.

    With two classes that is class 1. With one class per rating value it is, say, 4 and 5 stars, so
    that richer labels than yes and no can be trained on.

    Args:
      log_probabilities: of all classes.
      positive: of each row, `[batch, classes]`, above 0 for its positive classes.
    """
    chosen = jnp.where(positive[:, None] > 0, log_probabilities, -jnp.inf)
    # Several classes may round to a little above 1.
    return jnp.exp(jnp.minimum(jax.nn.logsumexp(chosen, axis=-1), 0.0))


def served_probability(probability: Any, repeats: Any, sampling_rates: Any) -> Any:
    """A model's probabilities as they are served: corrected for how negatives were sampled.

    Args:
      probability: of candidates, `[..., n]`, of numpy or JAX, as all arguments.
      repeats: which of them the user had before, bool `[..., n]`.
      sampling_rates: `TaskSettings.sampling_rates`, `[..., 2]`.
    """
    new, had = sampling_rates[..., :1], sampling_rates[..., 1:]
    return corrected_probability(probability, new * ~repeats + had * repeats)


def chosen_classes(positive_classes: Sequence[int], num_classes: int) -> np.ndarray:
    """Which classes are positive, bool `[classes]`.

    Raises:
      ConfigError: a class that the head does not have, or no class or all of them.
    """
    chosen = sorted(set(positive_classes))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_classes or len(chosen) == num_classes:
        raise ConfigError(
            f"positive_classes = {tuple(positive_classes)} must be some, but not all, of the "
            f"classes 0 to {num_classes - 1} (PromptConfig.num_options = {num_classes})"
        )
    return np.isin(np.arange(num_classes), chosen)


def read_probability(
    model: M6Rec, variables: Variables, hidden: Array, features: Mapping[str, Array]
) -> Array:
    """`Read`: the probability of the task's positive classes."""
    classes = read_log_probabilities(model, variables, hidden, features["task_ids"])
    return positive_probability(classes, features["positive_classes"])


def exiting_scores(
    model: M6Rec,
    variables: Variables,
    encoded: Encoded,
    early: Array,
    features: Mapping[str, Array],
    read: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """Decodes until every candidate has left.

    A candidate that leaves keeps its score while the layers go on for others, so that it does not
    depend on what shares its batch.

    Args:
      model, variables: the model.
      encoded: one document per row, `[sources, ...]`; the rows of a source stand together.
      early: of `M6Rec.decode_early`, `[rows, target, embed]`.
      features: `decoder_block_ids` `[rows, target]`, `task_ids` `[rows, 1]`, and `exit_threshold`
        (float32) and `exit_depth` (int32) `[rows, 1]`, see `ExitSettings`.
      read: a score in [0, 1] of every position, `[rows, target, embed]` to `[rows, target]`.

    Returns:
      scores, float32 `[rows, target]`; those at the ends of candidates mean something. And how many
      exits were run, for the slowest candidate.
    """
    blocks = features["decoder_block_ids"]

    def look(hidden: Array, exit_index: Array, now: tuple[Array, ...]) -> tuple[Array, ...]:
        before, left, _ = now
        values = read(hidden)
        unchanged = 1.0 - jnp.abs(values - before)
        settled = (exit_index > 0) & (unchanged >= features["exit_threshold"])
        last = exit_index + 1 >= features["exit_depth"]
        return jnp.where(left, before, values), left | settled | last, exit_index + 1

    scores, _, num_exits = model.apply(
        variables,
        encoded,
        early,
        blocks,
        features["task_ids"],
        look,
        (jnp.zeros(blocks.shape, jnp.float32), ~masks.block_ends(blocks), jnp.int32(0)),
        lambda now: ~jnp.all(now[1]),
        method=model.decode_while,
    )
    return scores, num_exits


def score_candidates(
    model: M6Rec, read: Read, variables: Variables, features: Mapping[str, Array]
) -> Array:
    """A number at every position, float32 `[sources, rows, target]`; for use inside jit.

    Where candidates are scored at their ends alone (`cross_attention_at`), each is a row, of
    one number.
    """
    encoded, rows = encoded_source(model, variables, features), _of_rows(features)
    at_ends = "candidate_visible" in features
    if at_ends:
        gathered = {**features, **rows, "task_ids": features["task_ids"]}
        hidden = gathered_ends(model, encoded, variables, gathered)
        values = read(model, variables, hidden[:, None], rows)
    else:
        blocks, task_ids = rows["decoder_block_ids"], rows["task_ids"]
        if "candidate_slots" in rows:
            early = features["candidate_pool"][rows["candidate_slots"]].astype(model.config.dtype)
        else:
            early = model.apply(
                variables,
                rows["decoder_input_tokens"],
                blocks,
                task_ids,
                method=model.decode_early,
            )
        if "exit_depth" in rows:
            values, _ = exiting_scores(
                model,
                variables,
                encoded,
                early,
                rows,
                lambda hidden: read(model, variables, hidden, rows),
            )
        else:
            hidden = model.apply(
                variables, encoded, early, blocks, task_ids, method=model.decode_late
            )
            values = read(model, variables, hidden, rows)
    if "sampling_rates" in rows:
        # Exits have compared what the model says.
        repeats = rows["decoder_repeats"] > 0
        values = served_probability(values, repeats, rows["sampling_rates"])
    shape = features["candidate_visible" if at_ends else "decoder_block_ids"].shape[:2]
    return values.reshape(*shape, values.shape[1])


class CandidateScorer(Engine):
    """A number for every candidate of a history; subclasses say what it means.

    The rows of a request stand together in a batch, so cross attention projects its history once,
    not once per row. Every request of a batch has the same number of rows, some of them padding.
    """

    # By how much the next larger number of rows is larger: each takes programs of its own.
    row_growth = 2
    # Reads a number off every decoder position; those at `[EOS]` are kept.
    read: Read
    # What an export calls the program.
    program_name = ""
    # Decoder features that the jitted function sees.
    decoder_features: tuple[str, ...] = ("decoder_input_tokens", "decoder_block_ids")
    # What is asked in words about each candidate.
    contrast: Contrast | None = None

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        super().__init__(model, variables, vocabulary, options)
        # Scored at its end alone, a candidate is a row of its own.
        self._ends = self._segments is not None and model.config.cross_attention_at == "ends"
        share = 1
        if self._ends:
            self._target_buckets = length_buckets(self.candidate_length)
            share = options.target_length // self.candidate_length
        self._sizes = [size * share for size in options.batch_sizes]
        most = self._sizes[-1]
        # Rows of a request, up to the largest batch.
        powers = (self.row_growth**i for i in range(32))
        self._row_sizes = [*itertools.takewhile(lambda n: n < most, powers), most]
        self._score_batch = self._program(self.program_name, score_candidates, model, self.read)

    def check(self, text: str, task: str | None = None) -> None:
        """Makes sure that a candidate's text can be scored by a task (None: the default one).

        Raises:
          DataError: it has no words. ConfigError: there is no room for the labels of a contrast.
        """
        if not len(self.vocabulary.encode_array(text)):
            raise DataError(f"there is no text to score: {text!r}")
        if self.contrast:
            length = self.settings(task).text_length(self.candidate_length)
            self.contrast.lay_out(self.vocabulary, [text], length, candidate_length=length)

    def task_features(self, settings: Sequence[TaskSettings], size: int) -> dict[str, np.ndarray]:
        """What `read` must know of each source's task: arrays `[size, n]`, as in `_OF_TASK`."""
        del settings, size
        return {}

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
        settings = self.settings_of(tasks, len(histories))
        sources = list(map(self._source_row, histories, settings))
        # Of each shape: the request, some of its rows and their candidates.
        by_shape: dict[tuple[int, int, int], list[tuple[int, list[Row], list[list[int]]]]] = {}
        most = self._row_sizes[-1]
        for request, (texts, marks) in enumerate(zip(candidates, repeats, strict=True)):
            check_number(len(texts), repeats=marks)
            rows, places = self._packed(texts, settings[request])
            for row, members in zip(rows, places, strict=True):
                marked = np.array(marks, np.int32)[members]
                row["decoder_repeats"] = marked[row["decoder_block_ids"] - 1]
            for start in range(0, len(rows), most):
                part = rows[start : start + most]
                shape = (
                    smallest_that_fits(
                        len(sources[request]["encoder_input_tokens"]), self._source_buckets
                    ),
                    smallest_that_fits(
                        max(len(row["decoder_input_tokens"]) for row in part), self._target_buckets
                    ),
                    smallest_that_fits(len(part), self._row_sizes),
                )
                parts = by_shape.setdefault(shape, [])
                parts.append((request, part, places[start : start + most]))
        pending = []
        for (*lengths, num_rows), parts in sorted(by_shape.items(), key=lambda item: item[0]):
            sizes = self._numbers_of_sources(num_rows)
            for start in range(0, len(parts), sizes[-1]):
                batch = parts[start : start + sizes[-1]]
                # Not read back here: the devices go on while Python prepares the next batch.
                values = self._run(
                    [sources[request] for request, *_ in batch],
                    [rows for _, rows, _ in batch],
                    [settings[request] for request, *_ in batch],
                    (*lengths, num_rows, smallest_that_fits(len(batch), sizes)),
                )
                pending.append((batch, values))
        scores = [np.zeros(len(texts), np.float32) for texts in candidates]
        for batch, on_device in pending:
            for (request, rows, places), of_rows in zip(batch, np.asarray(on_device), strict=False):
                for row, members, values in zip(rows, places, of_rows, strict=False):
                    ends = [0] if self._ends else text_ends(row["decoder_block_ids"])
                    scores[request][members] = values[ends]
        return scores

    def _packed(self, texts: Sequence[str], settings: TaskSettings) -> PackedTexts:
        """Rows of the candidates of one request."""
        lengths = self.options.target_length, settings.text_length(self.candidate_length)
        if not self._ends:
            return pack_texts(self.vocabulary, texts, *lengths, self.contrast)
        alone = [pack_texts(self.vocabulary, [text], *lengths).rows[0] for text in texts]
        return PackedTexts(alone, [[place] for place in range(len(texts))])

    def warm_up(self) -> None:
        """Compiles every shape that a request can have."""
        if self._segments:
            self._segments.warm_up(self.variables)
        shapes = itertools.product(self._source_buckets, self._target_buckets, self._row_sizes)
        for *lengths, num_rows in shapes:
            for size in self._numbers_of_sources(num_rows):
                self._run([], [], [], (*lengths, num_rows, size))

    def _numbers_of_sources(self, num_rows: int) -> list[int]:
        """Requests of a batch, ascending, where each has so many rows."""
        return self._runtime.batch_sizes({max(1, size // num_rows) for size in self._sizes})

    def _run(
        self,
        sources: Sequence[Row],
        targets: Sequence[Sequence[Row]],
        settings: Sequence[TaskSettings],
        shape: tuple[int, ...],
    ) -> Array:
        """Starts a batch of requests: float32 `[requests, rows, target]`.

        `shape` is tokens of a history and of a row, rows of a request, requests.
        """
        length, target_length, num_rows, size = shape
        with self._segments_held():
            batch = self._history_batch(sources, settings, length, size)
            batch |= self.task_features(settings, size)
            of_rows = self._target_batch(targets, settings, target_length, num_rows, size)
            batch |= {k: values.reshape(size, num_rows, -1) for k, values in of_rows.items()}
            scores: Array = self._score_batch(self.variables, self._placed(batch))
        return scores

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
        filled = [row for rows in targets for row in (*rows, *[nothing] * (num_rows - len(rows)))]
        batch = pad_batch(filled, names, size * num_rows)
        if self._segments is None:
            return batch
        present = [(k, row) for k, row in enumerate(filled) if row is not nothing]
        of_rows = [task for task, rows in zip(settings, targets, strict=True) for _ in rows]
        slots_of = self._segments.candidates.slots(
            self.variables, [row for _, row in present], of_rows
        )
        slots = np.zeros((size * num_rows, length), np.int32)
        visible = np.zeros(slots.shape, bool)
        for (k, _), of_row in zip(present, slots_of, strict=True):
            place = slice(length - len(of_row), None) if self._ends else slice(len(of_row))
            slots[k, place], visible[k, place] = of_row, True
        if not self._ends:
            return batch | {"candidate_slots": slots}
        # A row is one candidate, and its number one.
        others = self.decoder_features[len(CandidateScorer.decoder_features) :]
        marks = {name: batch[name][:, :1] for name in others}
        return {"candidate_slots": slots, "candidate_visible": visible} | marks


def _of_rows(features: Mapping[str, Array]) -> dict[str, Array]:
    """Features of rows `[sources, rows, length]` and of tasks, `[sources * rows, ...]`."""
    of_rows = {name: value for name, value in features.items() if value.ndim == 3}
    shape = next(iter(of_rows.values())).shape[:2]
    for name in _OF_TASK:
        if name in features:
            value = features[name]
            of_rows[name] = jnp.broadcast_to(value[:, None], (*shape, value.shape[1]))
    return {name: value.reshape(-1, value.shape[2]) for name, value in of_rows.items()}


class Scorer(CandidateScorer):
    """Probability of the positive classes for requests in text.

    The settings of a task name its positive classes and how often training saw each negative
    (`TaskSettings.sampling_rates`), by which probabilities are corrected.

    Raises:
      ConfigError: the model has no classes, or lengths that do not fit together.
    """

    needed_part = "classes"
    program_name = "score"
    decoder_features = (*CandidateScorer.decoder_features, "decoder_repeats")
    read = staticmethod(read_probability)

    def task_features(self, settings: Sequence[TaskSettings], size: int) -> dict[str, np.ndarray]:
        capacity = self.model.config.prompts.num_options
        positive = np.zeros((size, capacity), np.int32)
        rates = np.ones((size, 2), np.float32)
        for row, task in enumerate(settings):
            chosen = chosen_classes(task.positive_classes, task.num_options or capacity)
            positive[row, : len(chosen)] = chosen
            rates[row] = task.sampling_rates
        features = {"positive_classes": positive, "sampling_rates": rates}
        exits = any(task.exits is not None for task in self.options.tasks.values())
        # At its end alone a candidate passes a few layers: there is nothing to leave early.
        if self.options.early_exit and exits and not self._ends:
            last = ExitSettings(NEVER, self.model.config.num_exits)
            taken = [task.exits or last for task in settings] + [last] * (size - len(settings))
            thresholds = np.array([exit_.threshold for exit_ in taken], np.float32)
            features["exit_threshold"] = thresholds[:, None]
            features["exit_depth"] = np.array([e.depth for e in taken], np.int32)[:, None]
        return features


def contrast_scores(
    model: M6Rec, variables: Variables, hidden: Array, features: Mapping[str, Array]
) -> Array:
    """`Read`: log odds of the target tokens against those that they are compared with, in nats.

    They mean something where a text's block ends, in rows of `text.labels.Contrast.lay_out`.
    """
    logits = model.apply(variables, hidden, method=model.token_logits)
    positive = target_logits(logits, features["decoder_target_tokens"])
    return positive - target_logits(logits, features["decoder_contrast_tokens"])


class LikelihoodScorer(CandidateScorer):
    """Says by how much one of two labels in words is likelier for each candidate, in nats.

    No head is needed, and nothing is trained for the task.

    Args:
      model, variables, vocabulary, options: as `Engine`.
      contrast: the labels.

    Raises:
      ConfigError: lengths that do not fit together, or a model that only scores.
    """

    # A job beside others: few programs, for some padding.
    row_growth = 8
    program_name = "likelihood"
    read = staticmethod(contrast_scores)
    decoder_features = (
        *CandidateScorer.decoder_features,
        "decoder_target_tokens",
        "decoder_contrast_tokens",
    )

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        options: EngineOptions,
        contrast: Contrast,
    ) -> None:
        if model.config.cross_attention_at != "all":
            raise ConfigError(
                "this model was built with ModelConfig.cross_attention_at = 'ends': its words do "
                "not see the history, so their likelihood says nothing of the user"
            )
        super().__init__(model, variables, vocabulary, options)
        self.contrast = contrast

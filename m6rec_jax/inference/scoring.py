"""Scores candidates for users: the probability that a user likes, clicks or buys (paper section 2).

    scorer = Scorer(bundle.model, bundle.variables, bundle.vocabulary, source_length=256, ...)
    scorer.score_requests([history], [candidates])      # text in, one probability per candidate out

A history is encoded once, however many candidates it has; candidates are packed into decoder rows.
Shapes come from a few buckets, so a new request compiles nothing once each bucket has been seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.inference.candidate_rows import pack_texts, text_ends
from m6rec_jax.inference.runtime import Runtime, checked_buckets, in_buckets
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.tables.negatives import corrected_probability
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array
Variables = Mapping[str, Any]

DEFAULT_BATCH_SIZES = (1, 8, 32)


def class_log_probabilities(
    model: M6Rec, variables: Variables, features: Mapping[str, Array]
) -> Array:
    """Log probability of every class at every decoder position, `[batch, target, classes]`.

    Only positions whose input token is `[EOS]` mean anything. For use inside jit.
    """
    outputs = model.apply(variables, features)
    logits = model.apply(
        variables, outputs.hidden, features["task_ids"], method=model.option_logits
    )
    return jax.nn.log_softmax(logits, axis=-1)


def positive_probability(
    log_probabilities: jax.Array, positive_classes: tuple[int, ...]
) -> jax.Array:
    """Sum of the positive classes' probabilities, `[..., classes]` to `[...]`.

    With two classes that is class 1. With one class per rating value it is, say, 4 and 5 stars, so
    that richer labels than yes and no can be trained on.

    Raises:
      ConfigError: a class that the head does not have, or no class or all of them.
    """
    num_classes = log_probabilities.shape[-1]
    chosen = sorted(set(positive_classes))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_classes or len(chosen) == num_classes:
        raise ConfigError(
            f"positive_classes = {tuple(positive_classes)} must be some, but not all, of the "
            f"classes 0 to {num_classes - 1} (PromptConfig.num_options = {num_classes})"
        )
    return jnp.exp(jax.nn.logsumexp(log_probabilities[..., jnp.asarray(chosen)], axis=-1))


@gin.configurable(denylist=["model", "variables", "vocabulary", "mesh"])
class Scorer:
    """Probability of the positive classes for rows or for requests in text.

    Args:
      model: with an option or linear head.
      variables: its parameters and prompts; may be replaced between calls.
      vocabulary: the one it was trained with.
      source_length: most tokens of a history, S; older behaviours are dropped as in training.
      target_length: most tokens of a decoder row, T.
      task_id: row of the prompt bank, for rows that name none.
      positive_classes: classes whose probabilities are added up.
      sampling_rate: share of the negatives that training saw, see
        `tables.negatives.corrected_probability`; 1 where none were sampled.
      candidate_length: most tokens of a candidate, `[BOS]` and `[EOS]` included; None: T.
      batch_sizes: numbers of rows to pad to, ascending.
      source_buckets, target_buckets: lengths to pad to; None: S, S/2, S/4 and T, T/2, T/4.
      mesh: devices to spread rows over; None: the default device.
      rules: logical-axis rules, with a mesh.

    Raises:
      ConfigError: the model has no head, or lengths that do not fit together.
    """

    def __init__(
        self,
        model: M6Rec,
        variables: Variables,
        vocabulary: Vocabulary,
        *,
        source_length: int,
        target_length: int,
        task_id: int = 0,
        positive_classes: tuple[int, ...] = (1,),
        sampling_rate: float = 1.0,
        candidate_length: int | None = None,
        batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
        source_buckets: Sequence[int] | None = None,
        target_buckets: Sequence[int] | None = None,
        mesh: Mesh | None = None,
        rules: LogicalRules = (),
    ) -> None:
        if model.config.prompts.head == "none":
            raise ConfigError(
                "scoring needs a head: this model was built with PromptConfig.head = 'none'. Was "
                "it tuned for scoring?"
            )
        self.model, self.variables, self.vocabulary = model, variables, vocabulary
        self.source_length, self.target_length = source_length, target_length
        self.candidate_length = min(candidate_length or target_length, target_length)
        self._task_id, self._sampling_rate = task_id, sampling_rate
        self._runtime = Runtime(mesh, rules)
        multiple = self._runtime.batch_multiple
        self._batch_sizes = sorted({-(-size // multiple) * multiple for size in batch_sizes})
        self._source_buckets = checked_buckets(
            "Scorer.source_buckets", source_buckets, source_length
        )
        self._target_buckets = checked_buckets(
            "Scorer.target_buckets", target_buckets, target_length
        )
        self.num_compilations = 0

        def encode(variables: Variables, features: Mapping[str, Array]) -> Encoded:
            self.num_compilations += 1
            encoded: Encoded = model.apply(
                variables,
                features["encoder_input_tokens"],
                features["encoder_block_ids"],
                features["task_ids"],
                method=model.encode,
            )
            return encoded

        def decode(variables: Variables, encoded: Encoded, features: Mapping[str, Array]) -> Array:
            self.num_compilations += 1
            source = features["source_of_row"][:, 0]
            of_rows = Encoded(encoded.hidden[source], encoded.mask[source])
            blocks, task_ids = features["decoder_block_ids"], features["task_ids"]
            tokens = features["decoder_input_tokens"]
            hidden = model.apply(variables, of_rows, tokens, blocks, task_ids, method=model.decode)
            logits = model.apply(variables, hidden, task_ids, method=model.option_logits)
            log_probabilities = jax.nn.log_softmax(logits, axis=-1)
            return positive_probability(log_probabilities, tuple(positive_classes))

        self._encode, self._decode = self._runtime.jit(encode), self._runtime.jit(decode)

    def score(self, rows_to_score: Sequence[Row]) -> list[np.ndarray]:
        """Scores rows laid out by `m6rec_jax.text.rows` (`source_row | packed_candidates`).

        Args:
          rows_to_score: each with the encoder's features, `decoder_input_tokens` and
            `decoder_block_ids`, at most S and T long; optionally `task_ids` `[1]`.

        Returns:
          For each row the probability of each of its candidates, float32 `[candidates]`.

        Raises:
          DataError: a row lacks a feature or is too long.
        """
        return self._score(rows_to_score, rows_to_score, np.arange(len(rows_to_score)))

    def score_requests(
        self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Scores candidates given as text, for histories given as text segments.

        Args:
          histories: per request, segments as `DatasetTemplate.history_segments` gives them.
          candidates: per request, any number of texts as `DatasetTemplate.candidate` gives them.

        Returns:
          For each request the probability of each candidate, float32 `[candidates]`, in order.

        Raises:
          DataError: another number of histories than of candidate lists, or a text without words.
        """
        if len(histories) != len(candidates):
            raise DataError(f"{len(histories)} histories for {len(candidates)} lists of candidates")
        sources = [
            rows.source_row(self.vocabulary, segments, self.source_length) for segments in histories
        ]
        targets: list[Row] = []
        source_of: list[int] = []
        places: list[list[int]] = []
        for request, texts in enumerate(candidates):
            packed = pack_texts(self.vocabulary, texts, self.target_length, self.candidate_length)
            targets += packed.rows
            places += packed.places
            source_of += [request] * len(packed.rows)
        scored = self._score(sources, targets, np.asarray(source_of, np.int64))
        results = [np.zeros(len(texts), np.float32) for texts in candidates]
        for request, chosen, probabilities in zip(source_of, places, scored, strict=True):
            results[request][chosen] = probabilities
        return results

    def warm_up(self) -> int:
        """Compiles every shape that a request can have; returns how many programs there are."""
        for source_bucket in self._source_buckets:
            for size in self._batch_sizes:
                encoded = self._encode_batch([], source_bucket, size)
                for target_bucket in self._target_buckets:
                    for target_size in self._batch_sizes:
                        self._decode_batch(encoded, [], [], target_bucket, target_size)
        return self.num_compilations

    def _score(
        self, sources: Sequence[Row], targets: Sequence[Row], source_of: np.ndarray
    ) -> list[np.ndarray]:
        pending: list[tuple[list[int], Array]] = []
        targets_of: dict[int, list[int]] = {}
        for target, source in enumerate(source_of.tolist()):
            targets_of.setdefault(source, []).append(target)
        source_lengths = [_length(row, "encoder_input_tokens") for row in sources]
        target_lengths = [_length(row, "decoder_input_tokens") for row in targets]
        for bucket, size, members in in_buckets(
            source_lengths, self._source_buckets, self._batch_sizes
        ):
            encoded = self._encode_batch([sources[i] for i in members], bucket, size)
            own = [(k, t) for k, i in enumerate(members) for t in targets_of.get(i, [])]
            for target_bucket, target_size, chosen in in_buckets(
                [target_lengths[t] for _, t in own], self._target_buckets, self._batch_sizes
            ):
                places = [own[j][0] for j in chosen]
                indices = [own[j][1] for j in chosen]
                part = [targets[t] for t in indices]
                # Not read back here: the devices go on while Python prepares the next batch.
                probabilities = self._decode_batch(
                    encoded, part, places, target_bucket, target_size
                )
                pending.append((indices, probabilities))
        results: list[np.ndarray] = [np.zeros(0, np.float32)] * len(targets)
        for indices, probabilities in pending:
            values = corrected_probability(np.asarray(probabilities), self._sampling_rate)
            for k, t in enumerate(indices):
                ends = text_ends(targets[t]["decoder_block_ids"])
                results[t] = values[k, ends].astype(np.float32)
        return results

    def _encode_batch(self, part: Sequence[Row], length: int, size: int) -> Encoded:
        lengths = {"encoder_input_tokens": length, "encoder_block_ids": length, "task_ids": 1}
        batch = rows.pad_batch([self._with_task(row) for row in part], lengths, size)
        encoded: Encoded = self._encode(self.variables, self._runtime.place(batch))
        return encoded

    def _decode_batch(
        self, encoded: Encoded, part: Sequence[Row], places: Sequence[int], length: int, size: int
    ) -> Array:
        lengths = {"decoder_input_tokens": length, "decoder_block_ids": length, "task_ids": 1}
        batch = rows.pad_batch([self._with_task(row) for row in part], lengths, size)
        batch["source_of_row"] = np.zeros((size, 1), np.int32)
        batch["source_of_row"][: len(places), 0] = places
        probabilities: Array = self._decode(self.variables, encoded, self._runtime.place(batch))
        return probabilities

    def _with_task(self, row: Row) -> Row:
        return row if "task_ids" in row else row | {"task_ids": np.array([self._task_id])}


def _length(row: Row, name: str) -> int:
    if name not in row:
        raise DataError(f"a row to score lacks '{name}'; it has {', '.join(row)}")
    return len(row[name])

"""A number for each of many candidates: histories are encoded once, candidates packed into rows."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from m6rec_jax.engine.candidate_rows import PackedTexts, pack_texts, text_ends
from m6rec_jax.engine.early_exit import exiting_scores
from m6rec_jax.engine.engine import Engine, EngineOptions, Variables
from m6rec_jax.engine.runtime import in_buckets
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import DataError
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import Vocabulary

Array = jax.Array


class CandidateScorer(Engine, abc.ABC):
    """A number for every candidate of a history; subclasses say what it means."""

    # Decoder features that the jitted function sees.
    decoder_features: tuple[str, ...] = ("decoder_input_tokens", "decoder_block_ids")

    def __init__(
        self, model: M6Rec, variables: Variables, vocabulary: Vocabulary, options: EngineOptions
    ) -> None:
        super().__init__(model, variables, vocabulary, options)

        def encode(variables: Variables, features: Mapping[str, Array]) -> Encoded:
            encoded: Encoded = model.apply(
                variables,
                features["encoder_input_tokens"],
                features["encoder_block_ids"],
                features["task_ids"],
                method=model.encode,
            )
            return encoded

        def decode(variables: Variables, encoded: Encoded, features: Mapping[str, Array]) -> Array:
            source = features["source_of_row"][:, 0]
            of_rows = Encoded(encoded.hidden[source], encoded.mask[source])
            blocks, task_ids = features["decoder_block_ids"], features["task_ids"]
            tokens = features["decoder_input_tokens"]
            if self._exits:
                return exiting_scores(
                    model, variables, of_rows, features, lambda x: self.read(variables, x, features)
                ).values
            hidden = model.apply(variables, of_rows, tokens, blocks, task_ids, method=model.decode)
            return self.read(variables, hidden, features)

        self._encode, self._decode = self._jit(encode), self._jit(decode)

    @abc.abstractmethod
    def read(self, variables: Variables, hidden: Array, features: Mapping[str, Array]) -> Array:
        """Reads a number off every decoder position; those at `[EOS]` are kept. Inside jit.

        Args:
          variables: of the model.
          hidden: final states, `[rows, target, embed]`.
          features: `decoder_features`, `task_ids` and those of `task_features`.

        Returns:
          float32 `[rows, target]`.
        """

    def pack(self, texts: Sequence[str], candidate_length: int) -> PackedTexts:
        """Lays out the candidates of one request, each of so many tokens at most."""
        return pack_texts(self.vocabulary, texts, self.options.target_length, candidate_length)

    def task_features(self, settings: Sequence[TaskSettings], size: int) -> dict[str, np.ndarray]:
        """What `read` must know of each row's task: arrays `[size, n]`, also where rows end."""
        del settings, size
        return {}

    def finish(self, values: np.ndarray, settings: TaskSettings) -> np.ndarray:
        """What becomes of the numbers read on the device for a row of that task."""
        del settings
        return values

    def score_requests(
        self,
        histories: Sequence[Sequence[str]],
        candidates: Sequence[Sequence[str]],
        tasks: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Scores candidates given as text, for histories given as text segments.

        Args:
          histories: per request, segments as `DatasetTemplate.history_segments` gives them.
          candidates: per request, any number of texts as `DatasetTemplate.candidate` gives them.
          tasks: the task of each request; None: the default one.

        Returns:
          For each request the score of each candidate, float32 `[candidates]`, in order.

        Raises:
          DataError: another number of histories than of candidate lists or of tasks, or a text
            without words.
          ConfigError: no such task, or one without what is needed.
        """
        if len(histories) != len(candidates):
            raise DataError(f"{len(histories)} histories for {len(candidates)} lists of candidates")
        variables, settings = self._tasks.with_variables(self.variables, tasks, len(histories))
        sources = list(map(self._source_row, histories, settings))
        targets: list[Row] = []
        source_of: list[int] = []
        indices: list[list[int]] = []
        for request, (texts, own) in enumerate(zip(candidates, settings, strict=True)):
            packed = self.pack(texts, own.text_length(self.candidate_length))
            targets += packed.rows
            indices += packed.indices
            source_of += [request] * len(packed.rows)
        scored = self._score(variables, sources, targets, source_of, settings)
        results = [np.zeros(len(texts), np.float32) for texts in candidates]
        for request, chosen, values in zip(source_of, indices, scored, strict=True):
            results[request][chosen] = values
        return results

    def warm_up(self) -> int:
        """Compiles every shape that a request can have; returns how many programs there are."""
        variables = dict(self.variables)
        for source_bucket in self._source_buckets:
            for size in self._batch_sizes:
                encoded = self._encode_batch(variables, [], [], source_bucket, size)
                for target_bucket in self._target_buckets:
                    for target_size in self._batch_sizes:
                        self._decode_batch(
                            variables, encoded, [], [], [], target_bucket, target_size
                        )
        return self.num_compilations

    def _score(
        self,
        variables: Variables,
        sources: Sequence[Row],
        targets: Sequence[Row],
        source_of: Sequence[int],
        settings: Sequence[TaskSettings],
    ) -> list[np.ndarray]:
        """Scores of each target's candidates; `settings` are the sources'."""
        pending: list[tuple[list[int], Array]] = []
        targets_of: dict[int, list[int]] = {}
        for target, source in enumerate(source_of):
            targets_of.setdefault(source, []).append(target)
        source_lengths = [len(row["encoder_input_tokens"]) for row in sources]
        for bucket, size, members in in_buckets(
            source_lengths, self._source_buckets, self._batch_sizes
        ):
            task_ids = [settings[i].task_id for i in members]
            part = [sources[i] for i in members]
            encoded = self._encode_batch(variables, part, task_ids, bucket, size)
            own = [(k, t) for k, i in enumerate(members) for t in targets_of.get(i, [])]
            for target_bucket, target_size, chosen in in_buckets(
                [len(targets[t]["decoder_input_tokens"]) for _, t in own],
                self._target_buckets,
                self._batch_sizes,
            ):
                source_rows = [own[j][0] for j in chosen]
                indices = [own[j][1] for j in chosen]
                part = [targets[t] for t in indices]
                asked = [settings[source_of[t]] for t in indices]
                # Not read back here: the devices go on while Python prepares the next batch.
                found = self._decode_batch(
                    variables, encoded, part, source_rows, asked, target_bucket, target_size
                )
                pending.append((indices, found))
        results: list[np.ndarray] = [np.zeros(0, np.float32)] * len(targets)
        for indices, found in pending:
            values = np.asarray(found)
            for k, t in enumerate(indices):
                ends = text_ends(targets[t]["decoder_block_ids"])
                finished = self.finish(values[k, ends], settings[source_of[t]])
                results[t] = finished.astype(np.float32)
        return results

    def _encode_batch(
        self,
        variables: Variables,
        part: Sequence[Row],
        task_ids: Sequence[int],
        length: int,
        size: int,
    ) -> Encoded:
        batch = self._source_batch(part, task_ids, length, size)
        encoded: Encoded = self._encode(variables, self._runtime.place_shared(batch))
        return encoded

    def _decode_batch(
        self,
        variables: Variables,
        encoded: Encoded,
        part: Sequence[Row],
        source_rows: Sequence[int],
        settings: Sequence[TaskSettings],
        length: int,
        size: int,
    ) -> Array:
        batch = rows.pad_batch(part, dict.fromkeys(self.decoder_features, length), size)
        batch |= self.task_features(settings, size) | self._exit_features(settings, size)
        batch |= {name: np.zeros((size, 1), np.int32) for name in ("task_ids", "source_of_row")}
        batch["task_ids"][: len(part), 0] = [own.task_id for own in settings]
        batch["source_of_row"][: len(part), 0] = source_rows
        found: Array = self._decode(variables, encoded, self._runtime.place_shared(batch))
        return found

"""Tasks that a user registers with seqio, from any source, as the model reads them.

`readable` gives a task or mixture whose rows have the features of `pipeline.features`: rows of
'inputs' and 'targets' are laid out by `text_to_text_rows`, after the task's own preprocessors.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline import locations
from m6rec_jax.pipeline.features import TASK_FEATURES
from m6rec_jax.pipeline.preprocessors import text_to_text_rows
from m6rec_jax.pipeline.source import PreparedSource, SeqioVocabulary, steady_options

logger = logging.getLogger(__name__)

Example = dict[str, Any]
Lengths = Mapping[str, int]
TEXTS = ("inputs", "targets")


class ShardedSource(seqio.DataSource):
    """Another source, cut into any number of shards; each row is in exactly one of them.

    Shards are files where there are enough. Otherwise each reads all rows in their order and keeps
    every n-th, so that it does not depend on how a source shuffles: seqio cuts the shuffled rows,
    and with a seed for each shard some rows would be in several and others in none.
    """

    supports_arbitrary_sharding = True

    def __init__(self, source: seqio.DataSource) -> None:
        super().__init__(
            splits=(),
            caching_permitted=False,
            performs_internal_shuffling=source.performs_internal_shuffling,
        )
        self._source = source

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self._source.splits)

    def num_input_examples(self, split: str) -> int | None:
        """Rows before preprocessing; None: the source does not say."""
        return self._source.num_input_examples(split)

    def list_shards(self, split: str) -> Sequence[str]:
        return self._source.list_shards(split)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """The rows of a shard; raises DataError where the source cannot be opened."""
        source, number = self._source, shard_info.num_shards if shard_info else 1
        try:
            files = len(source.list_shards(split))
            if source.supports_arbitrary_sharding or files >= max(number, 2):
                return source.get_dataset(
                    split=split, shuffle=shuffle, seed=seed, shard_info=shard_info
                )
            rows = source.get_dataset(split=split, shuffle=False)
        except (ValueError, OSError, tf.errors.OpError) as error:
            raise DataError(f"split '{split}' of {source} cannot be read: {error}") from error
        return rows if shard_info is None else rows.shard(number, shard_info.index)


class TextToTextTask(seqio.Task):
    """A task of 'inputs' and 'targets' whose rows have the features of `pipeline.features`.

    Attributes:
      original: as it was registered.
    """

    def __init__(self, original: seqio.Task) -> None:
        self.original = original
        inputs, targets = (original.output_features[name].vocabulary for name in TEXTS)
        if inputs != targets:  # as seqio compares them, which reads no file
            raise ConfigError(
                f"the 'inputs' and 'targets' of task '{original.name}' have two vocabularies; the "
                "model has one"
            )
        vocabulary = _readable_vocabulary(targets, original.name)
        self._rows = functools.partial(
            text_to_text_rows, vocabulary=vocabulary, task_name=original.name
        )
        super().__init__(
            original.name,
            ShardedSource(original.source),
            task_features(vocabulary),
            shuffle_buffer_size=original.shuffle_buffer_size,
        )

    def preprocess_precache(
        self, dataset: tf.data.Dataset, seed: int | None = None
    ) -> tf.data.Dataset:
        return self.original.preprocess_precache(dataset, seed)

    def preprocess_postcache(
        self, dataset: tf.data.Dataset, sequence_length: Lengths | None, seed: int | None = None
    ) -> tf.data.Dataset:
        rows = self.original.preprocess_postcache(dataset, sequence_length, seed)
        return self._rows(rows, sequence_length or {})

    def examples(self, split: str, lengths: Lengths, number: int) -> list[Example]:
        """The first examples of a split after the task's own preprocessors, in numpy."""
        dataset = self.original.replace(source=self.source).get_dataset(
            dict(lengths), split, shuffle=False, seed=0, num_epochs=1, try_in_mem_cache=False
        )
        return list(tfds.as_numpy(dataset.take(number).with_options(steady_options())))

    def metrics(
        self,
        rows: Sequence[Example],
        tokens: np.ndarray,
        log_probabilities: np.ndarray,
        scores: np.ndarray,
    ) -> dict[str, float]:
        """What `metric_fns` and `metric_objs` give, as `seqio.Evaluator` calls them.

        Args:
          rows: `[n]` of `examples`.
          tokens, log_probabilities: what was generated, int32 `[n, target]`, and its `[n]`, the
            `aux_values["scores"]` of metrics that take them.
          scores: `[n]`, log likelihoods of the targets.

        Raises:
          ConfigError: a metric of intermediates, or two of one name.
        """
        kinds = seqio.metrics.ModelOutputType
        outputs: Mapping[Any, Any] = {
            kinds.PREDICTION: tokens,
            kinds.PREDICTION_WITH_AUX: (tokens, {"scores": log_probabilities}),
            kinds.SCORE: scores,
        }
        features, values = self.original.output_features, dict[str, float]()
        for metric in self.original.metric_objs:
            if metric.model_output_type not in outputs:
                raise ConfigError(
                    f"a metric of task '{self.name}' takes {metric.model_output_type.name}; there "
                    f"are {', '.join(kind.name for kind in outputs)}"
                )
            made = metric.from_model_output(rows, outputs[metric.model_output_type], features)
            collects = isinstance(made, seqio.metrics.CollectingMetric)
            computed = made.actual_compute(rows, features)[0] if collects else made.compute()
            if twice := values.keys() & computed.keys():
                raise ConfigError(f"task '{self.name}' has two metrics called '{min(twice)}'")
            for name, value in computed.items():
                value = value.value if isinstance(value, seqio.metrics.Scalar) else value
                if isinstance(value, seqio.metrics.MetricValue):
                    kind = type(value).__name__
                    logger.warning("'%s' of '%s' is not shown: a %s", name, self.name, kind)
                else:
                    values[name] = float(value)
        return values


def task_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """The `output_features` of tasks whose rows have the features of `pipeline.features`."""
    return {
        name: seqio.Feature(vocabulary, add_eos=False, dtype=tf.as_dtype(feature.dtype))
        for name, feature in TASK_FEATURES.items()
    }


def readable(provider: seqio.Task | seqio.Mixture) -> seqio.Task | seqio.Mixture:
    """A task, or a mixture at its rates, whose rows the model can read.

    Raises ConfigError for features that are neither 'inputs' and 'targets' nor those of
    `pipeline.features`, or a vocabulary that is none of SentencePiece.
    """
    if isinstance(provider, seqio.Task):
        return _readable_task(provider)

    def rate(original: seqio.Task, _: seqio.Task) -> float:
        return provider.get_rate(original)

    tasks = [(_readable_task(task), functools.partial(rate, task)) for task in provider.tasks]
    return seqio.Mixture(provider.name, tasks, sample_fn=provider._sample_fn)


def _readable_task(task: seqio.Task) -> seqio.Task:
    features = set(task.output_features)
    if set(TASK_FEATURES) <= features:
        is_sharded = isinstance(task.source, PreparedSource | ShardedSource)
        return task if is_sharded else task.replace(source=ShardedSource(task.source))
    if set(TEXTS) <= features:
        return TextToTextTask(task)
    raise ConfigError(
        f"the output_features of task '{task.name}' are {', '.join(sorted(features))}; the model "
        "reads 'inputs' and 'targets' (docs/seqio_tasks.md)"
    )


def _readable_vocabulary(vocabulary: seqio.Vocabulary, task: str) -> SeqioVocabulary:
    if isinstance(vocabulary, SeqioVocabulary):
        return vocabulary
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        path = vocabulary.sentencepiece_model_file
        return SeqioVocabulary(functools.partial(locations.read_vocabulary, path))
    raise ConfigError(
        f"the vocabulary of task '{task}' is a {type(vocabulary).__name__}; the model reads "
        "seqio.SentencePieceVocabulary (docs/seqio_tasks.md)"
    )

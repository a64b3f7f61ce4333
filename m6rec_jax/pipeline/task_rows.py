"""Rows of registered tasks and mixtures: which there are, how many, and reading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.feature_converter import M6RecFeatureConverter
from m6rec_jax.pipeline.row_layout import training_rows
from m6rec_jax.pipeline.seqio_tasks import readable
from m6rec_jax.pipeline.source import PreparedSource, SeqioVocabulary, steady_options
from m6rec_jax.text.layout import Row as Batch
from m6rec_jax.text.vocabulary import Vocabulary


def find_provider(mixture_or_task_name: str) -> seqio.Task | seqio.Mixture:
    """The registered task or mixture, with rows that the model reads. Raises ConfigError where
    there is none, or as `seqio_tasks.readable`.
    """
    try:
        return readable(seqio.get_mixture_or_task(mixture_or_task_name))
    except ValueError as error:
        names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
        raise ConfigError(
            f"no seqio task or mixture is called '{mixture_or_task_name}'. Registered: "
            f"{', '.join(names) or 'none'}. Is the module that registers it imported "
            "(a line such as import tasks.movielens in the gin file)?"
        ) from error


def tasks_of(mixture_or_task_name: str) -> list[str]:
    """Names of a mixture's tasks (or of the task itself); raises ConfigError as `find_provider`."""
    return [task.name for task in seqio.get_subtasks(find_provider(mixture_or_task_name))]


def task_vocabulary(mixture_or_task_name: str) -> Vocabulary:
    """The vocabulary of a task or mixture; raises ConfigError where it has no text."""
    features = find_provider(mixture_or_task_name).output_features
    vocabulary = features["encoder_input_tokens"].vocabulary
    if not isinstance(vocabulary, SeqioVocabulary):
        kind = type(vocabulary).__name__
        raise ConfigError(f"the vocabulary of '{mixture_or_task_name}', a {kind}, has no text")
    return vocabulary.text


def tasks_with(provider: seqio.Task | seqio.Mixture, split: str) -> list[seqio.Task]:
    """A mixture's tasks (or the task itself) that have a split; DataError where none has it."""

    tasks = seqio.get_subtasks(provider)
    if with_split := [task for task in tasks if split in task.splits]:
        return with_split
    splits = sorted({name for task in tasks for name in task.splits})
    raise DataError(f"'{provider.name}' has no split '{split}', only {', '.join(splits)}")


def count_rows(
    provider: seqio.Task | seqio.Mixture, lengths: Mapping[str, int], split: str, most: int
) -> dict[str, int]:
    """Number of rows in a split of every task that has it.

    Prepared data say it. Rows of others are read, since preprocessors may drop some or make several
    of one, up to `most` + 1 (0: all). Raises DataError as `tasks_with`, or where a row cannot be
    read.
    """
    counts = {}
    for task in tasks_with(provider, split):
        if isinstance(task.source, PreparedSource):
            counts[task.name] = task.source.num_input_examples(split)
            continue
        rows = task_dataset(task, lengths, split).with_options(steady_options())
        iterator = iter(rows.take(most + 1 if most else -1))
        counts[task.name] = 0
        while next_rows(iterator, end={}):
            counts[task.name] += 1
    return counts


def sample_sizes(per_task: Mapping[str, int], sample: int) -> dict[str, int]:
    """Rows of each task in a sample: their share, at least one; all where `sample` is 0."""
    total = sum(per_task.values())
    if not sample or sample >= total:
        return dict(per_task)
    return {name: min(rows, max(1, rows * sample // total)) for name, rows in per_task.items()}


def task_dataset(
    provider: seqio.Task | seqio.Mixture,
    lengths: Mapping[str, int],
    split: str,
    *,
    seed: int = 0,
    shard_info: seqio.ShardInfo | None = None,
    endless: bool = False,
) -> tf.data.Dataset:
    """Rows of task features: shuffled and `endless`, or once and in order.

    Unlike `seqio.get_dataset` it never caches rows in memory: a cache would be written with every
    iterator state. The seed decides masking, too.
    """
    return provider.get_dataset(
        sequence_length=dict(lengths),
        split=split,
        shuffle=endless,
        seed=seed,
        num_epochs=None if endless else 1,
        shard_info=shard_info,
        try_in_mem_cache=False,
    )


def training_shard(
    provider: seqio.Task | seqio.Mixture,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    *,
    split: str,
    seed: int,
    shard: int,
    num_shards: int,
    pack: bool,
) -> tf.data.Dataset:
    """Endless shuffled batches of one shard, of `batch_size` rows; t5x reads these, too."""
    # One number per (seed, shard): neighbouring seeds would share their map seeds in seqio.
    seed = int(np.random.SeedSequence([seed, shard]).generate_state(1)[0] >> 1)
    info = seqio.ShardInfo(index=shard, num_shards=num_shards)
    with training_rows():
        dataset = task_dataset(
            provider, feature_lengths, split, seed=seed, shard_info=info, endless=True
        )
    dataset = M6RecFeatureConverter(pack=pack)(dataset, feature_lengths)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
    return dataset.with_options(steady_options())


def next_rows(iterator: Iterator[Mapping[str, tf.Tensor]], end: Any = None) -> Batch:
    """The next element of a data set in host memory; at its end `end`, or DataError for None.
    Raises DataError where a row cannot be read or preprocessed, too.
    """
    try:
        return {name: value.numpy() for name, value in next(iterator).items()}
    except StopIteration:
        if end is None:
            raise DataError("the training data ended; a shard may have no rows") from None
        return end
    except tf.errors.OpError as error:
        raise DataError(f"a row could not be read or preprocessed: {error.message}") from error

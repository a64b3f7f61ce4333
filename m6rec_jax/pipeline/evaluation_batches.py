"""Batches for evaluation: one pass over every row of a part, in one shape."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import gin
import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.feature_converter import M6RecFeatureConverter
from m6rec_jax.pipeline.features import COUNT_FEATURES, TASK_FEATURES, feature_lengths
from m6rec_jax.pipeline.seqio_tasks import TextToTextTask
from m6rec_jax.pipeline.source import PreparedSource, steady_options
from m6rec_jax.pipeline.task_rows import (
    Batch,
    count_rows,
    find_provider,
    next_rows,
    require_multiple,
    sample_sizes,
    sampled_indices,
    task_dataset,
)
from m6rec_jax.sharding.processes import sum_over_processes


@gin.configurable
class EvaluationBatches:
    """One pass over a split in batches of one shape; iterating again starts anew.

    Nothing is dropped: the last batch is filled with padding rows, and `example_weights` `[rows]`
    float32 is 1 for real rows and 0 for padding. Each process reads its part of the rows, and all
    yield the same number of batches, of padding where they have no rows left, because jitted steps
    wait for one another. Rows of a mixture's tasks come by turns. Candidates that do not fit into
    one row take several (`preprocessors.scoring_rows`), and then there are more batches than
    `len` says.

    Args:
      mixture_or_task_name, feature_lengths, split: as for `BatchIterator`.
      batch_size: rows of a global batch; a multiple of `process_count`.
      process_index, process_count: of this process.
      limit: stop after so many rows of this process (0: all), of those that are laid out.
      sample: read so many rows in all (0: all), drawn at random once: the same ones at every pass
        and for any number of processes. A mixture's tasks have their share. Of sources other than
        prepared data they are the first ones.

    Attributes:
      available_rows, sampled_rows, read_rows: rows of the split, of the sample, and of a pass,
        which `limit` may shorten; of all processes together.
      are_more: whether there are more available rows than were counted, see `count_rows`.
      num_rows, num_rows_with_dropped_behaviours, num_texts, num_truncated_texts: of this pass and
        process: rows, and those whose history was too long for S; texts in the decoder, such as
        candidates, and those that were cut.

    Raises:
      ConfigError: unknown task, or sizes that do not divide.
      DataError: the data are not prepared, or the split is empty.
    """

    def __init__(
        self,
        mixture_or_task_name: str,
        feature_lengths: Mapping[str, int],
        batch_size: int,
        *,
        split: str = "validation",
        process_index: int = 0,
        process_count: int = 1,
        limit: int = 0,
        sample: int = 0,
    ) -> None:
        require_multiple("the evaluation batch size", batch_size, "process count", process_count)
        self._provider = find_provider(mixture_or_task_name)
        self._lengths = dict(feature_lengths)
        self._rows = batch_size // process_count
        self._split, self._limit = split, limit
        self._shard = seqio.ShardInfo(process_index, process_count) if process_count > 1 else None
        most = sample or limit * process_count
        available = count_rows(self._provider, feature_lengths, split, most)
        self.are_more = bool(most) and any(
            available.get(task.name, 0) > most and not isinstance(task.source, PreparedSource)
            for task in seqio.get_subtasks(self._provider)
        )
        per_task = self._per_task = sample_sizes(available, sample)
        self.available_rows, self.sampled_rows = sum(available.values()), sum(per_task.values())
        self.read_rows = min(self.sampled_rows, limit * process_count or self.sampled_rows)
        if not self.available_rows:
            raise DataError(f"split '{split}' of '{mixture_or_task_name}' has no rows")
        # One of the shards of a task has the largest share.
        largest = sum(-(-rows // process_count) for rows in per_task.values())
        self.num_batches = -(-min(largest, limit or largest) // self._rows)
        self._reset_counts()

    def _reset_counts(self) -> None:
        self.num_rows = self.num_rows_with_dropped_behaviours = 0
        self.num_texts = self.num_truncated_texts = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        dataset = M6RecFeatureConverter()(self._all_rows(), self._lengths)
        if self._limit:
            dataset = dataset.take(self._limit)
        dataset = dataset.batch(self._rows).prefetch(2).with_options(steady_options())
        iterator = iter(dataset)
        self._reset_counts()
        for number in itertools.count():
            part = next_rows(iterator, end={})
            if number >= self.num_batches and not self._any_process(bool(part)):
                break
            yield self._filled(part)
        # With several processes the sources decide how many rows are this one's.
        counts_all = not self._limit and self._shard is None
        if counts_all and self.num_rows < sum(self._per_task.values()):
            raise DataError(
                f"'{self._provider.name}' yields fewer rows than its {self._split} data have; "
                "evaluation needs preprocessors that make at least one row of each"
            )

    def _any_process(self, has_rows: bool) -> bool:
        return has_rows if self._shard is None else sum_over_processes(has_rows)[0] > 0

    def _all_rows(self) -> tf.data.Dataset:
        """Rows of all tasks that have some, by turns until each of them is at its end.

        A mixture's own data set would end with the first task that does.
        """
        parts = [
            self._rows_of(task).map(lambda row: {name: row[name] for name in TASK_FEATURES})
            for task in seqio.get_subtasks(self._provider)
            if self._per_task.get(task.name)
        ]
        turns = tf.data.Dataset.range(len(parts)).repeat()
        return tf.data.Dataset.choose_from_datasets(parts, turns, stop_on_empty_dataset=False)

    def _rows_of(self, task: seqio.Task) -> tf.data.Dataset:
        """This process's rows of the sample."""
        rows = self._per_task[task.name]
        if isinstance(task.source, PreparedSource):
            available = task.source.num_input_examples(self._split)
            if rows < available:
                task = task.replace(source=task.source.sampled(sampled_indices(available, rows)))
            return task_dataset(task, self._lengths, self._split, shard_info=self._shard)
        numbered = task_dataset(task, self._lengths, self._split).take(rows).enumerate()
        if self._shard is not None:
            numbered = numbered.shard(self._shard.num_shards, self._shard.index)
        if not isinstance(task, TextToTextTask):
            return numbered.map(lambda _, row: row)
        # A row of no user has its number instead: it puts the rows of processes in order.
        return numbered.map(lambda number, row: row | {"user_ids": tf.cast(number, tf.int32)[None]})

    def _filled(self, part: Batch) -> Batch:
        real = len(part["num_dropped"]) if part else 0
        lengths = feature_lengths(self._lengths)
        batch: Batch = {}
        for name, feature in TASK_FEATURES.items():
            batch[name] = np.full((self._rows, lengths[name]), feature.padding, feature.dtype)
            if part:
                batch[name][:real] = part[name]
        self.num_rows += real
        counts = {name: batch.pop(name)[:real] for name in COUNT_FEATURES}
        self.num_rows_with_dropped_behaviours += int((counts["num_dropped"] > 0).sum())
        self.num_truncated_texts += int(counts["num_truncated"].sum())
        self.num_texts += int(batch["decoder_block_ids"][:real].max(axis=1, initial=0).sum())
        batch["example_weights"] = (np.arange(self._rows) < real).astype(np.float32)
        return batch

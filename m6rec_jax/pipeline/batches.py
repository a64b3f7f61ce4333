"""Batches of model features: endless, sharded and resumable for training, or one pass over a split.

The training data of a run are cut into a fixed number of shards, each with its own tf.data
pipeline, seed and saved state. A global batch is the rows of all shards, so its rows do not depend
on how many processes load it: process p of P loads shards [p * S / P, (p + 1) * S / P). The mesh
decides in which order the processes' rows stand (`sharding.place_batch`). Shards are read in this
process, one after another, or by input processes that share them (`input_processes`).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import gin
import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.pipeline.feature_converter import M6RecFeatureConverter
from m6rec_jax.pipeline.features import COUNT_FEATURES, TASK_FEATURES, feature_lengths
from m6rec_jax.pipeline.input_processes import InputProcess
from m6rec_jax.pipeline.registration import task_info
from m6rec_jax.pipeline.seqio_tasks import TextToTextTask
from m6rec_jax.pipeline.shards import LocalShards, State
from m6rec_jax.pipeline.source import PreparedSource, steady_options
from m6rec_jax.pipeline.task_rows import (
    Batch,
    count_rows,
    find_provider,
    next_rows,
    sample_sizes,
    task_dataset,
    tasks_with,
)
from m6rec_jax.sharding.processes import sum_over_processes
from m6rec_jax.text.layout import pad_batch


@gin.configurable
class BatchIterator(Iterator[Batch]):
    """Endless training batches of a seqio task or mixture, deterministic and resumable.

    Every epoch of a shard holds each of its rows exactly once, in another order.

    Args:
      mixture_or_task_name: as registered in `tasks/`.
      feature_lengths: `{"inputs": S, "targets": T}`.
      batch_size: rows of a global batch, over all processes; a multiple of `num_shards`.
      split: seqio split.
      seed: decides shuffling, mixing and masking. Equal seeds give equal batches.
      num_shards: S, fixed for the life of a run; a multiple of `process_count`. More shards allow
        more loading processes later, but each one costs threads and a state.
      process_index, process_count: p and P, of this process.
      pack: put several documents into one row (pretraining); batches then also carry
        `encoder_segment_ids` and `decoder_segment_ids`.
      num_input_processes: processes that read and tokenise this process's shards; 0: it does so
        itself, on one core. At most one per shard is used. It changes no batch and no state.

    Attributes:
      num_batches: batches so far, including those before a resumption.

    Raises:
      ConfigError: unknown task, or sizes that do not divide.
      DataError: the data are not prepared, or a shard has no rows.
    """

    def __init__(
        self,
        mixture_or_task_name: str,
        feature_lengths: Mapping[str, int],
        batch_size: int,
        *,
        split: str = "train",
        seed: int = 0,
        num_shards: int = 4,
        process_index: int = 0,
        process_count: int = 1,
        pack: bool = False,
        num_input_processes: int = 0,
    ) -> None:
        _require_multiple("BATCH_SIZE", batch_size, "BatchIterator.num_shards", num_shards)
        _require_multiple(
            "BatchIterator.num_shards", num_shards, "the number of processes", process_count
        )
        tasks = tasks_with(find_provider(mixture_or_task_name), split)
        self._settings: dict[str, Any] = {
            "mixture_or_task_name": mixture_or_task_name,
            "feature_lengths": dict(feature_lengths),
            "batch_size": batch_size,
            "split": split,
            "seed": seed,
            "num_shards": num_shards,
            "pack": pack,
            # Other versions of the package may have other ones.
            "features": sorted(TASK_FEATURES),
            # Before preprocessing; None where a source does not say.
            "rows": {task.name: task.num_input_examples(split) for task in tasks},
            "data": {task.name: task_info(task.name).fingerprint(split) for task in tasks},
        }
        rows, per_process = batch_size // num_shards, num_shards // process_count
        self.shards = range(process_index * per_process, (process_index + 1) * per_process)
        number = min(num_input_processes, per_process)
        cuts = [per_process * n // number for n in range(number + 1)] if number else []
        self._readers: list[LocalShards | InputProcess] = [
            InputProcess(self._settings, self.shards[first:end], rows)
            for first, end in itertools.pairwise(cuts)
        ] or [LocalShards(self._settings, self.shards, rows)]
        self.num_batches = 0
        # Ends the threads that read ahead, as the garbage collector does: tf.data's threads call
        # Python; they must be gone before the interpreter shuts down.
        self.close = weakref.finalize(self, _close, self._readers)

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        """This process's rows of the next global batch: `{feature: [rows, length]}`; raises
        DataError where a row cannot be read or preprocessed.
        """
        shards = list(itertools.chain(*self._call_all("next")))
        self.num_batches += 1
        return {
            name: np.concatenate([rows[name] for rows in shards])
            for name in shards[0]
            if name not in COUNT_FEATURES
        }

    def state_dict(self) -> dict[str, bytes]:
        """States of this process's shards after the last batch that `next` returned.

        They include rows that tf.data has prefetched, so nothing is lost or repeated. The union
        over all processes is the state of the run.
        """
        states: dict[str, bytes] = {}
        for of_reader in self._call_all("states", self.num_batches):
            states |= of_reader
        return states

    def load_state_dict(self, states: Mapping[str, bytes]) -> None:
        """Continues after the batch at which `state_dict` was called, on any number of processes.

        `states` are at least those of this process's shards. Raises CheckpointError where they are
        damaged or belong to other data or settings.
        """
        if not states:
            raise CheckpointError("the checkpoint holds no data state; was it saved by training?")
        name = min(states)
        saved = State.read(states[name], name).settings
        changes = [
            f"the data of {task} were prepared anew since the data state was saved"
            for task, fingerprint in self._settings["data"].items()
            if saved["data"].get(task, fingerprint) != fingerprint
        ] + [
            f"the data state was saved with {name} = {saved.get(name)!r}, now it is {value!r}"
            for name, value in self._settings.items()
            if name != "data" and saved.get(name) != value
        ]
        if changes:
            raise CheckpointError(
                f"{'; '.join(changes)}: the batches would not continue. Set that back, or start a "
                "new MODEL_DIR (INITIAL_CHECKPOINT_PATH takes over the weights)"
            )
        self._call_all("restore", dict(states))
        self.num_batches = int(saved["num_batches"])

    def _call_all(self, method: str, *arguments: Any) -> list[Any]:
        """Of each reader; input processes work at the same time."""
        results = [reader.start(method, *arguments) for reader in self._readers]
        return [result() for result in results]


def _close(readers: list[LocalShards | InputProcess]) -> None:
    for reader in readers:
        reader.close()


@gin.configurable
class EvaluationBatches:
    """One pass over a split in batches of one shape; iterating again starts anew.

    The last batch is filled with padding rows: `example_weights` `[rows]` float32 is 1 for real
    rows and 0 for padding. Each process reads its part of the rows, and all yield as many batches,
    since jitted steps wait for one another. Rows of a mixture's tasks come by turns. Candidates
    that do not fit into one row take several, and then there are more batches than `len` says.

    Args:
      mixture_or_task_name, feature_lengths, split: as for `BatchIterator`.
      batch_size: rows of a global batch; a multiple of `process_count`.
      process_index, process_count: of this process.
      sample: read so many rows in all (0: all), the same at every pass and for any number of
        processes: of prepared data the first ones of each file, of others the first ones. A
        mixture's tasks have their share.

    Attributes:
      read_rows: rows of a pass, of all processes together.
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
        sample: int = 0,
    ) -> None:
        _require_multiple("the evaluation batch size", batch_size, "process count", process_count)
        self._provider = find_provider(mixture_or_task_name)
        self._lengths, self._split = dict(feature_lengths), split
        self._rows = batch_size // process_count
        self._shard = seqio.ShardInfo(process_index, process_count) if process_count > 1 else None
        available = count_rows(self._provider, feature_lengths, split, sample)
        self._per_task = sample_sizes(available, sample)
        self.read_rows = sum(self._per_task.values())
        if not self.read_rows:
            raise DataError(f"split '{split}' of '{mixture_or_task_name}' has no rows")
        # One of the shards of a task has the largest share.
        largest = sum(-(-rows // process_count) for rows in self._per_task.values())
        self._num_batches = -(-largest // self._rows)
        self._reset_counts()

    def _reset_counts(self) -> None:
        self.num_rows = self.num_rows_with_dropped_behaviours = 0
        self.num_texts = self.num_truncated_texts = 0

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        dataset = M6RecFeatureConverter()(self._all_rows(), self._lengths)
        iterator = iter(dataset.batch(self._rows).prefetch(2).with_options(steady_options()))
        self._reset_counts()
        for number in itertools.count():
            rows = next_rows(iterator, end={})
            if number >= len(self) and not self._any_process(bool(rows)):
                break
            yield self._filled(rows)
        # With several processes the sources decide how many rows are this one's.
        if self._shard is None and self.num_rows < self.read_rows:
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
        by_task = [
            self._rows_of(task).map(lambda row: {name: row[name] for name in TASK_FEATURES})
            for task in seqio.get_subtasks(self._provider)
            if self._per_task.get(task.name)
        ]
        turns = tf.data.Dataset.range(len(by_task)).repeat()
        return tf.data.Dataset.choose_from_datasets(by_task, turns, stop_on_empty_dataset=False)

    def _rows_of(self, task: seqio.Task) -> tf.data.Dataset:
        """This process's rows of the sample."""
        rows = self._per_task[task.name]
        if isinstance(task.source, PreparedSource):
            task = task.replace(source=task.source.sample(rows))
            return task_dataset(task, self._lengths, self._split, shard_info=self._shard)
        numbered = task_dataset(task, self._lengths, self._split).take(rows).enumerate()
        if self._shard is not None:
            numbered = numbered.shard(self._shard.num_shards, self._shard.index)
        if not isinstance(task, TextToTextTask):
            return numbered.map(lambda _, row: row)
        # A row of no user has its number instead: it puts the rows of processes in order.
        return numbered.map(lambda number, row: row | {"user_ids": tf.cast(number, tf.int32)[None]})

    def _filled(self, rows: Batch) -> Batch:
        """With rows of padding, counted, and without the counts."""
        batch = pad_batch([], feature_lengths(self._lengths), self._rows)
        real = len(next(iter(rows.values()), ()))
        for name, values in rows.items():
            batch[name][:real] = values
        dropped, truncated = (batch.pop(name)[:real] for name in ("num_dropped", "num_truncated"))
        self.num_rows += real
        self.num_rows_with_dropped_behaviours += int((dropped > 0).sum())
        self.num_truncated_texts += int(truncated.sum())
        self.num_texts += int(batch["decoder_block_ids"][:real].max(axis=1, initial=0).sum())
        batch["example_weights"] = (np.arange(self._rows) < real).astype(np.float32)
        return batch


def _require_multiple(name: str, value: int, of_name: str, of: int) -> None:
    """Raises ConfigError unless a number of rows is a positive multiple of `of`."""
    if of < 1 or value < 1 or value % of:
        raise ConfigError(f"{name} = {value} must be a positive multiple of {of_name} = {of}")

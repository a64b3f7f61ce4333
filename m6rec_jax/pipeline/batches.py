"""Batches of model features for training: endless, sharded, resumable.

The data of a run are cut into a fixed number of shards, each with its own tf.data pipeline, seed
and saved state. A global batch is the rows of all shards, so its rows do not depend on how many
processes load it: process p of P loads shards [p * S / P, (p + 1) * S / P). The mesh decides in
which order the processes' rows stand (`sharding.place_batch`). Shards are read in this process, one
after another, or by input processes that share them (`input_processes`).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import gin
import numpy as np

from m6rec_jax.errors import CheckpointError
from m6rec_jax.pipeline.features import COUNT_FEATURES, TASK_FEATURES
from m6rec_jax.pipeline.input_processes import InputProcess
from m6rec_jax.pipeline.registration import task_info
from m6rec_jax.pipeline.shards import LocalShards, read_settings
from m6rec_jax.pipeline.task_rows import Batch, find_provider, require_multiple, tasks_with


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
        require_multiple("BATCH_SIZE", batch_size, "BatchIterator.num_shards", num_shards)
        require_multiple(
            "BatchIterator.num_shards", num_shards, "the number of processes", process_count
        )
        self._provider = find_provider(mixture_or_task_name)
        tasks = tasks_with(self._provider, split)
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
        rows_per_shard = batch_size // num_shards
        per_process = num_shards // process_count
        self.shards = range(process_index * per_process, (process_index + 1) * per_process)
        self._readers: list[LocalShards | InputProcess]
        if num_input_processes:
            number = min(num_input_processes, per_process)
            cuts = [per_process * n // number for n in range(number + 1)]
            self._readers = [
                InputProcess(self._settings, self.shards[first:end], rows_per_shard)
                for first, end in itertools.pairwise(cuts)
            ]
        else:
            self._readers = [LocalShards(self._settings, self.shards, rows_per_shard)]
        # tf.data's threads call Python; they must be gone before the interpreter shuts down.
        self._stop = weakref.finalize(self, _close, self._readers)
        self.num_batches = 0

    def close(self) -> None:
        """Ends the threads that read ahead, as the garbage collector does."""
        self._stop()

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        """This process's rows of the next global batch: `{feature: [rows, length]}`.

        Raises:
          DataError: a row cannot be read or preprocessed.
        """
        parts = list(itertools.chain(*self._call_all("next")))
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name in COUNT_FEATURES:
            del batch[name]
        self.num_batches += 1
        return batch

    def state_dict(self) -> dict[str, bytes]:
        """States of this process's shards after the last batch that `next` returned.

        They include rows that tf.data has prefetched, so nothing is lost or repeated. The union
        over all processes is the state of the run.
        """
        return {
            self._shard_key(shard): state
            for states in self._call_all("states", self.num_batches)
            for shard, state in states.items()
        }

    def load_state_dict(self, states: Mapping[str, bytes]) -> None:
        """Continues after the batch at which `state_dict` was called, on any number of processes.

        Args:
          states: at least this process's shards.

        Raises:
          CheckpointError: the states are damaged or belong to other data or settings.
        """
        if not states:
            raise CheckpointError("the checkpoint holds no data state; was it saved by training?")
        any_key = min(states)
        saved = read_settings(states[any_key], any_key)
        data = self._settings["data"] | saved["data"]
        changes = [
            f"the data of {task} were prepared anew since the data state was saved"
            for task, made in self._settings["data"].items()
            if data[task] != made
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
        names = {shard: self._shard_key(shard) for shard in self.shards}
        self._call_all("restore", {n: states[key] for n, key in names.items()}, names)
        self.num_batches = int(saved["num_batches"])

    def _call_all(self, method: str, *arguments: Any) -> list[Any]:
        for reader in self._readers:
            reader.send(method, *arguments)
        return [reader.receive() for reader in self._readers]

    def _shard_key(self, shard: int) -> str:
        return f"shard-{shard:05d}-of-{self._settings['num_shards']:05d}"


def _close(readers: list[LocalShards | InputProcess]) -> None:
    for reader in readers:
        reader.close()

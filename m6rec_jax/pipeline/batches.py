"""Batches of model features for training: endless, sharded, resumable.

The data of a run are cut into a fixed number of shards, each with its own tf.data pipeline, seed
and saved state. A global batch is the rows of all shards, so its rows do not depend on how many
processes load it: process p of P loads shards [p * S / P, (p + 1) * S / P), one after another. The
mesh decides in which order the processes' rows stand (`sharding.place_batch`).

tf.data writes iterator states only through `tf.train.Checkpoint`, to files. Here the files go to a
temporary folder and travel on as one zip archive, so the caller decides where states are stored:
with the checkpoint of their step.
"""

from __future__ import annotations

import io
import json
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.errors import CheckpointError, ConfigError, first_line
from m6rec_jax.pipeline.feature_converter import M6RecFeatureConverter
from m6rec_jax.pipeline.features import MODEL_FEATURES, SEGMENT_FEATURES, TASK_FEATURES
from m6rec_jax.pipeline.preprocessors import training_rows
from m6rec_jax.pipeline.source import steady_options
from m6rec_jax.pipeline.task_rows import (
    Batch,
    find_provider,
    next_rows,
    require_multiple,
    rows_per_task,
    task_dataset,
)


@gin.configurable
class BatchIterator(Iterator[Batch]):
    """Endless training batches of a seqio task or mixture, deterministic and resumable.

    Every epoch of a shard holds each of its rows exactly once, in another order.

        BatchIterator.num_shards = 8
        BatchIterator.pack = True

    Args:
      mixture_or_task_name: as registered in `tasks/`.
      feature_lengths: `{"inputs": S, "targets": T}`.
      batch_size: rows of a global batch, over all processes; a multiple of `num_shards`.
      split: seqio split.
      seed: decides shuffling, mixing and masking. Equal seeds give equal batches.
      num_shards: S, fixed for the life of a run; a multiple of `process_count`. More shards allow
        more loading processes later, but each one costs threads and a state.
      process_index: p, of this process.
      process_count: P.
      pack: put several documents into one row (pretraining); batches then also carry
        `encoder_segment_ids` and `decoder_segment_ids`.

    Attributes:
      num_batches: batches so far, including those before a resumption.
      num_rows: rows read by this object. `num_rows_with_dropped_behaviours` of them had a history
        too long for S (`num_dropped_behaviours` in all), `num_rows_with_truncated_texts` a text
        too long for its share of T.

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
    ) -> None:
        require_multiple("BATCH_SIZE", batch_size, "BatchIterator.num_shards", num_shards)
        require_multiple(
            "BatchIterator.num_shards", num_shards, "the number of processes", process_count
        )
        self._provider = find_provider(mixture_or_task_name)
        _check_sharding(self._provider, split, num_shards)
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
            "rows": rows_per_task(self._provider, split),
        }
        self.rows_per_shard = batch_size // num_shards
        per_process = num_shards // process_count
        self.shards = range(process_index * per_process, (process_index + 1) * per_process)
        self._iterators = {shard: iter(self._pipeline(shard)) for shard in self.shards}
        # tf.data's threads call Python; they must be gone before the interpreter shuts down.
        self._stop = weakref.finalize(self, self._iterators.clear)
        self.num_batches = self.num_rows = self.num_dropped_behaviours = 0
        self.num_rows_with_dropped_behaviours = self.num_rows_with_truncated_texts = 0

    @property
    def num_shards(self) -> int:
        """S, fixed for the life of a run."""
        return int(self._settings["num_shards"])

    def close(self) -> None:
        """Ends the threads that read ahead, as the garbage collector does."""
        self._stop()

    def _pipeline(self, shard: int) -> tf.data.Dataset:
        settings = self._settings
        return training_shard(
            self._provider,
            settings["feature_lengths"],
            self.rows_per_shard,
            split=settings["split"],
            seed=settings["seed"],
            shard=shard,
            num_shards=settings["num_shards"],
            pack=settings["pack"],
        )

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        """This process's rows of the next global batch: `{feature: [rows, length]}`.

        Raises:
          DataError: a row cannot be read or preprocessed.
        """
        parts = [next_rows(self._iterators[shard]) for shard in self.shards]
        batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        dropped = batch.pop("num_dropped")[:, 0]
        self.num_rows_with_truncated_texts += int((batch.pop("num_truncated") > 0).sum())
        self.num_batches += 1
        self.num_rows += len(dropped)
        self.num_rows_with_dropped_behaviours += int((dropped > 0).sum())
        self.num_dropped_behaviours += int(dropped.sum())
        return batch

    def element_spec(self) -> dict[str, tuple[tuple[int, int], np.dtype]]:
        """Shape and type of each feature of this process's batches, without reading any."""
        features = dict(MODEL_FEATURES) | (dict(SEGMENT_FEATURES) if self._settings["pack"] else {})
        lengths = M6RecFeatureConverter(pack=True).get_model_feature_lengths(
            self._settings["feature_lengths"]
        )
        rows = self.rows_per_shard * len(self.shards)
        return {name: ((rows, lengths[name]), f.dtype) for name, f in features.items()}

    def state_dict(self) -> dict[str, bytes]:
        """States of this process's shards after the last batch that `next` returned.

        They include rows that tf.data has prefetched, so nothing is lost or repeated. The union
        over all processes is the state of the run.
        """
        settings = {**self._settings, "num_batches": self.num_batches}
        return {
            self._shard_key(shard): _save_iterator(iterator, settings)
            for shard, iterator in self._iterators.items()
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
        saved = _read_settings(states[any_key], any_key)
        for name, value in self._settings.items():
            if saved.get(name) != value:
                raise CheckpointError(
                    f"the data state was saved with {name} = {saved.get(name)!r}, now it is "
                    f"{value!r}; the batches would not continue. Set it back, or start a new "
                    "MODEL_DIR (INITIAL_CHECKPOINT_PATH takes over the weights)"
                )
        for shard in self.shards:
            key = self._shard_key(shard)
            if key not in states:
                raise CheckpointError(f"the data state lacks {key}; it has {sorted(states)}")
            num_batches = _read_settings(states[key], key)["num_batches"]
            if num_batches != saved["num_batches"]:
                raise CheckpointError(
                    f"the data states belong to different steps: {any_key} to batch "
                    f"{saved['num_batches']}, {key} to batch {num_batches}"
                )
            _restore_iterator(self._iterators[shard], states[key], key)
        self.num_batches = int(saved["num_batches"])

    def _shard_key(self, shard: int) -> str:
        return f"shard-{shard:05d}-of-{self._settings['num_shards']:05d}"


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
    """Endless shuffled batches of one shard; `batch_size` is the shard's own, see `BatchIterator`.

    t5x reads these, too.
    """
    # One number per (seed, shard): neighbouring seeds would share their map seeds in seqio.
    seed = int(np.random.SeedSequence([seed, shard]).generate_state(1)[0] >> 1)
    with training_rows():
        dataset = task_dataset(
            provider,
            feature_lengths,
            split=split,
            shuffle=True,
            seed=seed,
            num_epochs=None,
            shard_info=seqio.ShardInfo(index=shard, num_shards=num_shards),
        )
    dataset = M6RecFeatureConverter(pack=pack)(dataset, feature_lengths)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(2)
    return dataset.with_options(steady_options())


def _check_sharding(provider: seqio.Task | seqio.Mixture, split: str, num_shards: int) -> None:
    for task in seqio.get_subtasks(provider):
        source = task.source
        if split not in task.splits or source.supports_arbitrary_sharding or num_shards == 1:
            continue
        files = len(source.list_shards(split))
        if files < num_shards:
            # seqio would then cut a *shuffled* stream by row number, with another seed per shard:
            # rows would be lost and repeated.
            raise ConfigError(
                f"task '{task.name}' has {files} files in split '{split}', too few for "
                f"BatchIterator.num_shards = {num_shards}; lower it, or read the data through "
                "m6rec_jax.pipeline.source.PreparedSource"
            )


_NAME = "iterator"
_SETTINGS = "settings.json"


def _save_iterator(iterator: Iterator[Any], settings: Mapping[str, Any]) -> bytes:
    """State of a tf.data iterator after its last consumed element, and JSON `settings` with it.

    Raises:
      CheckpointError: a step of the pipeline keeps state that cannot be saved (a stateful
        function, a Python generator).
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.train.Checkpoint(iterator=iterator).write(str(Path(folder) / _NAME))
        except tf.errors.OpError as error:
            raise CheckpointError(
                f"the data pipeline cannot be saved, so a run could not resume: {error.message}. "
                "Use tf.numpy_function(..., stateful=False) and no from_generator"
            ) from error
        contents = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    contents[_SETTINGS] = json.dumps(settings, sort_keys=True).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compresslevel=1) as archive:
        for name, content in contents.items():
            # ZipInfo's fixed date keeps equal states equal bytes.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _read_settings(state: bytes, name: str) -> dict[str, Any]:
    """The settings that were saved with a state, which errors call `name`.

    Raises:
      CheckpointError: the bytes are damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(state)) as archive:
            settings: dict[str, Any] = json.loads(archive.read(_SETTINGS))
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"the data state of {name} is damaged: {error}") from error
    return settings


def _restore_iterator(iterator: Iterator[Any], state: bytes, name: str) -> None:
    """Moves an iterator of an equal pipeline to a saved position; errors call the state `name`.

    Raises:
      CheckpointError: the bytes are damaged, or the pipeline is another one.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(state)) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, OSError) as error:
            raise CheckpointError(f"the data state of {name} is damaged: {error}") from error
        try:
            checkpoint = tf.train.Checkpoint(iterator=iterator)
            checkpoint.read(str(Path(folder) / _NAME)).assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            raise CheckpointError(
                f"the data state of {name} does not fit the present pipeline "
                f"({first_line(error)}). It was saved by other preprocessors; start a new "
                "MODEL_DIR or restore that code"
            ) from error

"""The rows of some shards of a run's data: one tf.data pipeline each, and where it stands.

tf.data writes iterator states only through `tf.train.Checkpoint`, to files. Here the files go to a
temporary folder and travel on as one zip archive, so the caller decides where states are stored:
with the checkpoint of their step.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.errors import CheckpointError, first_line
from m6rec_jax.pipeline.feature_converter import M6RecFeatureConverter
from m6rec_jax.pipeline.row_layout import training_rows
from m6rec_jax.pipeline.source import steady_options
from m6rec_jax.pipeline.task_rows import Batch, find_provider, next_rows, task_dataset


class LocalShards:
    """Shards that are read in this process.

    Args:
      settings: as `BatchIterator` keeps them; what states are saved with.
      shards: their numbers.
      rows: of each batch of a shard.
    """

    def __init__(self, settings: Mapping[str, Any], shards: Sequence[int], rows: int) -> None:
        self._settings = settings
        self._iterators = {
            shard: iter(
                training_shard(
                    find_provider(settings["mixture_or_task_name"]),
                    settings["feature_lengths"],
                    rows,
                    split=settings["split"],
                    seed=settings["seed"],
                    shard=shard,
                    num_shards=settings["num_shards"],
                    pack=settings["pack"],
                )
            )
            for shard in shards
        }

    def send(self, method: str, *arguments: Any) -> None:
        """Names a call of one of the methods below, whose result `receive` returns."""
        self._call = functools.partial(getattr(self, method), *arguments)

    def receive(self) -> Any:
        return self._call()

    def next(self) -> list[Batch]:
        """The next batch of each shard; raises DataError as `next_rows`."""
        return [next_rows(iterator) for iterator in self._iterators.values()]

    def states(self, num_batches: int) -> dict[int, bytes]:
        """Where each shard stands, after so many batches of the run."""
        settings = {**self._settings, "num_batches": num_batches}
        return {n: _save_iterator(iterator, settings) for n, iterator in self._iterators.items()}

    def restore(self, states: Mapping[int, bytes], names: Mapping[int, str]) -> None:
        """Goes to where states say; errors call them by name."""
        for shard, iterator in self._iterators.items():
            _restore_iterator(iterator, states[shard], names[shard])

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._iterators.clear()


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


_NAME = "iterator"
_SETTINGS = "settings.json"


def _save_iterator(iterator: Iterator[Any], settings: Mapping[str, Any]) -> bytes:
    """State of a tf.data iterator after its last consumed element, and JSON `settings` with it."""
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


@contextlib.contextmanager
def _opened(state: bytes, name: str) -> Iterator[zipfile.ZipFile]:
    """The archive of a state; raises CheckpointError where the bytes are damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(state)) as archive:
            yield archive
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"the data state of {name} is damaged: {error}") from error


def read_settings(state: bytes, name: str) -> dict[str, Any]:
    """The settings of a state, which errors call `name`; raises CheckpointError."""
    with _opened(state, name) as archive:
        settings: dict[str, Any] = json.loads(archive.read(_SETTINGS))
    return settings


def _restore_iterator(iterator: Iterator[Any], state: bytes, name: str) -> None:
    """Moves an iterator of an equal pipeline to a saved position."""
    with tempfile.TemporaryDirectory() as folder:
        with _opened(state, name) as archive:
            archive.extractall(folder)
        try:
            checkpoint = tf.train.Checkpoint(iterator=iterator)
            checkpoint.read(str(Path(folder) / _NAME)).assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            raise CheckpointError(
                f"the data state of {name} does not fit the present pipeline "
                f"({first_line(error)}). It was saved by other preprocessors; start a new "
                "MODEL_DIR or restore that code"
            ) from error

"""The rows of some shards of a run's data: one tf.data pipeline each, and where it stands.

tf.data writes iterator states only through `tf.train.Checkpoint`, to files. Here the files go to a
temporary folder and travel on as bytes, so the caller decides where states are stored: with the
checkpoint of their step.
"""

from __future__ import annotations

import functools
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tensorflow as tf

from m6rec_jax.errors import CheckpointError, first_line
from m6rec_jax.pipeline.task_rows import Batch, find_provider, next_rows, training_shard

_NAME = "iterator"


class State(msgspec.Struct):
    """Where a shard stands: the settings of its run, and the files that tf.data writes of it."""

    settings: dict[str, Any]
    files: dict[str, bytes]

    @classmethod
    def read(cls, state: bytes, name: str) -> State:
        """Raises CheckpointError, which calls the shard `name`, where the bytes are damaged."""
        try:
            return msgspec.msgpack.decode(zlib.decompress(state), type=cls)
        except (zlib.error, msgspec.MsgspecError) as error:
            raise CheckpointError(f"the data state of {name} is damaged: {error}") from error


class LocalShards:
    """Shards that are read in this process: their numbers, and the `rows` of each batch of a shard.
    `settings` are those of `BatchIterator`; states are saved with them.
    """

    def __init__(self, settings: Mapping[str, Any], shards: Sequence[int], rows: int) -> None:
        self._settings = dict(settings)
        names = ("feature_lengths", "split", "seed", "num_shards", "pack")
        options = {name: settings[name] for name in names}
        provider = find_provider(settings["mixture_or_task_name"])
        self._iterators = {
            f"shard-{shard:05d}-of-{settings['num_shards']:05d}": iter(
                training_shard(provider, batch_size=rows, shard=shard, **options)
            )
            for shard in shards
        }

    def start(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Names a call of one of the methods below; returns a function that returns its result."""
        return functools.partial(getattr(self, method), *arguments)

    def next(self) -> list[Batch]:
        """The next batch of each shard; raises DataError as `next_rows`."""
        return [next_rows(iterator) for iterator in self._iterators.values()]

    def states(self, num_batches: int) -> dict[str, bytes]:
        """Where each shard stands, after so many batches of the run."""
        settings = {**self._settings, "num_batches": num_batches}
        return {name: _save(iterator, settings) for name, iterator in self._iterators.items()}

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Goes to where states say."""
        for name, iterator in self._iterators.items():
            _restore(iterator, states[name], name)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._iterators.clear()


def _save(iterator: Iterator[Any], settings: dict[str, Any]) -> bytes:
    """State of a tf.data iterator after its last consumed element; equal states, equal bytes."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.train.Checkpoint(iterator=iterator).write(str(Path(folder) / _NAME))
        except tf.errors.OpError as error:
            raise CheckpointError(
                f"the data pipeline cannot be saved, so a run could not resume: {error.message}. "
                "Use tf.numpy_function(..., stateful=False) and no from_generator"
            ) from error
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return zlib.compress(msgspec.msgpack.encode(State(settings, files)), 1)


def _restore(iterator: Iterator[Any], state: bytes, name: str) -> None:
    """Moves an iterator of an equal pipeline to a saved position."""
    with tempfile.TemporaryDirectory() as folder:
        for file, content in State.read(state, name).files.items():
            (Path(folder) / file).write_bytes(content)
        try:
            checkpoint = tf.train.Checkpoint(iterator=iterator)
            checkpoint.read(str(Path(folder) / _NAME)).assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            raise CheckpointError(
                f"the data state of {name} does not fit the present pipeline "
                f"({first_line(error)}). It was saved by other preprocessors; start a new "
                "MODEL_DIR or restore that code"
            ) from error

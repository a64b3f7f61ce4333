"""Reads a prepared data set (TFDS, written by `m6rec data prepare`) for seqio."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from m6rec_jax.data.splits import PARTS
from m6rec_jax.data.views import INFO
from m6rec_jax.errors import DataError
from m6rec_jax.text.layout import FEATURES

with contextlib.suppress(RuntimeError):  # a program has used them already
    # Devices are JAX's: tensorflow would take a GPU's memory, to read data.
    tf.config.set_visible_devices([], "GPU")

SHUFFLE_BUFFER_SIZE = 2048


def python_value(value: Any) -> Any:
    """A column of a row, read as numpy, as Python has it; arrays of numbers stay as they are."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [text.decode("utf-8") for text in value] if value.dtype == object else value
    value = value if isinstance(value, bytes) else value.item()
    return value.decode("utf-8") if isinstance(value, bytes) else value


def numpy_map(
    function: Callable[..., Sequence[np.ndarray]],
    values: Sequence[tf.Tensor],
    shapes: Mapping[str, Sequence[int | None]],
) -> dict[str, tf.Tensor]:
    """Features that a numpy function makes of tensors, in the order of `shapes`.

    Not stateful, so that tf.data can save its iterators.
    """
    types = [tf.as_dtype(FEATURES[name].dtype) for name in shapes]
    made = tf.numpy_function(function, values, types, stateful=False)
    return {
        name: tf.ensure_shape(tensor, shape)
        for tensor, (name, shape) in zip(made, shapes.items(), strict=True)
    }


def steady_options() -> tf.data.Options:
    """Options for every pipeline that is read here: rows in order, no tuning of parallelism.

    Python's lock bounds parallelism, so there is nothing to tune; and an iterator that is restored
    or deleted would first wait, for up to a minute, for the tuning thread to wake up.
    """
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    return options


class PreparedSource(seqio.DataSource):
    """A `seqio.DataSource` over one TFDS folder, which is looked up when it is first read.

    Differs from `seqio.TfdsDataSource` in what is needed to resume a run exactly: a shard is a
    contiguous range of rows, so that any number of shards works with any number of files; rows are
    shuffled before they are repeated, so that an epoch holds every row once; nothing is cached in
    memory, since a cache would be written with every iterator state.

    Args:
      locate: returns the folder that holds `dataset_info.json`; may raise `DataError`.
      shuffle_buffer_size: rows held for shuffling, and saved with the iterator state. It can be
        small: TFDS has shuffled the rows, only epochs must differ.
      sample: read only these rows, int `[n]`, ascending, in their order; None: all.
    """

    supports_arbitrary_sharding = True
    performs_internal_shuffling = True

    def __init__(
        self,
        locate: Callable[[], Path],
        shuffle_buffer_size: int = SHUFFLE_BUFFER_SIZE,
        sample: np.ndarray | None = None,
    ) -> None:
        super().__init__(splits=PARTS, caching_permitted=False)
        self._locate, self._sample = locate, sample
        self._shuffle_buffer_size = shuffle_buffer_size

    def sampled(self, places: np.ndarray) -> PreparedSource:
        """The same data, of which some rows are read; they cannot be shuffled."""
        return PreparedSource(self._locate, sample=places)

    @property
    def builder(self) -> tfds.core.DatasetBuilder:
        """The TFDS builder of the folder; raises DataError where it holds no TFDS data set."""
        folder = self._locate()
        try:
            return _builder(folder, (folder / INFO).read_bytes())
        except Exception as error:  # TFDS raises many kinds, depending on what is broken
            raise DataError(f"{folder} holds no readable TFDS data set: {error}") from error

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that are there, or that most data have."""
        with contextlib.suppress(DataError):
            return tuple(self.builder.info.splits)
        return PARTS

    def has_split(self, split: str) -> bool:
        """Whether the data have a split; raises DataError where they are not there."""
        return split in self.builder.info.splits

    def num_input_examples(self, split: str) -> int:
        """Rows of a split, or of the sample; raises DataError where there is no such split."""
        return self._rows(split) if self._sample is None else len(self._sample)

    def _rows(self, split: str) -> int:
        splits: Mapping[str, tfds.core.SplitInfo] = self.builder.info.splits
        if split not in splits:
            raise DataError(
                f"{self._locate()} has no split '{split}', only {', '.join(sorted(splits))}"
            )
        return int(splits[split].num_examples)

    def list_shards(self, split: str) -> Sequence[str]:
        return [str(name) for name in self.builder.info.splits[split].filenames]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        columns: Sequence[str] | None = None,
    ) -> tf.data.Dataset:
        """Rows of a split as `{column: tensor}`, of some `columns` or all of them.

        Raises:
          DataError: the data set, the split or a column is missing, the split has no rows, or a
            shard to be shuffled has none (it is repeated, so its reader would wait forever; a
            pass in order, for evaluation, may have none).
        """
        columns_there = tuple(self.builder.info.features)
        for column in columns or ():
            if column not in columns_there:
                raise DataError(
                    f"{self._locate()} has no column '{column}', only {', '.join(columns_there)}"
                )
        number, shard = self.num_input_examples(split), shard_info or seqio.ShardInfo(0, 1)
        first, end = (
            number * index // shard.num_shards for index in (shard.index, shard.index + 1)
        )
        if not number or (shuffle and first == end):
            raise DataError(
                f"shard {shard.index} of {shard.num_shards} of split '{split}' of "
                f"{self._locate()} has no rows ({number} in all)"
            )
        nothing = first == end
        end = max(end, first + 1)  # TFDS reads no empty range
        if self._sample is not None:
            # Files take turns, so a place is one in the order of the whole split.
            chosen = np.zeros(self._sample[end - 1] + 1, bool)
            chosen[self._sample[first:end]] = True
            first, end = 0, self._rows(split)
        dataset = self.builder.as_dataset(
            split=tfds.core.ReadInstruction(split, first, end, unit="abs"),
            shuffle_files=shuffle,
            decoders=tfds.decode.PartialDecoding(list(columns)) if columns else None,
            read_config=tfds.ReadConfig(shuffle_seed=seed, skip_prefetch=True, try_autocache=False),
        )
        if self._sample is not None:
            table = tf.constant(chosen)
            dataset = dataset.take(len(chosen)).enumerate()
            dataset = dataset.filter(lambda index, _: table[index]).map(lambda _, row: row)
        if shuffle:
            buffer = min(self._shuffle_buffer_size, end - first)
            dataset = dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
        return dataset.take(0) if nothing else dataset


@functools.lru_cache(maxsize=64)
def _builder(folder: Path, description: bytes) -> tfds.core.DatasetBuilder:
    del description  # part of the key: data prepared anew are read anew
    return tfds.builder_from_directory(folder)

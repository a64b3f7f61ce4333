"""Prepared data (TFDS, by `m6rec data prepare`) and their vocabulary, as seqio reads them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.data.store.views import INFO
from m6rec_jax.errors import DataError
from m6rec_jax.text.layout import FEATURES
from m6rec_jax.text.vocabulary import Vocabulary

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

    Unlike `seqio.TfdsDataSource`, runs resume exactly: a shard is a contiguous range
    of rows, however many files there are; rows are shuffled before they are repeated, so that an
    epoch holds every row once; nothing is cached, since every iterator state would hold the cache.

    Args:
      locate: returns the folder that holds `dataset_info.json`; may raise `DataError`.
      shuffle_buffer_size: rows held for shuffling, and saved with the iterator state. It can be
        small: TFDS has shuffled the rows, only epochs must differ.
      most: rows that are read of a split, of each file, which is of some users, its first ones;
        None: all.
    """

    supports_arbitrary_sharding = True
    performs_internal_shuffling = True

    def __init__(
        self,
        locate: Callable[[], Path],
        shuffle_buffer_size: int = SHUFFLE_BUFFER_SIZE,
        most: int | None = None,
    ) -> None:
        super().__init__(splits=PARTS, caching_permitted=False)
        self._locate, self._most = locate, most
        self._shuffle_buffer_size = shuffle_buffer_size

    def sample(self, rows: int) -> PreparedSource:
        """So many rows of each split, see `most`."""
        return PreparedSource(self._locate, self._shuffle_buffer_size, rows)

    def ranges(self, split: str, first: int = 0, end: int | None = None) -> list[tuple[int, int]]:
        """From and to which rows of a split are read, ascending: those at places [first, end)
        among all that are read.
        """
        number = self.num_input_examples(split)
        lengths = self.builder.info.splits[split].shard_lengths
        ends = list(itertools.accumulate(lengths))
        # Places at which the rows of each file end, among those that are read.
        places = [0, *(number * total // ends[-1] for total in ends)]
        ranges = []
        for start, (low, high) in zip([0, *ends], itertools.pairwise(places), strict=False):
            low_place, high_place = max(low, first), min(high, number if end is None else end)
            if low_place < high_place:
                ranges.append((start + low_place - low, start + high_place - low))
        return ranges

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

    def num_input_examples(self, split: str) -> int:
        """Rows that are read of a split; raises DataError where there is no such split."""
        splits: Mapping[str, tfds.core.SplitInfo] = self.builder.info.splits
        if split not in splits:
            raise DataError(
                f"{self._locate()} has no split '{split}', only {', '.join(sorted(splits))}"
            )
        number = int(splits[split].num_examples)
        return number if self._most is None else min(number, self._most)

    def list_shards(self, split: str) -> Sequence[str]:
        return [str(name) for name in self.builder.info.splits[split].filenames]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
    ) -> tf.data.Dataset:
        """Rows of a split as `{column: tensor}`; raises DataError for no such split, or a shard
        without rows.
        """
        number, shard = self.num_input_examples(split), shard_info or seqio.ShardInfo(0, 1)
        first, end = (number * n // shard.num_shards for n in (shard.index, shard.index + 1))
        if not number or (shuffle and first == end):
            raise DataError(
                f"shard {shard.index} of {shard.num_shards} of split '{split}' of "
                f"{self._locate()} has no rows ({number} in all)"
            )
        # TFDS reads no empty range.
        ranges = self.ranges(split, first, max(end, first + 1))
        instructions = (tfds.core.ReadInstruction(split, *part, unit="abs") for part in ranges)
        dataset = self.builder.as_dataset(
            split=functools.reduce(operator.add, instructions),
            shuffle_files=shuffle,
            read_config=tfds.ReadConfig(
                shuffle_seed=seed,
                skip_prefetch=True,
                try_autocache=False,
                # File after file: whoever reads without shuffling counts on the rows' order.
                interleave_cycle_length=16 if shuffle else 1,
            ),
        )
        if shuffle:
            buffer = min(self._shuffle_buffer_size, end - first)
            dataset = dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
        return dataset.take(end - first)


@functools.lru_cache(maxsize=64)
def _builder(folder: Path, description: bytes) -> tfds.core.DatasetBuilder:
    del description  # part of the key: data prepared anew are read anew
    return tfds.builder_from_directory(folder)


class SeqioVocabulary(seqio.Vocabulary):
    """Adapts a text `Vocabulary`, which is loaded when it is used.

    Registering a task must not read files, so the adapter takes a function, such as
    `locations.load_vocabulary`. Two adapters are equal when their vocabularies are: seqio compares
    them when it mixes tasks.
    """

    pad_id = property(lambda self: self.text.pad_id)
    bos_id = property(lambda self: self.text.bos_id)
    eos_id = property(lambda self: self.text.eos_id)
    unk_id = property(lambda self: self.text.unk_id)
    _base_vocab_size = property(lambda self: self.text.size)

    def __init__(self, load: Callable[[], Vocabulary]) -> None:
        super().__init__(extra_ids=0)
        self._load = load

    @property
    def text(self) -> Vocabulary:
        """The vocabulary of `m6rec_jax.text`."""
        return self._load()

    def _encode(self, s: str) -> Sequence[int]:
        return list(self.text.encode(s))

    def _decode(self, ids: Iterable[int]) -> str:
        return self.text.decode([int(i) for i in ids])

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        raise TypeError("rows are made by `row_layout`")

    _decode_tf = _encode_tf

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SeqioVocabulary):
            return False
        return self._load is other._load or self.text == other.text

    def __hash__(self) -> int:
        return hash(SeqioVocabulary)  # equality may depend on files, which must not be read here

"""A tiny TFDS data set of numbers and seqio tasks over it, without any text."""

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from m6rec_jax.pipeline.features import TASK_FEATURES
from m6rec_jax.pipeline.registration import unregister
from m6rec_jax.pipeline.source import PreparedSource
from tests.pipeline import shop_rows

SIZES = {"train": 37, "validation": 10, "test": 3}


@pytest.fixture(scope="session")
def number_data(tmp_path_factory):
    """Folders of two TFDS data sets: numbers from 0 and numbers from 1,000."""
    folders = []
    for name, first in (("low", 0), ("high", 1000)):
        folder = tmp_path_factory.mktemp("tfds")
        builder = tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            data_dir=folder,
            split_datasets={
                split: tf.data.Dataset.from_tensor_slices(
                    {"number": np.arange(first, first + size, dtype=np.int64)}
                )
                for split, size in SIZES.items()
            },
            features=tfds.features.FeaturesDict({"number": np.int64}),
        )
        folders.append(builder.data_path)
    return folders


@seqio.map_over_dataset(num_seeds=1)
def number_row(example, seed):
    """A row that shows its number, and noise that shows its random seed."""

    def row(number, seed):
        rng = np.random.default_rng(np.asarray(seed).astype(np.uint32))
        tokens = np.concatenate([[number], rng.integers(1, 99, 1 + number % 4)]).astype(np.int32)
        ones = np.ones_like(tokens)
        values = {
            "encoder_input_tokens": tokens,
            "encoder_block_ids": ones,
            "decoder_input_tokens": tokens[:2],
            "decoder_target_tokens": tokens[:2],
            "decoder_loss_weights": np.ones(2, np.float32),
            "decoder_contrast_tokens": ones[:2] * 0,
            "decoder_block_ids": ones[:2],
            "decoder_labels": ones[:2],
            "decoder_item_ids": ones[:2],
            "decoder_item_log_frequency": np.zeros(2, np.float32),
            "decoder_job_ids": np.full(2, number // 1000, np.int32),
            "task_ids": ones[:1] * 0,
            "retrieval": ones[:1] * 0,
            "user_ids": np.asarray([number], np.int32),
            "num_dropped": np.asarray([number % 3], np.int32),
            "num_truncated": ones[:1] * 0,
        }
        return [values[name] for name in TASK_FEATURES]

    types = [tf.as_dtype(feature.dtype) for feature in TASK_FEATURES.values()]
    tensors = tf.numpy_function(row, [example["number"], seed], types, stateful=False)
    for tensor in tensors:
        tensor.set_shape([None])
    return dict(zip(TASK_FEATURES, tensors, strict=True))


def register(name, folder, *steps):
    """A task over one of the data sets, after other steps."""
    vocabulary = seqio.PassThroughVocabulary(2000)
    seqio.TaskRegistry.add(
        name,
        source=PreparedSource(lambda: folder, shuffle_buffer_size=8),
        preprocessors=[*steps, number_row],
        output_features={
            name: seqio.Feature(vocabulary, add_eos=False, dtype=tf.as_dtype(feature.dtype))
            for name, feature in TASK_FEATURES.items()
        },
        shuffle_buffer_size=None,
    )


@pytest.fixture(scope="session")
def number_tasks(number_data):
    """Names of two tasks and of a mixture of them."""
    low, high, mixture = "numbers_low", "numbers_high", "numbers_mixture"
    register(low, number_data[0])
    register(high, number_data[1])
    seqio.MixtureRegistry.add(mixture, [(low, 2.0), (high, 1.0)])
    yield low, high, mixture
    unregister([low, high, mixture])


@pytest.fixture(scope="session")
def shop_views(tmp_path_factory):
    """Folder of each prepared view of the tiny shop."""
    return shop_rows.write_views(tmp_path_factory.mktemp("shop"))

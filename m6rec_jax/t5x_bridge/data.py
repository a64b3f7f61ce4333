"""What t5x reads: the feature converter of its data sets, and the rows of training.

    train.get_dataset_fn = @training_dataset

Exported models take rows of tokens, which `m6rec_jax.text.rows` makes of text in Python:

    save.create_preprocessor_fn = @row_inputs
    save.inference_mode = @CustomInferenceMode()     # of t5x.export_lib
    CustomInferenceMode.model_fn_name = 'scores'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import seqio
import tensorflow as tf
from t5x import utils

from m6rec_jax.errors import ConfigError
from m6rec_jax.pipeline.feature_converter import M6RecFeatureConverter
from m6rec_jax.pipeline.features import COUNT_FEATURES, MODEL_FEATURES
from m6rec_jax.pipeline.shards import training_shard
from m6rec_jax.pipeline.task_rows import find_provider


def register_readable(mixture_or_task_name: str) -> seqio.Task | seqio.Mixture:
    """Puts what `find_provider` gives into seqio's registries: t5x looks tasks up there, by name.

    Returns:
      The task or mixture.

    Raises:
      ConfigError: as `find_provider`.
    """
    found = find_provider(mixture_or_task_name)
    for provider in (found, *seqio.get_subtasks(found)):
        is_task = isinstance(provider, seqio.Task)
        registry = seqio.TaskRegistry if is_task else seqio.MixtureRegistry
        if registry.get(provider.name) is not provider:
            registry.remove(provider.name)
            registry.add_provider(provider.name, provider)
    return found


class T5xFeatureConverter(M6RecFeatureConverter):
    """Rows of model features without the counts of rows that were too long.

    t5x would hand these to the model. Packing is our own whatever `use_custom_packing_ops` says.
    """

    MODEL_FEATURES: ClassVar[Mapping[str, Any]] = {
        name: spec
        for name, spec in M6RecFeatureConverter.MODEL_FEATURES.items()
        if name not in COUNT_FEATURES
    }

    def __init__(self, pack: bool = False, use_custom_packing_ops: bool = False) -> None:
        del use_custom_packing_ops
        super().__init__(pack=pack)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        lengths = super().get_model_feature_lengths(task_feature_lengths)
        return {name: length for name, length in lengths.items() if name not in COUNT_FEATURES}

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        return _without_counts(super()._convert_features(ds, task_feature_lengths))


@gin.configurable
def training_dataset(
    cfg: utils.DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any = None,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
    """The batches of `m6rec train`, the very same ones with the same seed and number of shards.

    t5x's own `get_dataset` would keep small data sets in memory, and so in every checkpoint of the
    position in the data, and knows no rows that vary at random (word dropout).

    Args:
      cfg: t5x's `DatasetConfig`; its `seed` must be set, and `shuffle` is taken to be.
      shard_id, num_shards: of this process, as t5x has them.
      feature_converter_cls, num_epochs, continue_from_last_checkpoint: as t5x gives them; batches
        are of `T5xFeatureConverter` and never end.

    Raises:
      ConfigError: no seed, no such task, or a batch that the shards do not divide.
    """
    del feature_converter_cls, num_epochs, continue_from_last_checkpoint
    if cfg.seed is None:
        raise ConfigError("train/utils.DatasetConfig.seed = None; set DATA_SEED to a number")
    if cfg.batch_size % num_shards:
        raise ConfigError(
            f"BATCH_SIZE = {cfg.batch_size} must be a multiple of the {num_shards} processes that "
            "load data"
        )
    batches = training_shard(
        find_provider(cfg.mixture_or_task_name),
        cfg.task_feature_lengths,
        cfg.batch_size // num_shards,
        split=cfg.split,
        seed=cfg.seed,
        shard=shard_id,
        num_shards=num_shards,
        pack=cfg.pack,
    )
    return _without_counts(batches)


@gin.configurable
def row_inputs(
    batch_size: int | None,
    output_features: Any,
    task_feature_lengths: Mapping[str, int],
    tokenized_inputs: bool,
) -> tuple[Callable[..., dict[str, tf.Tensor]], Sequence[tf.TensorSpec]]:
    """Inputs of the exported function, by the features' own names.

    Args:
      batch_size: None: any.
      output_features, tokenized_inputs: of t5x; unused, tokens are the only inputs.
      task_feature_lengths: `{"inputs": S, "targets": T}`.

    Returns:
      A function of the inputs that names them, and their specs, `[batch, length]` each.
    """
    del output_features, tokenized_inputs
    lengths = T5xFeatureConverter().get_model_feature_lengths(task_feature_lengths)
    specs = [
        tf.TensorSpec([batch_size, lengths[name]], tf.as_dtype(feature.dtype), name=name)
        for name, feature in MODEL_FEATURES.items()
    ]

    def named(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(MODEL_FEATURES, inputs, strict=True))

    return named, specs


def _without_counts(rows: tf.data.Dataset) -> tf.data.Dataset:
    def of_model(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: values for name, values in row.items() if name not in COUNT_FEATURES}

    return rows.map(of_model, num_parallel_calls=tf.data.AUTOTUNE)

"""`m6rec compress structure`: fewer heads, feed-forward columns and layers, which is faster.

What goes is what the loss depends on least, to first order: of a gate at 1 on a head, or a column,
the derivative is the sum of its weights on the way out times their gradients (Michel et al., 2019;
Molchanov et al., 2019). Layers of a tower are stacked, so each keeps as many heads and columns;
which ones is up to the layer. Heads of self-attention are the same ones in all layers where these
share one table of position biases, which has a column for each head.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.compression.run_folder import training_batches_of, write_run
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.engine.model_folder import (
    RestoredModel,
    read_vocabulary,
    restore_model,
)
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.atomic import check_new
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.objectives import mean_loss, total_loss
from m6rec_jax.pipeline.run_vocabulary import own_vocabulary
from m6rec_jax.training.data_state import Batch

SELF, CROSS, MLP = "self_attention", "cross_attention", "mlp"
# Weights that a head's, or a column's, output is multiplied with.
_WAYS_OUT = re.compile(
    rf"(?:params|prompts)/(encoder|decoder)/layers/"
    rf"(?:({SELF}|{CROSS})/(?:out/kernel|lora_out/a)|({MLP})/wo/kernel)"
)
_ROWS = 8  # of a batch: the smaller, the nearer to each row by itself
# `{(tower, part): [layers, heads or columns]}`; shared layers may be one.
Importance = Mapping[tuple[str, str], np.ndarray]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is left: heads and columns of each layer, layers of each tower; None: all."""

    num_heads: int | None = None
    mlp_dim: int | None = None
    num_encoder_layers: int | None = None
    num_decoder_layers: int | None = None


def compress_structure(
    run: Path,
    output: Path,
    sizes: Sizes,
    *,
    batches: int = 32,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
) -> ModelConfig:
    """Writes a run folder with a smaller model; training takes it as INITIAL_CHECKPOINT_PATH.

    Args:
      run: MODEL_DIR of a training run; its newest checkpoint.
      output: a new folder, which `load_model` opens.
      sizes: what is left.
      batches: of eight rows of the run's training data, which importance is measured on; 0: norms
        of weights, without data.
      gin_files, bindings: settings beside the run's own, such as `data_dir.path`.

    Returns:
      The smaller model's configuration.

    Raises:
      ConfigError: sizes beyond those of the model, `batches` below 0, or above it of a run without
        `config.gin`.
      CheckpointError: no run, a packed one, or something in `output`.
      DataError: the run's data are not on this machine.
    """
    if batches < 0:
        raise ConfigError(f"batches = {batches} must not be negative")
    check_new(output)
    open_checkpoint(run)  # raises for a packed file, which can be restored, too
    restored = restore_model(run)
    config = _smaller(restored.model.config, sizes)
    if batches:
        with own_vocabulary(run):  # rows are read as they are asked for
            source = training_batches_of(run, _ROWS, gin_files, bindings)
            importance = _importance_of_data(restored, itertools.islice(source, batches))
    else:
        importance = _importance_of_weights(restored.variables)
    config, variables = compressed(restored.model.config, restored.variables, importance, sizes)
    file, settings = run / CONFIG_FILE, None
    if file.is_file():
        settings = _with_sizes(file.read_text(), restored.model.config, config)
    vocabulary = read_vocabulary(run)
    write_run(output, run, restored.step, config, variables, vocabulary, settings)
    return config


def compressed(
    config: ModelConfig, variables: Mapping[str, Any], importance: Importance, sizes: Sizes
) -> tuple[ModelConfig, dict[str, Any]]:
    """The smaller model and its variables `{'params': ..., 'prompts': ...}`; see the module."""
    kept = {tower: _kept(config, tower, importance, sizes) for tower in ("encoder", "decoder")}
    new = _smaller(config, sizes)
    if config.late_layers_start:
        late = {
            "late_layers_start": sum(i < config.late_layers_start for i in kept["encoder"].layers),
            "decoder_late_start": sum(i < config.first_cross_layer for i in kept["decoder"].layers),
        }
        if not late["late_layers_start"] or late["decoder_late_start"] == new.num_decoder_layers:
            raise ConfigError(
                "no early encoder layer, or no late decoder layer, would be left of a model with "
                f"late interaction (late_layers_start = {config.late_layers_start}): keep more"
            )
        new = new.replace(**late)
    axes = _axes(config)
    found = {
        name: _sliced(name, axes[name], np.asarray(leaf), kept)
        for name, leaf in flatten(dict(variables)).items()
    }
    return new, nested(found)


@dataclass(frozen=True, slots=True)
class _Kept:
    """Numbers of what is left of a tower: layers, and of each layer (`[layers, ...]`) by part."""

    layers: list[int]
    parts: Mapping[str, np.ndarray]


def _kept(config: ModelConfig, tower: str, importance: Importance, sizes: Sizes) -> _Kept:
    own = {part: found for (where, part), found in importance.items() if where == tower}
    depth = getattr(config, f"num_{tower}_layers")
    num_layers = getattr(sizes, f"num_{tower}_layers") or depth
    if config.share_layers:  # there is nothing to tell them apart by
        layers = list(range(num_layers))
    else:
        of_layers = sum(found.sum(axis=1) for found in own.values())
        layers = sorted(np.argsort(-of_layers, kind="stable")[:num_layers].tolist())
    parts = {}
    for part, found in own.items():
        if config.share_layers or (part == SELF and not config.per_layer_relative_bias):
            rows = found if config.share_layers else found[layers]
            found = np.broadcast_to(rows.sum(axis=0), found.shape)
        count = (sizes.mlp_dim if part == MLP else sizes.num_heads) or found.shape[1]
        parts[part] = np.sort(np.argsort(-found, axis=1, kind="stable")[:, :count], axis=1)
    return _Kept(layers, parts)


def _sliced(
    name: str, axes: tuple[str, ...], leaf: np.ndarray, kept: Mapping[str, _Kept]
) -> np.ndarray:
    """What is left of a leaf, whose name begins with its collection and tower."""
    tower = name.split("/")[1]
    if tower not in kept:
        return leaf
    # Biases of positions are of self-attention.
    part = next((part for part in (CROSS, MLP) if f"/{part}/" in name), SELF)
    numbers = kept[tower].parts[part]
    axis = next((place for place, one in enumerate(axes) if one in ("heads", "mlp")), None)
    if axes[0] != "layers":
        return leaf if axis is None else np.take(leaf, numbers[0], axis=axis)
    layers = kept[tower].layers if len(leaf) > 1 else [0]
    if axis is None:
        return leaf[layers]
    rows = [numbers[min(layer, len(numbers) - 1)] for layer in layers]
    own = [np.take(leaf[i], row, axis=axis - 1) for i, row in zip(layers, rows, strict=True)]
    return np.stack(own)


def _axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Names of leaves' axes, by the names of `flatten`."""
    boxed = abstract_variables(config)
    boxes = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda node: isinstance(node, nn.meta.Partitioned)
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(box.names)
        for path, box in boxes
    }


def _smaller(config: ModelConfig, sizes: Sizes) -> ModelConfig:
    """The configuration, but for late interaction. Raises ConfigError for sizes it has not."""
    changes = {}
    for name in Sizes.__dataclass_fields__:
        wanted, most = getattr(sizes, name), getattr(config, name)
        if wanted is None:
            continue
        if not 1 <= wanted <= most:
            raise ConfigError(f"{name} = {wanted}: the model has {most}, of which 1 to {most} stay")
        changes[name] = wanted
    start = config.late_layers_start
    late = {"late_layers_start": 0, "decoder_late_start": None} if start else {}
    return config.replace(**changes, **late)


def _importance_of_data(restored: RestoredModel, batches: Iterable[Batch]) -> Importance:
    """Sum over batches of |Σ weight · gradient|."""
    derivatives = jax.jit(functools.partial(gate_derivatives, restored.model))
    totals: dict[tuple[str, str], Any] = {}
    for batch in batches:
        found = derivatives(dict(restored.variables), batch)
        totals = {key: totals.get(key, 0.0) + np.abs(value) for key, value in found.items()}
    return totals


def gate_derivatives(
    model: M6Rec, variables: Mapping[str, Any], features: Mapping[str, Any]
) -> dict[tuple[str, str], jax.Array]:
    """Of the loss by gates on heads and columns, all of them open (at 1); keys: `Importance`."""
    gradient = jax.grad(lambda given: mean_loss(total_loss(model, given, features)[0]))(variables)
    return _summed(jax.tree.map(jnp.multiply, variables, gradient))


def _importance_of_weights(variables: Mapping[str, Any]) -> Importance:
    squares = jax.tree.map(jnp.square, dict(variables))
    return {key: np.sqrt(np.asarray(value)) for key, value in _summed(squares).items()}


def _summed(products: Mapping[str, Any]) -> dict[tuple[str, str], jax.Array]:
    """Sums over all that a head, or a column, is multiplied with: `[layers, heads or columns]`."""
    found: dict[tuple[str, str], jax.Array] = {}
    for name, leaf in flatten(products).items():
        if match := _WAYS_OUT.fullmatch(name):
            key = (match[1], match[2] or match[3])
            axis = 2 if name.startswith("prompts") else 1  # after that of tasks
            others = tuple(place for place in range(1, leaf.ndim) if place != axis)
            found[key] = found.get(key, jnp.float32(0.0)) + leaf.sum(axis=others)
    return found


def _with_sizes(text: str, old: ModelConfig, new: ModelConfig) -> str:
    """A run's gin settings with another model's sizes."""
    names = [*Sizes.__dataclass_fields__, "late_layers_start", "decoder_late_start"]
    for name in names:
        value = getattr(new, name)
        if value == getattr(old, name):
            continue
        setting = rf"^((?:\w+/)*ModelConfig\.{name}) = .*$"
        text, count = re.subn(setting, rf"\1 = {value!r}", text, flags=re.MULTILINE)
        if not count:
            text += f"\nModelConfig.{name} = {value!r}\n"
    return text

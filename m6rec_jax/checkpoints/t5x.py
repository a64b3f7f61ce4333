"""t5x checkpoints of T5 models, in and out, as t5x/examples/t5 and scalable_t5 have them.

What is read may be laid out either way. What is written is scalable_t5's where every layer has its
own relative position bias, which the other cannot have.

A t5x checkpoint does not say what model it is of, but its shapes do, all but the activations: one
input matrix in the feed-forward layer is T5 1.0's ReLU, two are T5 1.1's gated GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m6rec_jax.checkpoints.t5_weights import (
    Weights,
    foreign_entries,
    gather,
    leaf_shapes,
    plain_config,
)
from m6rec_jax.checkpoints.t5x_files import checkpoint_folder, read_t5x_files, write_t5x_files
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model.config import ModelConfig


def read_t5x(path: Path) -> Weights:
    """A backbone from a t5x checkpoint.

    Args:
      path: its folder, or a folder of several (then the newest).

    Raises:
      CheckpointError: none there, damaged, another kind of model, or a tensor that has no place, is
        missing or has another shape; named.
    """
    folder = checkpoint_folder(path)
    arrays, where = read_t5x_files(folder), str(folder)
    config, scanned, joined = _config_of(arrays, where)
    entries = foreign_entries(config, scanned=scanned, joined=joined)
    leaves = gather(entries, leaf_shapes(config), arrays, where)
    note = f"activations are not in the files; taken for {' and '.join(config.mlp_activations)}"
    return Weights(config, leaves, (note,))


def write_t5x(weights: Weights, path: Path, *, step: int = 0, scanned: bool = False) -> Path:
    """Writes a t5x checkpoint, float32, without optimizer state; returns its folder.

    Args:
      weights: the backbone.
      path: `checkpoint_STEP` is made in it.
      step: of the checkpoint.
      scanned: all layers of a tower in one tensor, for t5x's scalable_t5.

    Raises:
      ConfigError: the model has something that T5 has not there.
      CheckpointError: the folder exists or cannot be written to.
    """
    joined = not weights.config.per_layer_relative_bias
    entries = foreign_entries(weights.config, scanned=scanned, joined=joined)
    arrays = {entry.name: entry.outward(weights.leaves[entry.leaf]) for entry in entries}
    return write_t5x_files(arrays, path, step)


def _config_of(arrays: Mapping[str, np.ndarray], where: str) -> tuple[ModelConfig, bool, bool]:
    """The model that a checkpoint's shapes are of; are layers scanned, are heads joined?"""
    scanned = any(name.startswith("target.encoder.encoder.") for name in arrays)
    first = "target.encoder." + ("encoder" if scanned else "layers_0")
    # Axis 1 holds the layers where they are scanned.
    last = 2 if scanned else 1
    per_layer = f"{first}.relpos_bias.rel_embedding" in arrays
    gated = f"{first}.mlp.wi_0.kernel" in arrays
    bias = f"{first if per_layer else 'target.encoder'}.relpos_bias.rel_embedding"

    def num_layers(tower: str) -> int:
        if scanned:
            return arrays[f"target.{tower}.{tower}.mlp.wo.kernel"].shape[1]
        prefix = f"target.{tower}.layers_"
        return len({name.split(".")[2] for name in arrays if name.startswith(prefix)})

    try:
        vocab_size, embed_dim = arrays["target.token_embedder.embedding"].shape
        num_heads, num_buckets = arrays[bias].shape[0], arrays[bias].shape[last]
        heads = arrays[f"{first}.attention.query.kernel"].shape[last:]
        joined = len(heads) == 1
        config = plain_config(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            num_encoder_layers=num_layers("encoder"),
            num_decoder_layers=num_layers("decoder"),
            num_heads=num_heads,
            head_dim=heads[0] // num_heads if joined else heads[1],
            mlp_dim=arrays[f"{first}.mlp.wo.kernel"].shape[0],
            mlp_activations=("gelu", "linear") if gated else ("relu",),
            relative_attention_num_buckets=num_buckets,
            per_layer_relative_bias=per_layer,
            logits_via_embedding="target.decoder.logits_dense.kernel" not in arrays,
        )
    except KeyError as error:
        raise CheckpointError(f"{where} is not of a T5: it has no tensor {error}") from error
    except (IndexError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{where} is not of a T5: {error}") from error
    return config, scanned, joined

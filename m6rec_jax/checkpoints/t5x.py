"""t5x checkpoints of T5 models, in and out, as t5x/examples/t5 and scalable_t5 have them.

What is read may be laid out either way. What is written is scalable_t5's where every layer has its
own relative position bias, which the other cannot have.

A t5x checkpoint does not say what model it is of, but its shapes do, all but the activations: one
input matrix in the feed-forward layer is T5 1.0's ReLU, two are T5 1.1's gated GELU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.checkpoints.manifest import TensorSpec
from m6rec_jax.checkpoints.t5_names import Entry, t5x_entries
from m6rec_jax.checkpoints.t5_tensors import (
    Weights,
    check_match,
    gather,
    leaf_shapes,
    mapping_table,
    plain_config,
)
from m6rec_jax.checkpoints.t5x_files import open_t5x, write_t5x_files
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model.config import ModelConfig

_LAYER = re.compile(r"target\.(encoder|decoder)\.layers_([0-9]+)\.")
_SCANNED = re.compile(r"target\.(encoder\.encoder|decoder\.decoder)\.")


def read_t5x(path: Path, *, with_values: bool = True) -> Weights:
    """A backbone from a t5x checkpoint.

    Args:
      path: its folder, or a folder of several (then the newest).
      with_values: False: only what would be read, its mapping included.

    Raises:
      CheckpointError: none there, damaged, another kind of model, or a tensor that has no place, is
        missing or has another shape; named.
    """
    files = open_t5x(path)
    where = str(files.folder)
    config, scanned, joined = _config_of(files.found, where)
    shapes = leaf_shapes(config)
    entries = t5x_entries(config, shapes, scanned=scanned, joined=joined)
    check_match(entries, files.found, where)
    leaves = gather(entries, shapes, files.read) if with_values else {}
    note = f"activations are not in the files; taken for {' and '.join(config.mlp_activations)}"
    mapping = mapping_table(entries, files.found, shapes)
    return Weights(config, leaves, (note,), mapping=mapping)


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
    arrays = {
        entry.name: entry.outward(weights.leaves[entry.leaf])
        for entry in _entries(weights, scanned)
    }
    return write_t5x_files(arrays, path, step)


def t5x_mapping(weights: Weights, *, scanned: bool = False) -> str:
    """The mapping that `write_t5x` uses, as text."""
    return mapping_table(_entries(weights, scanned), {}, leaf_shapes(weights.config))


def _config_of(found: Mapping[str, TensorSpec], where: str) -> tuple[ModelConfig, bool, bool]:
    """The model that a checkpoint's shapes are of; are layers scanned, are heads joined?"""
    scanned = any(map(_SCANNED.match, found))
    inner = "encoder" if scanned else "layers_0"
    # Axis 1 holds the layers where they are scanned.
    last = 2 if scanned else 1
    bias_names = (f"target.encoder.{inner}.relpos_bias", "target.encoder.relpos_bias")
    per_layer = any(name.startswith(f"{bias_names[0]}.") for name in found)
    bias = f"{bias_names[0] if per_layer else bias_names[1]}.rel_embedding"
    gated = any(".mlp.wi_0." in name for name in found)
    first = f"target.encoder.{inner}"
    try:
        vocab_size, embed_dim = found["target.token_embedder.embedding"].shape
        num_heads, num_buckets = found[bias].shape[0], found[bias].shape[last]
        heads = found[f"{first}.attention.query.kernel"].shape[last:]
        joined = len(heads) == 1
        return (
            plain_config(
                vocab_size=vocab_size,
                embed_dim=embed_dim,
                num_encoder_layers=_num_layers(found, "encoder", scanned),
                num_decoder_layers=_num_layers(found, "decoder", scanned),
                num_heads=num_heads,
                head_dim=heads[0] // num_heads if joined else heads[1],
                mlp_dim=found[f"{first}.mlp.wo.kernel"].shape[0],
                mlp_activations=("gelu", "linear") if gated else ("relu",),
                relative_attention_num_buckets=num_buckets,
                per_layer_relative_bias=per_layer,
                logits_via_embedding="target.decoder.logits_dense.kernel" not in found,
            ),
            scanned,
            joined,
        )
    except KeyError as error:
        raise CheckpointError(f"{where} is not of a T5: it has no tensor {error}") from error
    except (IndexError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{where} is not of a T5: {error}") from error


def _num_layers(found: Mapping[str, TensorSpec], tower: str, scanned: bool) -> int:
    if scanned:
        return found[f"target.{tower}.{tower}.mlp.wo.kernel"].shape[1]
    matches = map(_LAYER.match, found)
    numbers = [int(match[2]) for match in matches if match and match[1] == tower]
    return 1 + max(numbers, default=-1)


def _entries(weights: Weights, scanned: bool) -> list[Entry]:
    config = weights.config
    joined = not config.per_layer_relative_bias
    return t5x_entries(config, leaf_shapes(config), scanned=scanned, joined=joined)

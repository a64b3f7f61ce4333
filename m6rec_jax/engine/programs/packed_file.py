"""What a packed model's archive holds, as configuration and variables.

Weights come back as bytes with scales beside them (`model.quantization`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from m6rec_jax.checkpoints.manifest import read_model_config
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.programs.packed_archive import Archive
from m6rec_jax.model import ModelConfig
from m6rec_jax.model.quantization import BITS, SCALE, dequantized, quantized, scaled_axes

_BACKBONE = "params/"


def quantized_variables(variables: Mapping[str, Any], bits: int = BITS) -> dict[str, Any]:
    """Variables with the backbone's weights as bytes of so many bits, and scales beside them."""
    found = {}
    for name, leaf in flatten(dict(variables)).items():
        axes = scaled_axes(name.removeprefix(_BACKBONE)) if name.startswith(_BACKBONE) else ()
        found[name] = leaf
        if axes:
            found[name], found[name + SCALE] = quantized(leaf, axes, bits)
    return nested(found)


def float_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables with bytes times scales, for what cannot multiply bytes itself."""
    flat = flatten(dict(variables))
    return nested(
        {
            name: dequantized(leaf, flat[name + SCALE]) if name + SCALE in flat else leaf
            for name, leaf in flat.items()
            if name.removesuffix(SCALE) == name or name.removesuffix(SCALE) not in flat
        }
    )


def packed_config(archive: Archive) -> ModelConfig:
    """The model's; raises CheckpointError where a newer m6rec_jax has packed it."""
    manifest = archive.manifest
    return read_model_config(manifest["model"], manifest["versions"]["m6rec_jax"])


def packed_variables(archive: Archive) -> dict[str, Any]:
    """`{'params': ..., 'prompts': ...}` of numpy arrays: int8 weights, float16 scales, float32 for
    the rest.
    """
    return nested(
        {
            name: leaf if leaf.dtype == np.int8 or name.endswith(SCALE) else leaf.astype(np.float32)
            for name, leaf in archive.leaves.items()
        }
    )

"""A model in one file (`packed_archive`): sparse weights of 8 bits, vocabulary and settings.

Weights come back as bytes with scales beside them (`model.quantization`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.checkpoints.manifest import library_versions, read_model_config
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.programs.packed_archive import Archive, read_archive, write_archive
from m6rec_jax.model import ModelConfig
from m6rec_jax.model.quantization import BITS, SCALE, dequantized, quantized, scaled_axes

_BACKBONE = "params/"


@dataclasses.dataclass(frozen=True)
class Packed:
    """What a file holds.

    Attributes:
      config: of the model.
      variables: `{'params': ..., 'prompts': ...}` of numpy arrays: int8 weights, float16 scales,
        float32 for the rest.
      step: of the checkpoint that was packed.
      files: by path, what a run's folder has beside its checkpoints, `inference/...`; `data/...`.
      about: for people: `trained_on`, by data set its description, licence and provenance; and
        `limits`, what the model cannot do.
    """

    config: ModelConfig
    variables: dict[str, Any]
    step: int
    files: Mapping[str, bytes]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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


def write_packed(path: Path, packed: Packed) -> None:
    """Writes a file of variables as `quantized_variables` gives them."""
    manifest = {
        "versions": library_versions(),
        "model": dataclasses.asdict(packed.config),
        "step": packed.step,
        "about": dict(packed.about),
    }
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(packed.variables).items()}
    write_archive(path, Archive(manifest, leaves, dict(packed.files)))


def read_packed(path: str | Path) -> Packed:
    """Opens a file.

    Raises:
      CheckpointError: it is no such file, is truncated or damaged, or of a newer version.
    """
    archive = read_archive(path)
    manifest = archive.manifest
    config = read_model_config(manifest["model"], manifest["versions"]["m6rec_jax"])
    variables = {
        name: leaf if leaf.dtype == np.int8 or name.endswith(SCALE) else leaf.astype(np.float32)
        for name, leaf in archive.leaves.items()
    }
    step, about = int(manifest["step"]), manifest["about"]
    return Packed(config, nested(variables), step, archive.files, about)

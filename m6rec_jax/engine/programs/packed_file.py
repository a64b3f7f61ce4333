"""A model in one file: sparse weights of 8 bits, vocabulary and settings (`m6rec compress pack`).

    model.m6rec                    a zip archive, each entry by LZMA
      manifest.json                model's configuration, names and shapes of leaves, SHA-256
      zeros, values                a bit for each weight, and the bytes of those that are not zero
      floats                       all else as float16: scales, norms, position biases, prompts
      inference/...                as in a run's folder
      data/...                     with `--catalogue`, prepared data to answer requests with

The manifest says which data the model was trained on, on what terms, and what it cannot do.
Weights come back as bytes with scales beside them (`model.quantization`).
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.checkpoints.manifest import library_versions, read_model_config
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.programs.packed_archive import (
    FLOATS,
    FORMAT,
    MANIFEST,
    VALUES,
    ZEROS,
    read_archive,
)
from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.atomic import atomic_file
from m6rec_jax.io.hashing import sha256
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
    """Writes a file of variables as `quantized_variables` gives them.

    Raises CheckpointError where it cannot be written.
    """
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(packed.variables).items()}
    weights = [leaf.ravel() for leaf in leaves.values() if leaf.dtype == np.int8]
    every = np.concatenate(weights)
    floats = [leaf.ravel().astype("<f2") for leaf in leaves.values() if leaf.dtype != np.int8]
    entries = {
        ZEROS: np.packbits(every == 0).tobytes(),
        VALUES: every[every != 0].tobytes(),
        FLOATS: np.concatenate(floats).tobytes(),
        **packed.files,
    }
    manifest = {
        "format": FORMAT,
        "versions": library_versions(),
        "model": dataclasses.asdict(packed.config),
        "step": packed.step,
        "about": dict(packed.about),
        "leaves": {
            name: {"shape": leaf.shape, "int8": leaf.dtype == np.int8}
            for name, leaf in leaves.items()
        },
        "sha256": {name: sha256(data) for name, data in entries.items()},
    }
    try:
        with (
            atomic_file(path) as unfinished,
            zipfile.ZipFile(unfinished, "w", zipfile.ZIP_LZMA) as archive,
        ):
            archive.writestr(MANIFEST, json.dumps(manifest))
            for name, data in entries.items():
                archive.writestr(name, data)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error


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

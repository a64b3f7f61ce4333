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
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.checkpoints.manifest import library_versions, read_model_config
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.atomic import atomic_file
from m6rec_jax.io.hashing import sha256
from m6rec_jax.model import ModelConfig
from m6rec_jax.model.quantization import BITS, SCALE, dequantized, quantized, scaled_axes

FORMAT = 1
_MANIFEST, _ZEROS, _VALUES, _FLOATS = "manifest.json", "zeros", "values", "floats"
_BACKBONE = "params/"
_CARRIED = re.compile(r"(inference|data)(/[\w.\-]+)+")
# What zipfile, lzma and numpy raise at bytes that nobody packed.
_DAMAGE = (
    *(zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, struct.error, RuntimeError),
    *(ValueError, KeyError, TypeError, AttributeError),
)


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
        _ZEROS: np.packbits(every == 0).tobytes(),
        _VALUES: every[every != 0].tobytes(),
        _FLOATS: np.concatenate(floats).tobytes(),
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
            archive.writestr(_MANIFEST, json.dumps(manifest))
            for name, data in entries.items():
                archive.writestr(name, data)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error


def read_packed(path: str | Path) -> Packed:
    """Opens a file.

    Raises:
      CheckpointError: it is no such file, is truncated or damaged, or of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(found.pop(_MANIFEST))
        if manifest["format"] > FORMAT:
            raise CheckpointError(f"{path} was packed by a newer m6rec_jax; update this one")
        if {name: sha256(data) for name, data in found.items()} != manifest["sha256"]:
            raise CheckpointError(f"{path} is damaged: its parts are not those that were packed")
        parts = [found.pop(name) for name in (_ZEROS, _VALUES, _FLOATS)]
        for name in found:
            # They are written to a folder, and must stay in it.
            if not _CARRIED.fullmatch(name) or ".." in name:
                raise CheckpointError(f"{path} holds {name!r}, which no packed model has")
        config = read_model_config(manifest["model"], manifest["versions"]["m6rec_jax"])
        variables = nested(dict(_leaves(manifest["leaves"], *parts)))
        return Packed(config, variables, int(manifest["step"]), found, manifest["about"])
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} is no packed model, or is truncated or damaged: {error}"
        ) from error


def _leaves(
    specs: Mapping[str, Any], zeros: bytes, values: bytes, floats: bytes
) -> Iterator[tuple[str, np.ndarray]]:
    count = sum(math.prod(spec["shape"]) for spec in specs.values() if spec["int8"])
    alive = np.unpackbits(np.frombuffer(zeros, np.uint8), count=count) == 0
    weights = np.zeros(count, np.int8)
    weights[alive] = np.frombuffer(values, np.int8)
    others = np.frombuffer(floats, "<f2")
    for name, spec in specs.items():
        size = math.prod(spec["shape"])
        if spec["int8"]:
            leaf, weights = weights[:size], weights[size:]
        else:
            leaf, others = others[:size], others[size:]
            leaf = leaf if name.endswith(SCALE) else leaf.astype(np.float32)
        yield name, leaf.reshape(spec["shape"])

"""`m6rec export --format stablehlo`: one folder of programs for CPUs, GPUs and TPUs.

Each program that the model's engines run on held-out rows is exported by `jax.export` with its
number of rows left open, for all platforms at once; weights are arguments, so programs share them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine import exported_programs
from m6rec_jax.engine.exported_programs import (
    FORMAT,
    HELD_OUT,
    OF_ROWS,
    PER_SOURCE,
    WEIGHTS,
)
from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.export.folder import write_manifest
from m6rec_jax.export.recording import Call, Recorded, Recorder
from m6rec_jax.export.titles import Titles

PLATFORMS = ("cpu", "cuda", "tpu")
LOADER = "load.py"


def write_stablehlo(
    folder: Path,
    model: LoadedModel,
    recorder: Recorder,
    platforms: Sequence[str] = PLATFORMS,
    titles: Titles | None = None,
    precision: str | None = None,
) -> None:
    """Writes programs, weights and held-out rows; the folder's `inference` is there already.

    Args:
      folder: to write into.
      model, recorder: the model, and what its engines were asked.
      platforms: of 'cpu', 'cuda', 'tpu', 'rocm'.
      titles: that its programs generate; None: they generate any text.
      precision: see `write_manifest`.
    """
    # Files of numpy have no bfloat16.
    model_weights = {
        name: np.asarray(x, np.float32 if x.dtype == jnp.bfloat16 else None)
        for name, x in flatten(model.variables).items()
    }
    weights: dict[str, Any] = dict(model_weights)
    (folder / "programs").mkdir()
    described = []
    for program in recorder.programs.values():
        weights |= program.constants
        call = next(call for call in recorder.calls if call.program == program.name)
        found = exported(program, model_weights | program.constants, call, platforms)
        file = f"programs/{program.name}.jax_export"
        (folder / file).write_bytes(found.serialize())
        described.append(
            {
                "name": program.name,
                "file": file,
                "inputs": _described(call.inputs, program.name),
                "outputs": _described(call.outputs, program.name),
            }
        )
    np.savez(folder / WEIGHTS, **weights)
    arrays: dict[str, Any] = {
        f"{number}/{call.program}/{kind}/{name}": value
        for number, call in enumerate(recorder.calls)
        for kind, values in (("inputs", call.inputs), ("outputs", call.outputs))
        for name, value in values.items()
    }
    np.savez_compressed(folder / HELD_OUT, **arrays)
    if titles is not None:
        titles.write(folder)
    shutil.copy(exported_programs.__file__, folder / LOADER)
    write_manifest(folder, FORMAT, model, platforms, precision, programs=described)


def exported(
    program: Recorded, weights: Mapping[str, np.ndarray], call: Call, platforms: Sequence[str]
) -> jax_export.Exported:
    scope = jax_export.SymbolicScope()
    inputs = {
        name: jax.ShapeDtypeStruct(
            jax_export.symbolic_shape(
                ", ".join(map(str, _shape(name, value, program.name))), scope=scope
            ),
            value.dtype,
        )
        for name, value in call.inputs.items()
    }
    own = {
        name: jax_export.symbolic_shape(shape, scope=scope)
        for name, shape in program.open_shapes.items()
    }
    shapes = {
        name: jax.ShapeDtypeStruct(own.get(name, x.shape), x.dtype) for name, x in weights.items()
    }
    return jax_export.export(jax.jit(program.function), platforms=platforms)(shapes, inputs)


def _shape(name: str, value: np.ndarray, program: str) -> tuple[int | str, ...]:
    """With 'b' for the number of sources, 'n' for that of each one's rows."""
    if program in OF_ROWS and name not in PER_SOURCE:
        return ("b", "n", *value.shape[2:])
    return ("b", *value.shape[1:])


def _described(arrays: Mapping[str, np.ndarray], program: str) -> dict[str, Any]:
    return {
        name: [list(_shape(name, value, program)), str(value.dtype)]
        for name, value in arrays.items()
    }

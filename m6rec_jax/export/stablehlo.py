"""`m6rec export --format stablehlo`: one folder of programs for CPUs, GPUs and TPUs.

Each program that the model's engines run on held-out rows is exported by `jax.export` with its
number of rows left open, for all platforms at once; weights are arguments, so programs share them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.model_folder import save_assets
from m6rec_jax.engine.programs import exported_programs
from m6rec_jax.engine.programs.exported_programs import FORMAT, HELD_OUT, OF_ROWS, WEIGHTS
from m6rec_jax.errors import ConfigError
from m6rec_jax.export.folder import write_manifest
from m6rec_jax.export.held_out import Asked
from m6rec_jax.export.recording import Call, Recorded

logger = logging.getLogger(__name__)

PLATFORMS = ("cpu", "cuda", "tpu")
CHECK = "load.py"


def write(folder: Path, asked: Asked) -> None:
    """Writes `inference`, programs, weights, held-out rows and what reads them.

    Raises:
      ConfigError: tasks of one data set read it by two templates.
    """
    model, recorder = asked.model, asked.recorder
    specs: dict[str, Any] = {}
    for name, settings in model.settings.tasks.items():
        spec = model.dataset_spec(name)
        if spec is not None and specs.setdefault(settings.prepared, spec) != spec:
            raise ConfigError(
                f"{name!r} reads {settings.prepared} by another template than a task before it: "
                "export them one by one"
            )
    save_assets(folder, model.vocabulary, model.settings, specs)
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
        found = exported(program, model_weights | program.constants, call, asked.platforms)
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
    if asked.titles is not None:
        asked.titles.write(folder)
    shutil.copy(exported_programs.__file__, folder / CHECK)
    write_manifest(folder, FORMAT, model, asked.platforms, asked.precision, programs=described)


def exported(
    program: Recorded, weights: Mapping[str, np.ndarray], call: Call, platforms: Sequence[str]
) -> jax_export.Exported:
    logger.info("exporting %s for %s", program.name, ", ".join(platforms))
    scope = jax_export.SymbolicScope()
    inputs = {
        name: jax.ShapeDtypeStruct(
            jax_export.symbolic_shape(
                ", ".join(map(str, _shape(value, program.name))), scope=scope
            ),
            value.dtype,
        )
        for name, value in call.inputs.items()
    }
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    return jax_export.export(jax.jit(program.function), platforms=platforms)(shapes, inputs)


def _shape(value: np.ndarray, program: str) -> tuple[int | str, ...]:
    """With 'b' for the number of sources, 'n' for that of each one's rows."""
    if program in OF_ROWS and value.ndim == 3:
        return ("b", "n", *value.shape[2:])
    return ("b", *value.shape[1:])


def _described(arrays: Mapping[str, np.ndarray], program: str) -> dict[str, Any]:
    return {
        name: [list(_shape(value, program)), str(value.dtype)] for name, value in arrays.items()
    }

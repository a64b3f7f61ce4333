"""`m6rec export --format stablehlo`: one folder of programs for CPUs, GPUs and TPUs.

Each program that the model's engines run on held-out rows is exported by `jax.export` with its
number of rows left open, for all platforms at once; weights are arguments, so programs share them.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from m6rec_jax.checkpoints.manifest import library_versions
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine import exported_programs
from m6rec_jax.engine.exported_programs import (
    FORMAT,
    HELD_OUT,
    MANIFEST,
    OF_ROWS,
    PER_SOURCE,
    WEIGHTS,
)
from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.errors import DataError
from m6rec_jax.export.recording import Call, Recorded, Recorder
from m6rec_jax.io.hashing import file_sha256

PLATFORMS = ("cpu", "cuda", "tpu")
LOADER = "load.py"
# Of the largest number: float32 sums in another order; bfloat16 operands round to 2^-8 of theirs.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}


def write_stablehlo(
    folder: Path, model: LoadedModel, recorder: Recorder, platforms: Sequence[str] = PLATFORMS
) -> None:
    """Writes programs, weights and held-out rows; the folder's `inference` is there already.

    Args:
      folder: to write into.
      model, recorder: the model, and what its engines were asked.
      platforms: of 'cpu', 'cuda', 'tpu', 'rocm'.
    """
    model_weights = {name: np.asarray(x) for name, x in flatten(model.variables).items()}
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
    shutil.copy(exported_programs.__file__, folder / LOADER)
    config = model.model.config
    tasks = model.settings.tasks
    manifest = {
        "format": FORMAT,
        "date": datetime.date.today().isoformat(),
        "model": dataclasses.asdict(config),
        "step": model.step,
        "fingerprints": {name: model.fingerprint(name) for name in tasks},
        "platforms": list(platforms),
        "versions": library_versions(),
        "tolerance": TOLERANCES[config.matmul_dtype or config.dtype],
        "programs": described,
        "files": {
            str(path.relative_to(folder)): file_sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def verify(folder: Path) -> dict[str, dict[str, float]]:
    """Checks an export in a process of its own, and notes the result in its manifest.

    Raises:
      DataError: it does not give what the model gives, or needs more than jax.
    """
    # -I: neither this folder nor the user's own packages.
    command = [sys.executable, "-I", str(folder / LOADER)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"the export does not run: {done.stderr.strip().splitlines()[-1:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    manifest = exported_programs.read_manifest(folder)
    for name, result in found["results"].items():
        if not result["largest_difference"] <= manifest["tolerance"]:
            raise DataError(
                f"the exported program {name!r} differs from the model by "
                f"{result['largest_difference']:.2g} of the largest number; "
                f"{manifest['tolerance']:g} is allowed"
            )
    if found["imported"]:
        raise DataError(f"the export imports {', '.join(found['imported'])}")
    manifest["verified"] = found
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    results: dict[str, dict[str, float]] = found["results"]
    return results


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
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
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

"""Programs of a model, as `m6rec export --format stablehlo` writes them; needs jax, flatbuffers.

    exported = Exported("exported/films")
    found = exported.run("score", {"encoder_input_tokens": ..., ...})     # arrays in, arrays out

Every export has a copy of this file, `load.py`: `python exported/films/load.py` runs the programs
on the rows that the export was checked with, and compares. A row may be shorter than the program's,
and there may be any number of rows. Programs are compiled once for each number of rows: pad it
where requests vary.

    EXPORT/
      export.json      programs with their arguments, tasks, fingerprints, versions, checksums
      weights.npz        arrays by name, shared by all programs
      programs/          StableHLO for every platform, as `jax.export` serialises it
      held_out.npz       rows and the model's own answers
      titles.json        where programs generate titles of a catalogue: what `entries` and `seen`
                         number
      inference/         the vocabulary, templates and settings of tasks, as a run has them
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

FORMAT = "m6rec-stablehlo-5"
MANIFEST, WEIGHTS, HELD_OUT = "export.json", "weights.npz", "held_out.npz"
CONSTANTS = "constants"
# Programs that read several decoder rows of each source: their arrays of three axes are of rows.
OF_ROWS = ("score", "likelihood")
# What fills up an input: no rank of a title is as large.
NOTHING = {"seen": 2**31 - 1}


class ExportError(ValueError):
    """An export is damaged, or is asked for what it has not."""


class Exported:
    """An export that was opened and checked.

    Args:
      folder: of `m6rec export --format stablehlo`.

    Raises:
      ExportError: there is none, or a file is missing, truncated or changed; names it.

    Attributes:
      manifest: what `export.json` holds.
      programs: by name, in the manifest's order: `file`, and `inputs` and `outputs`, shape and type
        of each array; sizes are numbers, or 'b' (rows) and 'n' (decoder rows of each).
      weights: arrays by name.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            self.manifest = json.loads(path.read_text("utf-8"))
            format_ = self.manifest["format"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ExportError(f"{folder} is no export of a model: {path}: {error}") from error
        if format_ != FORMAT:
            raise ExportError(f"{path} is of format {format_!r}; this reads {FORMAT!r}")
        for name, checksum in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file() or _sha256(path) != checksum:
                raise ExportError(f"{path} is missing or damaged; export the model anew")
        self.programs = {program["name"]: program for program in self.manifest["programs"]}
        with np.load(self.folder / WEIGHTS) as file:
            self.weights = {name: jax.device_put(file[name]) for name in file.files}
        self._compiled: dict[str, Any] = {}

    def run(self, name: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs a program; rows that are shorter than its own are padded.

        Raises:
          ExportError: no such program, or arrays that do not fit.
        """
        if name not in self.programs:
            raise ExportError(
                f"{self.folder} has no program {name!r}, but {', '.join(self.programs)}"
            )
        program = self.programs[name]
        if name not in self._compiled:
            exported = jax.export.deserialize(
                bytearray((self.folder / program["file"]).read_bytes())
            )
            self._compiled[name] = jax.jit(exported.call)
        # The model's, and the program's own constants.
        weights = {
            key: value
            for key, value in self.weights.items()
            if not key.startswith(f"{CONSTANTS}/") or key.startswith(f"{CONSTANTS}/{name}/")
        }
        outputs = self._compiled[name](weights, _padded(program, inputs))
        return {key: np.asarray(value) for key, value in outputs.items()}

    def held_out(self) -> list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """(program, inputs, the model's outputs) of the rows that the export was checked with."""
        with np.load(self.folder / HELD_OUT) as file:
            calls: dict[str, tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
            for key in file.files:
                number, program, kind, name = key.split("/", 3)
                _, inputs, outputs = calls.setdefault(number, (program, {}, {}))
                (inputs if kind == "inputs" else outputs)[name] = file[key]
        return list(calls.values())

    def check(self) -> dict[str, dict[str, float]]:
        """Runs all programs on the held-out rows, beside what the model itself computed.

        Returns:
          By program: `rows`, `largest_difference` of its numbers, relative to the largest number,
          and `equal`, the share of rows all of whose whole numbers (tokens, say) are the same.
        """
        results: dict[str, dict[str, float]] = {}
        for name, inputs, outputs in self.held_out():
            found = self.run(name, inputs)
            own = results.setdefault(name, {"rows": 0, "largest_difference": 0.0, "equal": 1.0})
            # Others are padding.
            filled = _any(next(v for k, v in inputs.items() if k.endswith("coder_input_tokens")))
            same = np.ones(len(filled), bool)
            for key, expected in outputs.items():
                if expected.dtype.kind in "iub":
                    same &= ~_any(found[key] != expected)
                else:
                    unlike = found[key] != expected  # -inf may be in both
                    apart = np.abs(found[key][unlike] - expected[unlike]).max(initial=0.0)
                    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
                    own["largest_difference"] = float(
                        np.maximum(own["largest_difference"], apart / largest)
                    )
            rows = own["rows"] + int(filled.sum())
            own["equal"] = (own["equal"] * own["rows"] + int(same[filled].sum())) / rows
            own["rows"] = rows
        return results


def _padded(program: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inputs with every row as long as the program's; raises ExportError where they do not fit."""
    if inputs.keys() != program["inputs"].keys():
        raise ExportError(
            f"{program['name']} takes {', '.join(sorted(program['inputs']))}, not "
            f"{', '.join(sorted(inputs)) or 'nothing'}"
        )
    padded = {}
    for name, (shape, dtype) in program["inputs"].items():
        value = np.asarray(inputs[name], dtype)
        sizes = zip(shape, value.shape, strict=False)
        missing = [size - there if isinstance(size, int) else 0 for size, there in sizes]
        if value.ndim != len(shape) or min(missing, default=0) < 0:
            raise ExportError(
                f"{program['name']}: {name} has shape {value.shape}, which does not fit {shape}"
            )
        widths = [(0, number) for number in missing]
        padded[name] = np.pad(value, widths, constant_values=NOTHING.get(name, 0))
    return padded


def _any(values: np.ndarray) -> np.ndarray:
    """Which rows hold anything but zeros, bool `[rows]`."""
    return np.any(values.reshape(len(values), -1), axis=1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> str | None:
    """Checks the export that this file lies in; prints JSON. Returns what is wrong, if anything."""
    exported = Exported(Path(__file__).resolve().parent)
    manifest, results = exported.manifest, exported.check()
    found = {
        "results": results,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "imported": sorted({"flax", "m6rec_jax", "tensorflow"} & set(sys.modules)),
    }
    print(json.dumps(found))
    wrong = [
        name
        for name, own in results.items()
        if not own["largest_difference"] <= manifest["tolerance"]
        or own["equal"] < manifest["equal_texts"]
    ]
    return f"not as the model answers: {', '.join(wrong)}" if wrong else None


if __name__ == "__main__":
    sys.exit(main())

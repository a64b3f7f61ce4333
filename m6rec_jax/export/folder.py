"""What folders of all formats share: a manifest with checksums, and a check that runs by itself."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m6rec_jax.checkpoints.manifest import library_versions
from m6rec_jax.engine.model_folder import LoadedModel
from m6rec_jax.engine.programs.exported_programs import MANIFEST
from m6rec_jax.errors import DataError
from m6rec_jax.io.hashing import file_sha256

# Without this folder, and without `PYTHON*` of the environment. Packages of the user's site stay:
# the formats' own may be there.
PYTHON = (sys.executable, "-E", "-P")
# Of the largest number: float32 sums in another order; bfloat16 operands round to 2^-8 of theirs;
# bytes are judged by `AUC_LOSS`, too.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2, "int8": 0.05}
# Texts that must be the same: where two tokens are nearly as likely, rounding may choose.
EQUAL_TEXTS = {"float32": 1.0, "bfloat16": 0.99, "float16": 0.95, "int8": 0.0}
# Of the model's, relative.
AUC_LOSS = 0.005


def write_manifest(
    folder: Path,
    format_: str,
    model: LoadedModel,
    platforms: Sequence[str],
    precision: str | None = None,
    **own: Any,
) -> None:
    """Writes `export.json` of a folder that is otherwise complete.

    Args:
      folder, format_: where, and what `own` are the fields of.
      model, platforms: what was exported, and for what.
      precision: one of `TOLERANCES`, of what was exported; None: that of the model's products.
    """
    config = model.model.config
    precision = precision or config.matmul_dtype or config.dtype
    # Held-out rows are histories of users: who ships an export leaves them out.
    files = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stem != "held_out"
    }
    manifest = {
        "format": format_,
        "date": datetime.date.today().isoformat(),
        "model": dataclasses.asdict(config),
        "step": model.step,
        "fingerprints": {name: model.fingerprint(name) for name in model.settings.tasks},
        "platforms": list(platforms),
        "versions": library_versions(),
        "precision": precision,
        "tolerance": TOLERANCES[precision],
        "equal_texts": EQUAL_TEXTS[precision],
        **own,
        "files": {name: file_sha256(path) for name, path in files.items()},
        "sizes": {name: path.stat().st_size for name, path in files.items()},
    }
    _write(folder, manifest)


def verify(
    folder: Path, script: str, interpreter: Sequence[str] = PYTHON
) -> dict[str, dict[str, float]]:
    """Checks an export in a process of its own, and notes the result in its manifest.

    Args:
      folder: with a manifest.
      script: of the folder, which prints JSON: `results` by name, and what it `imported` that it
        must do without.
      interpreter: that runs it.

    Raises:
      DataError: it does not run, does not give what the model gives, or needs more than it should.
    """
    command = [*interpreter, str(folder / script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        results: dict[str, dict[str, float]] = found["results"]
    except (IndexError, ValueError, KeyError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(
            f"the export does not run: {last}\n{' '.join(command)}\n{done.stderr}"
        ) from error
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    if not results:
        raise DataError("nothing of the export was checked")
    for name, result in results.items():
        if not result["largest_difference"] <= manifest["tolerance"]:
            raise DataError(
                f"{name!r} of the export differs from the model by "
                f"{result['largest_difference']:.2g} of the largest number; "
                f"{manifest['tolerance']:g} is allowed"
            )
        if result.get("auc", 1.0) < (1.0 - AUC_LOSS) * result.get("model_auc", 0.0):
            raise DataError(
                f"the export scores with an AUC of {result['auc']:.4f}, the model with "
                f"{result['model_auc']:.4f}: more than {AUC_LOSS:.1%} are lost"
            )
        if result["equal"] < manifest["equal_texts"]:
            raise DataError(
                f"{result['equal']:.2%} of what {name!r} of the export writes is what the model "
                f"writes; it must be {manifest['equal_texts']:.0%}"
            )
    if done.returncode:
        raise DataError(f"the export's check ends with status {done.returncode}: {done.stderr}")
    if found["imported"]:
        raise DataError(f"the export imports {', '.join(found['imported'])}")
    _write(folder, manifest | {"verified": found})
    return results


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")

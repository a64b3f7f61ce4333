"""`m6rec edge bench`: how large and how fast a LiteRT export, or a packed file, is on this machine.

Each number of threads has a process of its own, so that start and memory are its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.export.device_client import (
    CATALOGUE,
    HELD_OUT,
    VOCABULARY,
    ExportError,
    read_manifest,
)

# What is measured, and how it is shown.
COLUMNS = {
    "threads": "threads",
    "start_milliseconds": "start, ms",
    "first_milliseconds": "first answer, ms",
    "history_milliseconds": "history, ms",
    "candidate_milliseconds": "a candidate, ms",
    "candidate_milliseconds_1_layer": "1 layer, ms",
    "candidate_milliseconds_2_layers": "2 layers, ms",
    "user_milliseconds": "user's vector, ms",
    "token_milliseconds": "a token, ms",
    "weights_mib": "weights, MiB",
    "resident_mib": "memory, MiB",
}
_TURNS = 5
# The packages of both cannot be had everywhere; what runs as a program imports them.
_LITERT, _PACKED = "m6rec_jax.export.litert_bench", "m6rec_jax.export.packed_bench"


def bench(path: Path, threads: Sequence[int]) -> dict[str, Any]:
    """Measures a model.

    Args:
      path: folder of `m6rec export --format litert`, or file of `m6rec compress pack`.
      threads: numbers of them, one after the other.

    Returns:
      `bytes` of the programs or the file, `shipped_bytes` of all files that a phone needs, and
      `rows`, one for each number of threads, with the keys of `COLUMNS` that its jobs have.

    Raises:
      CheckpointError: no such model, it is damaged, or its held-out requests are gone.
      ConfigError: what runs it is not installed, or a number of threads below 1.
    """
    if min(threads) < 1:
        raise ConfigError(f"--threads {min(threads)}: a model runs on one thread at least")
    if path.is_file():
        size = path.stat().st_size
        found = {"precision": "packed", "bytes": size, "shipped_bytes": size}
    else:
        found = _sizes(path)
    rows = []
    for number in threads:
        program = _PACKED if path.is_file() else _LITERT
        command = [sys.executable, "-m", program, str(path), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            message = (done.stderr.strip().splitlines() or ["no message"])[-1]
            if message.startswith("ModuleNotFoundError"):
                raise ConfigError(f"{message}: pip install 'm6rec_jax[litert]'")
            raise CheckpointError(message)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return found | {"rows": rows}


def _sizes(folder: Path) -> dict[str, Any]:
    """What `bench` returns, but for the rows; raises CheckpointError as it does."""
    try:
        manifest = read_manifest(folder)
    except ExportError as error:
        raise CheckpointError(str(error)) from error
    if not (folder / HELD_OUT).is_file():
        raise CheckpointError(
            f"{folder / HELD_OUT} is missing, whose requests are measured: export the model anew"
        )
    others = (folder / name for name in (VOCABULARY, CATALOGUE))
    size = manifest["bytes"]
    return {
        "precision": manifest["precision"],
        "bytes": size,
        "shipped_bytes": size + sum(path.stat().st_size for path in others if path.is_file()),
    }


def table(found: dict[str, Any]) -> str:
    """For people."""
    rows = found["rows"]
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    cells = [[COLUMNS[name] for name in shown]]
    for row in rows:
        cells.append([f"{row[name]:.3g}" if name in row else "" for name in shown])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    sizes = f"{found['bytes'] / 1e6:.2f} MB, {found['shipped_bytes'] / 1e6:.2f} MB with vocabulary"
    return "\n".join([f"{found['precision']}: {sizes} and catalogue", *lines])


def milliseconds(ask: Callable[[], Any], before: Callable[[], Any] | None = None) -> float:
    """The fastest of a few turns, before each of which something may be done."""
    fastest = float("inf")
    for _ in range(_TURNS):
        if before is not None:
            before()
        begin = time.perf_counter()
        ask()
        fastest = min(fastest, time.perf_counter() - begin)
    return 1000 * fastest

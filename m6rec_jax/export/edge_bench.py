"""`m6rec edge bench`: how large and how fast a LiteRT export is on this machine.

Each number of threads has a process of its own, so that start and memory are its own. Requests are
the held-out ones of the export.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from m6rec_jax.errors import CheckpointError
from m6rec_jax.export.litert_client import HELD_OUT, MODEL, EdgeModel, ExportError, read_manifest

# What is measured, and how it is shown.
COLUMNS = {
    "threads": "threads",
    "start_milliseconds": "start, ms",
    "history_milliseconds": "history, ms",
    "candidate_milliseconds": "a candidate, ms",
    "user_milliseconds": "user's vector, ms",
    "token_milliseconds": "a token, ms",
    "resident_mib": "memory, MiB",
}
_TURNS = 5


def bench(folder: Path, threads: Sequence[int], requests: int = 40) -> dict[str, Any]:
    """Measures an export.

    Args:
      folder: of `m6rec export --format litert`.
      threads: numbers of them, one after the other.
      requests: held-out ones of each kind, at most.

    Returns:
      `bytes` of the programs, `shipped_bytes` of all files that a phone needs, and `rows`, one for
      each number of threads, with the keys of `COLUMNS` that its jobs have.

    Raises:
      CheckpointError: no such export, or it is damaged.
    """
    try:
        manifest = read_manifest(folder)
    except ExportError as error:
        raise CheckpointError(str(error)) from error
    shipped = [MODEL, "vocabulary.model", "catalogue.npz"]
    sizes = {name: (folder / name).stat().st_size for name in shipped if (folder / name).is_file()}
    rows = []
    for number in threads:
        command = [sys.executable, "-m", __name__, str(folder), str(number), str(requests)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CheckpointError((done.stderr.strip().splitlines() or ["no message"])[-1])
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "precision": manifest["precision"],
        "bytes": sizes[MODEL],
        "shipped_bytes": sum(sizes.values()),
        "rows": rows,
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


def _measure(folder: Path, threads: int, requests: int) -> dict[str, float]:
    begin = time.perf_counter()
    model = EdgeModel(folder, threads)
    row = {"threads": threads, "start_milliseconds": 1000 * (time.perf_counter() - begin)}
    asked = json.loads((folder / HELD_OUT).read_text("utf-8"))
    kinds = {
        kind: [one for one in asked if one["signature"] == kind][:requests]
        for kind in ("score", "user", "generate")
    }
    for one in kinds["score"]:
        history, texts, task = one["inputs"]["history"], one["inputs"]["candidates"], one["task"]
        # As many as are scored at a time, so that none is padding.
        texts = (list(texts) * model.manifest["candidates"])[: model.manifest["candidates"]]
        one["cold"] = _milliseconds(partial(model.score, history, texts, task), model)
        one["warm"] = _milliseconds(partial(model.score, history, texts, task))
        one["count"] = len(texts)
    if kinds["score"]:
        warm = statistics.median(one["warm"] for one in kinds["score"])
        cold = statistics.median(one["cold"] for one in kinds["score"])
        row["history_milliseconds"] = cold - warm
        row["candidate_milliseconds"] = warm / kinds["score"][0]["count"]
    if kinds["user"]:
        row["user_milliseconds"] = statistics.median(
            _milliseconds(partial(model.user, one["inputs"]["history"], one["task"]))
            for one in kinds["user"]
        )
    if kinds["generate"]:
        row["token_milliseconds"] = statistics.median(
            _milliseconds(partial(model.write, **one["inputs"], task=one["task"])) / model.num_steps
            for one in kinds["generate"][: max(1, requests // 10)]
        )
    row["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def _milliseconds(ask: Callable[[], Any], forget: EdgeModel | None = None) -> float:
    """The fastest of a few turns; with a model, its kept history is forgotten before each."""
    fastest = float("inf")
    for _ in range(_TURNS):
        if forget is not None:
            forget.forget()
        begin = time.perf_counter()
        ask()
        fastest = min(fastest, time.perf_counter() - begin)
    return 1000 * fastest


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

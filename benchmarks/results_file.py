"""Result files: `benchmarks/results/NAME.json`, from which `docs/results.md` is rendered.

A file says how its newest rows were made, then lists one measured value per row:

    {
      "command": "m6rec train --gin_file ...",
      "commit": "0123456789ab",
      "hardware": "AMD EPYC, 2 cores, 24 GiB; Linux x86_64; Python 3.11.7, jax 0.10.2, ...",
      "date": "2026-11-24",
      "rows": [
        {"model": "FM", "gin_file": null, "config": "RecBole 1.2.1 defaults",
         "dataset": "movielens-100k", "split": "per_user_temporal", "seed": 1,
         "metric": "auc", "value": 0.79, "seconds": 16.0}
      ]
    }

A row names the `gin_file` that made it, or, where there is none, the baseline's `config`. It may
carry `command`, `commit`, `hardware` and `date` of its own: those of the file hold for rows that
do not. `seed` is null for what has no randomness. Further keys are kept as they are.

No jax, numpy or etils: the baselines' environments import this file too.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.provenance import (
    ROOT,
    current_command,
    current_commit,
    hardware_description,
)
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import write_atomically

RESULTS = ROOT / "benchmarks" / "results"

PROVENANCE = ("command", "commit", "hardware", "date")

_REQUIRED = frozenset(("model", "gin_file", "dataset", "split", "seed", "metric", "value"))

Row = dict[str, Any]
RunKey = tuple[str, str, str, int | None]


@dataclass(frozen=True, slots=True)
class Results:
    """One result file in memory.

    Attributes:
      name: the file's name without `.json`.
      rows: validated rows; each carries its own `command`, `commit`, `hardware`, `date`.
    """

    name: str
    rows: tuple[Row, ...]

    @property
    def runs(self) -> set[RunKey]:
        """The `(model, dataset, split, seed)` that have rows: what a resumed study skips."""
        return {run_key(row) for row in self.rows}


def run_key(row: Mapping[str, Any]) -> RunKey:
    """Returns `(model, dataset, split, seed)` of a row."""
    return row["model"], row["dataset"], row["split"], row["seed"]


def results_path(name: str) -> Path:
    """The path of `benchmarks/results/NAME.json`.

    Raises:
      DataError: `name` is not a plain file name in lower case.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
        raise DataError(
            f"result file name {name!r}: use lower case letters, digits and '_', without '.json'"
        )
    return RESULTS / f"{name}.json"


def _check_row(row: Mapping[str, Any], where: str) -> None:
    if missing := sorted(_REQUIRED - set(row)):
        raise DataError(f"{where}: {', '.join(missing)} missing (row: {row})")
    if not math.isfinite(row["value"]):
        raise DataError(
            f"{where}: {row['metric']!r} of {row['model']!r} is {row['value']!r}: a result is a "
            "finite number; leave out what was not measured"
        )
    if not row["gin_file"] and not row.get("config"):
        raise DataError(
            f"{where}: a row of {row['model']!r} names neither a 'gin_file' nor, for a baseline, "
            "a 'config': without one the figure cannot be traced"
        )
    gin_file = row["gin_file"]
    if gin_file and (gin_file.startswith("/") or ".." in Path(gin_file).parts):
        raise DataError(f"{where}: 'gin_file' is {gin_file!r}: write it relative to the repository")


def parse_results(text: str, name: str) -> Results:
    """Checks the JSON `text` of the result file `name`.

    Raises:
      DataError: with the file, the row (counted from 0) and the key that is wrong.
    """
    where = f"{name}.json"
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if missing := sorted({*PROVENANCE, "rows"} - set(data)):
        raise DataError(f"{where}: {', '.join(missing)} missing")
    provenance = {key: data[key] for key in PROVENANCE}
    rows: list[Row] = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in enumerate(data["rows"]):
        _check_row(row, f"{where}, row {number}")
        identity = (*run_key(row), row["metric"])
        if identity in seen:
            raise DataError(
                f"{where}, row {number}: {identity} stands in row {seen[identity]} already"
            )
        seen[identity] = number
        rows.append({**row, **provenance, **row})
    return Results(name, tuple(rows))


def read_results(path: Path) -> Results:
    """Reads a result file; one that does not exist yet has no rows.

    Raises:
      DataError: the file does not keep to the schema.
    """
    if not path.exists():
        return Results(path.stem, ())
    return parse_results(path.read_text(encoding="utf-8"), path.stem)


def add_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Results:
    """Adds measured rows to a result file; rows of an earlier run of the same key make way.

    The file is replaced at once: a study that is killed leaves no half of it.

    Args:
      path: the file, see `results_path`.
      rows: those without a command, commit, hardware or date get that of this process, now.

    Raises:
      DataError: a row or the file on disk does not keep to the schema.
    """
    own = {
        "command": current_command(),
        "commit": current_commit(),
        "hardware": hardware_description(),
        "date": datetime.date.today().isoformat(),
    }
    new = [{**row, **own, **row} for row in rows]
    for number, row in enumerate(new):
        _check_row(row, f"new row {number} for {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    replaced = {run_key(row) for row in new}
    kept = [row for row in read_results(path).rows if run_key(row) not in replaced]
    merged = [*kept, *new]
    provenance = {key: merged[-1][key] for key in PROVENANCE}
    text = _to_json(merged, provenance)
    results = parse_results(text, path.stem)
    write_atomically(path, text, durable=True)
    return results


def metric_rows(
    metrics: Mapping[str, float],
    *,
    model: str,
    dataset: str,
    split: str,
    seed: int | None,
    gin_file: str | None = None,
    config: str | None = None,
    seconds: float | None = None,
    note: str | None = None,
) -> list[Row]:
    """One row per metric of one run, for `add_rows`.

    Args:
      metrics: metric name -> value.
      gin_file: what made the run, relative to the repository; else `config` in a few words.
      seconds: of training, where that was measured.
      note: what a reader must know, such as "cut off after 12 epochs".
    """
    run: Row = {"model": model, "gin_file": gin_file}
    if config is not None:
        run["config"] = config
    run |= {"dataset": dataset, "split": split, "seed": seed}
    rest: Row = {}
    if seconds is not None:
        rest["seconds"] = round(seconds, 1)
    if note:
        rest["note"] = note
    return [
        {**run, "metric": metric, "value": round(float(value), 6), **rest}
        for metric, value in metrics.items()
    ]


def told_rows(figures: Mapping[str, Mapping[str, float]], **known: Any) -> list[Row]:
    """Rows of figures by model, which are printed, too; `known` is for `metric_rows`."""
    rows: list[Row] = []
    for model, metrics in figures.items():
        told = ", ".join(f"{metric} {value:.6g}" for metric, value in metrics.items())
        print(f"{known['split']}, {model}: {told}", flush=True)
        rows += metric_rows(metrics, model=model, **known)
    return rows


def _to_json(rows: Sequence[Row], provenance: Mapping[str, str]) -> str:
    """One row a line: a re-run then shows as a short diff."""
    lines = [
        json.dumps(
            {k: v for k, v in row.items() if k not in PROVENANCE or v != provenance[k]},
            ensure_ascii=False,
        )
        for row in rows
    ]
    head = "".join(
        f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)},\n" for k, v in provenance.items()
    )
    body = ",\n".join("    " + line for line in lines)
    return "{\n" + head + '  "rows": [\n' + body + "\n  ]\n}\n"

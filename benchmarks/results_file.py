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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT, current_command, current_commit, hardware_description
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import write_atomically

RESULTS = ROOT / "benchmarks" / "results"
PROVENANCE = ("command", "commit", "hardware", "date")
_REQUIRED = frozenset(("model", "gin_file", "dataset", "split", "seed", "metric", "value"))

Row = dict[str, Any]
RunKey = tuple[str, str, str, int | None]


def results_path(name: str) -> Path:
    """The path of `benchmarks/results/NAME.json`."""
    return RESULTS / f"{name}.json"


def run_key(row: Mapping[str, Any]) -> RunKey:
    """Returns `(model, dataset, split, seed)` of a row."""
    return row["model"], row["dataset"], row["split"], row["seed"]


def runs_in(path: Path) -> set[RunKey]:
    """The runs that have rows: what a resumed study skips."""
    return set(map(run_key, read_results(path)))


def read_results(path: Path) -> list[Row]:
    """The rows of a result file, each with its own provenance; none where there is no file.

    Raises:
      DataError: the file does not keep to the schema; names the row and the key.
    """
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text("utf-8"))
        rows = [{**{key: data[key] for key in PROVENANCE}, **row} for row in data["rows"]]
    except (ValueError, KeyError) as error:
        raise DataError(f"{path.name}: {error!r}") from error
    _check(rows, path)
    return rows


def _check(rows: Sequence[Row], path: Path) -> None:
    seen = set()
    for number, row in enumerate(rows):
        where = f"{path.name}, row {number}"
        if missing := sorted(_REQUIRED - set(row)):
            raise DataError(f"{where}: {', '.join(missing)} missing (row: {row})")
        if not math.isfinite(row["value"]):
            raise DataError(
                f"{where}: {row['metric']} is {row['value']}: leave out what was not measured"
            )
        if not row["gin_file"] and not row.get("config"):
            raise DataError(f"{where} names neither a 'gin_file' nor, for a baseline, a 'config'")
        if (identity := (*run_key(row), row["metric"])) in seen:
            raise DataError(f"{where}: {identity} stands there twice")
        seen.add(identity)


def add_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds measured rows to a result file; rows of an earlier run of the same key make way.

    The file is replaced at once. Rows without a command, commit, hardware or date get that of this
    process, now.

    Raises:
      DataError: a row or the file on disk does not keep to the schema.
    """
    now = {
        "command": current_command(),
        "commit": current_commit(),
        "hardware": hardware_description(),
        "date": datetime.date.today().isoformat(),
    }
    new = [{**row, **now, **row} for row in rows]
    _check(new, path)
    replaced = set(map(run_key, new))
    merged = [*(row for row in read_results(path) if run_key(row) not in replaced), *new]
    provenance = {key: merged[-1][key] for key in PROVENANCE}
    # One row a line: a re-run then shows as a short diff.
    lines = [
        json.dumps(
            {k: v for k, v in row.items() if k not in PROVENANCE or v != provenance[k]},
            ensure_ascii=False,
        )
        for row in merged
    ]
    head = json.dumps(provenance, ensure_ascii=False, indent=2).removesuffix("\n}")
    body = ",\n".join("    " + line for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f'{head},\n  "rows": [\n{body}\n  ]\n}}\n')


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
) -> list[Row]:
    """One row per metric of one run, for `add_rows`.

    Args:
      metrics: metric name -> value.
      model, dataset, split, seed: of the run.
      gin_file: what made it, relative to the repository; else `config` in a few words.
      seconds: of training, where that was measured.
    """
    run: Row = {"model": model, "gin_file": gin_file}
    if config is not None:
        run["config"] = config
    run |= {"dataset": dataset, "split": split, "seed": seed}
    rest = {} if seconds is None else {"seconds": round(seconds, 1)}
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

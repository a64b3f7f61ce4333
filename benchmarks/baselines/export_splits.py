"""Writes MovieLens-100k with its splits as three Parquet files that need only pyarrow to read.

    python -m benchmarks.baselines.export_splits [--output runs/baselines/movielens-100k]
        [--samples 64 256 1024 4096 16384 all] [--seeds 0 1 2]

Runs in the project's own environment: rows and splits come from `m6rec_jax.data`, so that the
baselines train and are measured on the very rows our models see. The format is described in
`exported_splits.py`. The data set's terms forbid redistribution: the output stays out of the
repository (`runs/` is ignored).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.baselines.exported_splits import few_shot_column, number_of_samples
from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from m6rec_jax.data import splits
from m6rec_jax.data.event_table import assign
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.sources import fetch
from m6rec_jax.data.splits import Split
from m6rec_jax.io.atomic import atomic_file

NAME = "movielens-100k"


def export(
    dataset: Dataset, output: Path, samples: Sequence[tuple[int | None, int]] = ()
) -> dict[str, dict[str, int]]:
    """Writes the three tables.

    Args:
      dataset: the data set.
      output: folder of the tables.
      samples: few-shot splits: how many training rows of the per-user split (None: all), and the
        seed of their draw.

    Returns:
      Rows per part, by split.

    Raises:
      DataError: the data set is not valid, or a split leaves a part empty.
    """
    order = [(name, "ascending") for name in ("user_index", "time", "row")]
    events = dataset.events().sort_by(order)
    rows = events.column("row").to_numpy()
    columns = {
        "user": events.column("user_index"),
        "item": events.column("item_index"),
        "time": events.column("time"),
        "value": events.column("value"),
    }
    counts = {}
    # In the order of the file, from whose rows few-shot splits draw.
    found = {
        name: assign(dataset, Split.parse(name, dataset.spec.splits)).codes
        for name in ("per_user_temporal", "leave_one_out")
    }
    for count, seed in samples:
        codes = found["per_user_temporal"]
        size = int((codes == splits.TRAIN).sum()) if count is None else count
        drawn = splits.few_shot(codes, n=size, seed=seed, history="sampled")
        found[few_shot_column(count, seed)] = drawn
    for name, codes in found.items():
        counts[name] = splits.part_counts(codes)
        columns[name] = _names(codes[rows])
    output.mkdir(parents=True, exist_ok=True)
    for table, own_id, name in (
        (dataset.users, dataset.spec.users.id, "user"),
        (dataset.items, dataset.spec.items.id, "item"),
    ):
        names = [f"{name}_id" if column == own_id else column for column in table.column_names]
        _write(table.rename_columns(names), output / f"{name}s.parquet")
    _write(pa.table(columns), output / "events.parquet")
    return counts


def _write(table: pa.Table, path: Path) -> None:
    # A study that runs beside this command may read the file.
    with atomic_file(path) as scratch:
        pq.write_table(table, scratch)


def _names(codes: np.ndarray) -> pa.Array:
    # EXCLUDED is -1: the last name.
    return pa.array(np.array([*splits.PARTS, "context", "excluded"])[codes])


@errors_told
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Export MovieLens-100k for the baselines.")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "baselines" / NAME)
    parser.add_argument("--samples", nargs="*", type=number_of_samples, default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args(arguments)
    samples = list(itertools.product(options.samples, options.seeds))
    counts = export(Dataset.open(fetch(NAME)), options.output, samples)
    for split, parts in counts.items():
        print(f"{split}: " + ", ".join(f"{part} {count:,}" for part, count in parts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

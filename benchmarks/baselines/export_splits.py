"""Writes MovieLens-100k with its splits as three Parquet files that need only pyarrow to read.

    python -m benchmarks.baselines.export_splits [--output runs/baselines/movielens-100k]

Runs in the project's own environment: rows and splits come from `m6rec_jax.data`, so that the
baselines train and are measured on the very rows our models see. The format is described in
`exported_splits.py`. The data set's terms forbid redistribution: the output stays out of the
repository (`runs/` is ignored).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.getting.sources import fetch
from m6rec_jax.data.splitting import splits
from m6rec_jax.data.splitting.event_table import assign
from m6rec_jax.data.splitting.splits import Split
from m6rec_jax.io.atomic import atomic_file

NAME = "movielens-100k"


def export(dataset: Dataset, output: Path) -> dict[str, dict[str, int]]:
    """Writes the three tables.

    Args:
      dataset: the data set.
      output: folder of the tables.

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
    for name in ("per_user_temporal", "leave_one_out"):
        codes = assign(dataset, Split.parse(name, dataset.spec.splits)).codes
        counts[name] = splits.part_counts(codes)
        columns[name] = pa.array(np.array(splits.PARTS)[codes[rows]])
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


@errors_told
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Export MovieLens-100k for the baselines.")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "baselines" / NAME)
    options = parser.parse_args(arguments)
    counts = export(Dataset.open(fetch(NAME)), options.output)
    for split, parts in counts.items():
        print(f"{split}: " + ", ".join(f"{part} {count:,}" for part, count in parts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

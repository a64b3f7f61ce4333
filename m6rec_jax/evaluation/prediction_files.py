"""Files of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.atomic import atomic_file
from m6rec_jax.io.json_text import json_text


def check_ending(path: str | epath.Path) -> None:
    """Raises ConfigError where `write_predictions` knows no such format."""
    if epath.Path(path).suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"{path}: predictions are written as .parquet or .jsonl")


def write_predictions(path: str | epath.Path, columns: Mapping[str, np.ndarray]) -> epath.Path:
    """Writes columns of equal length as `.parquet` or `.jsonl`, whole or not at all.

    Args:
      path: the file, which may be a bucket address; its folder is made when missing.
      columns: `[n]`, or `[n, m]` for a list per row.

    Raises:
      ConfigError: another ending.
    """
    check_ending(path)
    path = epath.Path(path)
    if path.suffix == ".parquet":
        # Files of a bucket are no files to pyarrow.
        sink = pa.BufferOutputStream()
        pq.write_table(_table(columns), sink, compression="zstd")
        contents: Iterable[bytes] = (sink.getvalue().to_pybytes(),)
    else:
        contents = (line.encode() for line in json_lines(columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        for part in contents:
            file.write(part)
    return path


def json_lines(columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Columns of equal length as JSON objects, one per line; null for scores of no item."""
    for row in _table(columns).to_pylist():
        yield json_text(row) + "\n"


def _table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    return pa.table({name: _arrow(values) for name, values in columns.items()})


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    kind = pa.string() if values.dtype == object else pa.from_numpy_dtype(values.dtype)
    return pa.array(values.tolist(), pa.list_(kind))

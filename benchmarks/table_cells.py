"""Cells of the tables of results."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from benchmarks.results_file import Row


@dataclass(frozen=True, slots=True)
class Cell:
    """All seeds of one metric of one model."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, decimals: int) -> str:
        mean = f"{self.mean:,.{decimals}f}"
        return mean if self.spread is None else f"{mean} ± {self.spread:,.{decimals}f}"


def made_by(row: Row) -> str:
    """What made a row: its gin file, or the configuration of a baseline."""
    if row["gin_file"]:
        return f"[`{row['gin_file']}`](../{row['gin_file']})"
    return str(row["config"])


def called(model: str) -> str:
    """What tables call a model: rows may have an identifier of the code."""
    if not re.fullmatch("[a-z_]+", model):
        return model
    return model.replace("co_occ", "co-occ").replace("_and_", " + ").replace("_", " ")

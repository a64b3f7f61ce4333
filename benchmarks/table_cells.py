"""Cells of the tables of results."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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


def markdown(table: Iterable[Sequence[str]]) -> str:
    """A Markdown table of lines of cells."""
    return "".join("| " + " | ".join(cells) + " |\n" for cells in table)


def called(model: str) -> str:
    """What tables call a model: rows may have an identifier of the code."""
    if not re.fullmatch("[a-z_]+", model):
        return model
    return model.replace("co_occ", "co-occ").replace("_and_", " + ").replace("_", " ")

"""The report's drawings: SVG text to be set into the page, coloured by the page's style sheet.

Colours are written as CSS variables (`var(--ink)` and so on), so one drawing serves light, dark and
print. Identifiers inside a drawing depend on its title, which is unique on its page.

matplotlib and scikit-learn are imported late: they take a second, and only reports need them.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m6rec_jax.metrics import ranking
from m6rec_jax.metrics.classification import calibration_table

# matplotlib wants real colours: these stand for CSS variables and occur nowhere else.
_NAMES = ("ink", "muted", "line", "accent", "second", "third", "fourth")
_VARIABLES = {f"#01020{3 + number}": f"var(--{name})" for number, name in enumerate(_NAMES)}
_INK, _MUTED, _GRID, *_LINES = _VARIABLES
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
# Tenths of fewer impressions say nothing.
_LEAST_CALIBRATED = 100


class Figure(NamedTuple):
    """A drawing, an `<svg>` element as wide as its container, with its title and its caption."""

    title: str
    caption: str
    svg: str


@contextlib.contextmanager
def _drawing(title: str, x: str, y: str = "") -> Iterator[tuple[Any, list[str]]]:
    """Axes with names, and the SVG that is written of them at the end.

    Made without pyplot: no global state, no backend for the whole process.
    """
    import matplotlib.figure
    from cycler import cycler
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # A second round of colours has other dashes.
    lines = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=_LINES)
    style = {**_STYLE, "svg.hashsalt": title, "axes.prop_cycle": lines}
    with matplotlib.rc_context(style):
        drawing = matplotlib.figure.Figure(figsize=(4.6, 3.3), layout="constrained")
        FigureCanvasSVG(drawing)
        axes, written = drawing.add_subplot(), list[str]()
        yield axes, written
        axes.set(xlabel=x, ylabel=y)
        if axes.get_legend_handles_labels()[0]:  # above the axes, where it covers no line
            drawing.legend(loc="outside upper left", ncols=2, borderaxespad=0.0)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    # The drawings' own style element would otherwise hold for the whole page.
    rest = rest.replace("*{stroke-linejoin", "svg *{stroke-linejoin")
    written.append(f"{head}>{rest}".strip())


def curve(title: str, steps: Sequence[int], values: Sequence[float]) -> Figure:
    """Values over steps; of many values, their moving average beside them."""
    x, y = np.asarray(steps), np.asarray(values, np.float64)
    with _drawing(title, "step") as (axes, svg):
        if len(y) < 20:
            axes.plot(x, y, marker="o", markersize=3)
        else:
            width = max(len(y) // 25, 3)
            smooth = np.convolve(y, np.ones(width) / width, mode="valid")
            axes.plot(x, y, color=_LINES[0], alpha=0.25, linewidth=0.9)
            axes.plot(x[(width - 1) // 2 :][: len(smooth)], smooth, color=_LINES[0])
            # The first few values, from random weights, would squeeze the rest into a line.
            low, high = np.min(rest := y[len(y) // 20 :]), np.max(rest)
            if high > low:
                axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
    return Figure(title, "", *svg)


def hit_rates(of: str, ranks: Mapping[str, npt.NDArray[np.int64]], longest: int) -> Figure:
    """The hit rate at every length of the list up to `longest`, on a logarithmic axis.

    Args:
      of: what the title names; may be empty.
      ranks: name -> int `[n, m]`, of what rows want, from 1; 0 is padding. The model comes first.
    """
    title = _titled("Hit rate by length of the list", of)
    lengths = range(1, longest + 1)
    with _drawing(title, "length of the list", "hit rate") as (axes, svg):
        for label, of_rows in ranks.items():
            axes.plot(lengths, [ranking.hit_rate(of_rows, k) for k in lengths], label=label)
        axes.set_xscale("log")
        ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= longest]
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
    caption = "Share of the test rows with an item the user chose among the first k."
    return Figure(title, caption, *svg)


def roc_curves(of: str, labels: npt.NDArray[Any], scores: Mapping[str, npt.ArrayLike]) -> Figure:
    """True against false positive rate; the AUC stands in the legend.

    Args:
      of: what the title names; may be empty.
      labels: `[n]`, 0 or 1, both present.
      scores: name -> `[n]`, any scale; the model comes first.
    """
    from sklearn.metrics import RocCurveDisplay

    title = _titled("ROC", of)
    with _drawing(title, "false positive rate", "true positive rate") as (axes, svg):
        for label, values in scores.items():
            RocCurveDisplay.from_predictions(labels, values, name=label, ax=axes)
        axes.get_legend().remove()
        axes.plot([0, 1], [0, 1], color=_GRID, linestyle="-", linewidth=1)
    caption = f"{len(labels):,} test impressions, {np.mean(labels):.0%} of them positive."
    return Figure(title, caption, *svg)


def calibration(
    of: str, labels: npt.NDArray[Any], probabilities: npt.NDArray[np.float64]
) -> list[Figure]:
    """The share of positives against predicted probability, in tenths of the examples; none of
    fewer than a hundred.

    Raises:
      DataError: probabilities outside [0, 1], NaN, or lengths that differ.
    """
    if len(labels) < _LEAST_CALIBRATED:
        return []
    title, table = _titled("Calibration", of), calibration_table(labels, probabilities)
    share = table.mean_observed
    with _drawing(title, "predicted probability", "share that was positive") as (axes, svg):
        axes.errorbar(
            table.mean_predicted,
            share,
            yerr=2 * np.sqrt(share * (1 - share) / table.counts),  # twice its standard error
            ecolor=_MUTED,
            elinewidth=0.9,
            marker="o",
            markersize=4,
        )
        axes.plot([0, 1], [0, 1], color=_GRID, linestyle="-", linewidth=1)
    caption = (
        "Tenths of the test impressions by predicted probability, against the share that was "
        f"positive. Mean distance from the diagonal: {table.expected_calibration_error:.3f}."
    )
    return [Figure(title, caption, *svg)]


def _titled(what: str, of: str) -> str:
    return f"{what}: {of}" if of else what

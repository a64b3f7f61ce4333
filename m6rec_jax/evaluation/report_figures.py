"""The report's drawings: SVG text to be set into the page, coloured by the page's style sheet.

Colours are written as CSS variables (`var(--ink)` and so on), so one drawing serves light, dark and
print. Identifiers inside a drawing depend on its name, which is unique on its page.

matplotlib and scikit-learn are imported late: they take a second, and only reports need them.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m6rec_jax.metrics import ranking
from m6rec_jax.metrics.classification import auc, calibration_table

# matplotlib wants real colours: these stand for CSS variables and occur nowhere else.
_NAMES = ("ink", "muted", "line", "accent", "second", "third", "fourth")
_VARIABLES = {f"#01020{3 + number}": f"var(--{name})" for number, name in enumerate(_NAMES)}
_INK, _MUTED, _GRID, _ACCENT, _SECOND, _THIRD, _FOURTH = _VARIABLES
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
_LINES = (_ACCENT, _SECOND, _THIRD, _FOURTH)
_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))


class Drawing:
    """One pair of axes, made without pyplot: no global state, no backend for the whole process."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(4.6, 3.3), layout="constrained")
        FigureCanvasSVG(self._figure)
        self.axes = self._figure.add_subplot()
        self.svg = ""

    def legend(self) -> None:
        """Above the axes, where it covers no line."""
        self._figure.legend(loc="outside upper left", ncols=2, borderaxespad=0.0)

    def write(self, description: str) -> None:
        """Sets `svg`, the `<svg>` element alone, as wide as its container."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, variable)
        head, rest = text.split(">", 1)
        head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
        head = head.replace("<svg", f'<svg role="img" aria-label="{description}"')
        # The drawings' own style element would otherwise hold for the whole page.
        rest = rest.replace("*{stroke-linejoin", "svg *{stroke-linejoin")
        self.svg = f"{head}>{rest}".strip()


@contextlib.contextmanager
def _drawing(name: str, description: str, x: str, y: str = "") -> Iterator[Drawing]:
    """A drawing with names of its axes, which is written at the end."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        drawing = Drawing()
        drawing.axes.set(xlabel=x, ylabel=y)
        yield drawing
        drawing.write(description)


def _shares(axes: Any) -> None:
    """Both axes are shares, compared with the diagonal."""
    axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def _line(number: int, label: str) -> dict[str, Any]:
    """How a line looks; a second round of colours has other dashes."""
    dashes = _DASHES[(number + number // len(_LINES)) % len(_DASHES)]
    # A label that starts with "_" would be left out of the legend.
    return {"color": _LINES[number % len(_LINES)], "linestyle": dashes, "label": f"\u200b{label}"}


def curves(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, name: str = "curve"
) -> str:
    """SVG of values over steps; of many values, their moving average beside them.

    `series` are name -> (steps, values), at most four.
    """
    shown = []
    with _drawing(name, "Values over training steps", "step") as drawing:
        for (label, (steps, values)), colour in zip(series.items(), _LINES, strict=False):
            x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
            style: dict[str, Any] = {"color": colour, "label": f"\u200b{label}"}
            if len(y) >= 20:
                width = max(len(y) // 25, 3)
                smooth = np.convolve(y, np.ones(width) / width, mode="valid")
                drawing.axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.9)
                middles = x[(width - 1) // 2 :][: len(smooth)]
                drawing.axes.plot(middles, smooth, **style)
            else:
                drawing.axes.plot(x, y, marker="o", markersize=3, **style)
            # The first few values, from random weights, would squeeze the rest into a line.
            shown.append(y[len(y) // 20 :])
        values_shown = np.concatenate(shown)
        if values_shown.size and np.ptp(values_shown) > 0:
            low, high = float(values_shown.min()), float(values_shown.max())
            drawing.axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        if len(series) > 1:
            drawing.legend()
    return drawing.svg


def hit_rates(
    ranks: Mapping[str, npt.NDArray[np.int64]], longest: int, *, name: str = "ranks"
) -> str:
    """SVG of the hit rate at every length of the list up to `longest`, on a logarithmic axis.

    `ranks` are name -> int `[n, m]`, of what rows want, from 1; 0 is padding.
    """
    lengths = range(1, longest + 1)
    title = "Hit rate by length of the list"
    with _drawing(name, title, "length of the list", "hit rate") as drawing:
        axes = drawing.axes
        for number, (label, of) in enumerate(ranks.items()):
            rates = [ranking.hit_rate(of, k) for k in lengths]
            axes.plot(lengths, rates, **_line(number, label))
        axes.set_xscale("log")
        ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= longest]
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        drawing.legend()
    return drawing.svg


def roc_curves(
    labels: npt.NDArray[Any], scores: Mapping[str, npt.ArrayLike], *, name: str = "roc"
) -> str:
    """SVG of true against false positive rate; the AUC stands in the legend.

    Args:
      labels: `[n]`, 0 or 1, both present.
      scores: name -> `[n]`, any scale; the first is the model.

    Raises:
      DataError: one class only, NaN, or lengths that differ.
    """
    from sklearn.metrics import roc_curve

    with _drawing(name, "ROC curves", "false positive rate", "true positive rate") as drawing:
        _shares(drawing.axes)
        for number, (label, values) in enumerate(scores.items()):
            style = _line(number, f"{label}  {auc(labels, values):.3f}")
            x, y, _ = roc_curve(labels, np.asarray(values, np.float64))
            # More than about 400 points would weigh megabytes and look the same.
            some = np.unique(np.linspace(0, len(x) - 1, 400).astype(int))
            width = 1.9 if number == 0 else 1.3
            drawing.axes.plot(x[some], y[some], linewidth=width, zorder=10 - number, **style)
        drawing.legend()
    return drawing.svg


def calibration(
    labels: npt.NDArray[Any], probabilities: npt.NDArray[np.float64], *, name: str = "calibration"
) -> tuple[str, float]:
    """SVG of the share of positives against predicted probability, in tenths of the examples.

    Returns:
      SVG and the expected calibration error over these tenths.

    Raises:
      DataError: probabilities outside [0, 1], NaN, or lengths that differ.
    """
    table = calibration_table(labels, probabilities)
    share = table.mean_observed
    x, y = "predicted probability", "share that was positive"
    with _drawing(name, "Calibration", x, y) as drawing:
        _shares(drawing.axes)
        drawing.axes.errorbar(
            table.mean_predicted,
            share,
            yerr=2 * np.sqrt(share * (1 - share) / table.counts),  # twice its standard error
            color=_ACCENT,
            ecolor=_MUTED,
            elinewidth=0.9,
            marker="o",
            markersize=4,
        )
    return drawing.svg, table.expected_calibration_error

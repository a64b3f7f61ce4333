"""The report's drawings: SVG text to be set into the page, coloured by the page's style sheet.

Colours are written as CSS variables (`var(--ink)` and so on), so one drawing serves light, dark and
print. Identifiers inside a drawing depend on its name: several drawings share one page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

from m6rec_jax.metrics.classification import auc, calibration_table

# matplotlib wants real colours: these stand for CSS variables and occur nowhere else.
_INK, _MUTED, _GRID, _ACCENT, _SECOND, _THIRD = (
    "#010203",
    "#010204",
    "#010205",
    "#010206",
    "#010207",
    "#010208",
)
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _ACCENT: "var(--accent)",
    _SECOND: "var(--second)",
    _THIRD: "var(--third)",
}
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
_SIZE = (4.6, 3.1)


def _axes(size: tuple[float, float] = _SIZE) -> tuple[Any, Any]:
    """A figure and its axes, without pyplot: no global state, no backend for the whole process."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _style(name: str) -> Any:
    """The context in which a drawing is made and written; `name` seeds its identifiers."""
    # Imported late: matplotlib takes half a second, and only reports need it.
    import matplotlib

    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": name})


def _svg(figure: Any, description: str) -> str:
    """The `<svg>` element alone, as wide as its place on the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    head = head.replace("<svg", f'<svg role="img" aria-label="{description}"')
    # The drawings' own style element would otherwise hold for the whole page.
    return f"{head}>{rest}".replace("*{stroke-linejoin", "svg *{stroke-linejoin").strip()


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    validation_steps: Sequence[int] = (),
    validation_losses: Sequence[float] = (),
    *,
    name: str = "loss",
) -> str:
    """Loss over steps; beside the raw values, when there are many, their moving average.

    Args:
      steps, losses: `[n]` of training. validation_steps, validation_losses: `[m]`, may be empty.
      name: tells the drawings of a page apart.

    Returns:
      SVG.
    """
    x, y = np.asarray(steps, np.float64), np.asarray(losses, np.float64)
    with _style(name):
        figure, axes = _axes()
        if len(y) >= 20:
            width = max(len(y) // 25, 3)
            smooth = np.convolve(y, np.ones(width) / width, mode="valid")
            axes.plot(x, y, color=_ACCENT, alpha=0.25, linewidth=0.9)
            axes.plot(x[width - 1 :], smooth, color=_ACCENT, label="training")
        else:
            axes.plot(x, y, color=_ACCENT, label="training", marker="o", markersize=3)
        if len(validation_steps):
            axes.plot(
                validation_steps,
                validation_losses,
                color=_SECOND,
                label="validation",
                marker="o",
                markersize=3.5,
            )
        # The first few losses, from random weights, would squeeze the rest into a line.
        shown = np.concatenate([y[len(y) // 20 :], np.asarray(validation_losses, np.float64)])
        if shown.size and np.ptp(shown) > 0:
            low, high = float(shown.min()), float(shown.max())
            axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(loc="upper right")
        return _svg(figure, "Loss over training steps")


def roc_curves(labels: npt.NDArray[Any], scores: Mapping[str, npt.ArrayLike]) -> str:
    """True against false positive rate; the first of `scores` is the model.

    Args:
      labels: `[n]`, 0 or 1, both present. scores: name -> `[n]`, any scale.

    Returns:
      SVG. The AUC stands in the legend.

    Raises:
      DataError: one class only, NaN, or lengths that differ.
    """
    colours = (_ACCENT, _SECOND, _THIRD)
    dashes = ("-", (0, (5, 2)), (0, (2, 1.5)))
    with _style("roc"):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
        curves = []
        for number, (name, values) in enumerate(scores.items()):
            area = auc(labels, values)
            false_positive, true_positive, _ = roc_curve(labels, np.asarray(values, np.float64))
            (curve,) = axes.plot(
                *_thinned(false_positive, true_positive),
                color=colours[number % 3],
                linestyle=dashes[number % 3],
                linewidth=1.9 if number == 0 else 1.3,
                # A label that starts with "_" would be left out of the legend.
                label=f"\u200b{name}  {area:.3f}",
                zorder=10 - number,
            )
            curves.append(curve)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.legend(handles=curves, loc="lower right")
        return _svg(figure, "ROC curves")


def _thinned(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[Any, Any]:
    """At most about 400 points: thousands would weigh megabytes and look the same."""
    keep = np.unique(np.linspace(0, len(x) - 1, 400).astype(int))
    return x[keep], y[keep]


def calibration(
    labels: npt.NDArray[Any], probabilities: npt.NDArray[np.float64]
) -> tuple[str, float]:
    """Share of likes against predicted probability, in tenths of the examples.

    Returns:
      SVG and the expected calibration error over these tenths.

    Raises:
      DataError: probabilities outside [0, 1], NaN, or lengths that differ.
    """
    table = calibration_table(labels, probabilities)
    share = np.asarray(table.mean_observed)
    # Twice the standard error of a share.
    error = 2 * np.sqrt(share * (1 - share) / table.counts)
    with _style("calibration"):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
        axes.errorbar(
            table.mean_predicted,
            share,
            yerr=error,
            color=_ACCENT,
            ecolor=_MUTED,
            elinewidth=0.9,
            marker="o",
            markersize=4,
        )
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_xlabel("predicted probability of a like")
        axes.set_ylabel("share that was liked")
        return _svg(figure, "Calibration"), table.expected_calibration_error

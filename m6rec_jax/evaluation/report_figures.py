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
_SIZE = (4.6, 3.3)
_LINES = (_ACCENT, _SECOND, _THIRD, _FOURTH)
_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))


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
    """The `<svg>` element alone, as wide as its container."""
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


def _legend(figure: Any, handles: Sequence[Any] | None = None) -> None:
    """Above the axes, where it covers no line."""
    options = {} if handles is None else {"handles": handles}
    figure.legend(loc="outside upper left", ncols=2, borderaxespad=0.0, **options)


def _line(number: int) -> dict[str, Any]:
    """Colour and dashes of a line; a second round of colours has other dashes."""
    dashes = _DASHES[(number + number // len(_LINES)) % len(_DASHES)]
    return {"color": _LINES[number % len(_LINES)], "linestyle": dashes}


def curves(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]], *, name: str = "curve"
) -> str:
    """SVG of values over steps; of many values, their moving average beside them.

    Args:
      series: name -> (steps, values), at most four.
      name: of the drawing, unique on its page.
    """
    shown = []
    with _style(name):
        figure, axes = _axes()
        for (label, (steps, values)), colour in zip(series.items(), _LINES, strict=False):
            x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
            if len(y) >= 20:
                width = max(len(y) // 25, 3)
                smooth = np.convolve(y, np.ones(width) / width, mode="valid")
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.9)
                middles = x[(width - 1) // 2 :][: len(smooth)]
                axes.plot(middles, smooth, color=colour, label=f"\u200b{label}")
            else:
                style = {"marker": "o", "markersize": 3}
                axes.plot(x, y, color=colour, label=f"\u200b{label}", **style)
            # The first few values, from random weights, would squeeze the rest into a line.
            shown.append(y[len(y) // 20 :])
        values_shown = np.concatenate(shown)
        if values_shown.size and np.ptp(values_shown) > 0:
            low, high = float(values_shown.min()), float(values_shown.max())
            axes.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        axes.set_xlabel("step")
        if len(series) > 1:
            _legend(figure)
        return _svg(figure, "Values over training steps")


def hit_rates(
    ranks: Mapping[str, npt.NDArray[np.int64]], longest: int, *, name: str = "ranks"
) -> str:
    """SVG of the hit rate at every length of the list, on a logarithmic axis.

    Args:
      ranks: name -> int `[n, m]`, of what rows want, from 1; 0 is padding.
      longest: the longest list.
      name: of the drawing, unique on its page.
    """
    lengths = np.arange(1, longest + 1)
    with _style(name):
        figure, axes = _axes()
        for number, (label, of) in enumerate(ranks.items()):
            axes.plot(
                lengths,
                [ranking.hit_rate(of, k) for k in lengths.tolist()],
                **_line(number),
                label=f"\u200b{label}",
            )
        axes.set_xscale("log")
        ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= longest]
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("length of the list")
        axes.set_ylabel("hit rate")
        _legend(figure)
        return _svg(figure, "Hit rate by length of the list")


def roc_curves(
    labels: npt.NDArray[Any], scores: Mapping[str, npt.ArrayLike], *, name: str = "roc"
) -> str:
    """True against false positive rate; the first of `scores` is the model.

    Args:
      labels: `[n]`, 0 or 1, both present. scores: name -> `[n]`, any scale.
      name: of the drawing, unique on its page.

    Returns:
      SVG. The AUC stands in the legend.

    Raises:
      DataError: one class only, NaN, or lengths that differ.
    """
    with _style(name):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], color=_GRID, linewidth=1)
        lines = []
        for number, (label, values) in enumerate(scores.items()):
            area = auc(labels, values)
            false_positive, true_positive, _ = roc_curve(labels, np.asarray(values, np.float64))
            (line,) = axes.plot(
                *_thinned(false_positive, true_positive),
                **_line(number),
                linewidth=1.9 if number == 0 else 1.3,
                # A label that starts with "_" would be left out of the legend.
                label=f"\u200b{label}  {area:.3f}",
                zorder=10 - number,
            )
            lines.append(line)
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        _legend(figure, lines)
        return _svg(figure, "ROC curves")


def _thinned(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[Any, Any]:
    """At most about 400 points: thousands would weigh megabytes and look the same."""
    keep = np.unique(np.linspace(0, len(x) - 1, 400).astype(int))
    return x[keep], y[keep]


def calibration(
    labels: npt.NDArray[Any], probabilities: npt.NDArray[np.float64], *, name: str = "calibration"
) -> tuple[str, float]:
    """Share of positives against predicted probability, in tenths of the examples.

    Returns:
      SVG and the expected calibration error over these tenths.

    Raises:
      DataError: probabilities outside [0, 1], NaN, or lengths that differ.
    """
    table = calibration_table(labels, probabilities)
    share = np.asarray(table.mean_observed)
    # Twice the standard error of a share.
    error = 2 * np.sqrt(share * (1 - share) / table.counts)
    with _style(name):
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
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share that was positive")
        return _svg(figure, "Calibration"), table.expected_calibration_error

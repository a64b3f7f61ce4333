"""The pictures of `docs/results.md`."""

from __future__ import annotations

import abc
import dataclasses
import io
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from m6rec_jax.io.hashing import sha256

# Told apart without colours, too: markers differ.
_COLOURS = (
    "#2b6cb0",
    "#c05621",
    "#2f855a",
    "#805ad5",
    "#b83280",
    "#4a5568",
    "#b7791f",
    "#2c7a7b",
    "#c53030",
    "#1a202c",
    "#d69e2e",
    "#38b2ac",
)
_MARKERS = "os^Dv*PXh<>p"
_GRID = "#e2e8f0"


class Picture(abc.ABC):
    """Something drawn from figures as an SVG file."""

    @property
    def mark(self) -> str:
        """Fingerprint of what is drawn, written into the file.

        Whether a picture is stale must not depend on the version of matplotlib that drew it.
        """
        drawn = [getattr(self, field.name) for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return f"<!-- data {sha256(json.dumps(drawn))[:16]} -->"

    @abc.abstractmethod
    def _draw(self, pyplot: Any) -> Any:
        """Returns the figure."""

    def svg(self) -> str:
        """Draws it."""
        with _drawing() as pyplot:
            figure = self._draw(pyplot)
            buffer = io.StringIO()
            figure.savefig(
                buffer,
                format="svg",
                bbox_inches="tight",
                facecolor="white",
                metadata={"Date": None},
            )
            pyplot.close(figure)
        return buffer.getvalue().rstrip() + f"\n{self.mark}\n"


@contextmanager
def _drawing() -> Iterator[Any]:
    # Imported late: `--check` does without.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"svg.fonttype": "none", "svg.hashsalt": "m6rec", "font.size": 10}
    with matplotlib.rc_context(style):
        yield pyplot


def _open_frame(axes: Any, sides: Sequence[str] = ("top", "right")) -> None:
    axes.set_axisbelow(True)
    for side in sides:
        axes.spines[side].set_visible(False)


@dataclass(frozen=True, slots=True)
class DotPicture(Picture):
    """One line per model, a dot per seed, a tick at the mean."""

    title: str
    data: tuple[tuple[str, tuple[float, ...]], ...]

    def _draw(self, pyplot: Any) -> Any:
        figure, axes = pyplot.subplots(figsize=(6.4, 0.7 + 0.32 * len(self.data)))
        for row, (_, values) in enumerate(self.data):
            axes.plot(values, [row] * len(values), "o", color=_COLOURS[0], alpha=0.55, ms=5)
            axes.plot([statistics.fmean(values)], [row], "|", color="#1a202c", ms=13, mew=2)
        axes.set_yticks(range(len(self.data)), [model for model, _ in self.data])
        axes.set_ylim(-0.6, len(self.data) - 0.4)
        axes.set_xlabel(self.title)
        axes.grid(axis="x", color=_GRID)
        _open_frame(axes, ("top", "right", "left"))
        axes.tick_params(axis="y", length=0)
        return figure


@dataclass(frozen=True, slots=True)
class LinePicture(Picture):
    """Panels of lines that share a legend; `panels` are (title, ((line, ((x, y), ...)), ...))."""

    x_title: str
    y_title: str
    panels: tuple[tuple[str, tuple[tuple[str, tuple[tuple[float, float], ...]], ...]], ...]
    log_x: bool = False

    def _draw(self, pyplot: Any) -> Any:
        columns = min(2, len(self.panels))
        rows = math.ceil(len(self.panels) / columns)
        size = (4.2 * columns, 3.0 * rows)
        figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
        names = list(dict.fromkeys(name for _, lines in self.panels for name, _ in lines))
        for axes in grid.flat[len(self.panels) :]:
            axes.set_visible(False)
        for axes, (title, lines) in zip(grid.flat, self.panels, strict=False):
            for name, points in lines:
                place = names.index(name)
                style = {
                    "color": _COLOURS[place % len(_COLOURS)],
                    "marker": _MARKERS[place % len(_MARKERS)],
                }
                axes.plot(*zip(*points, strict=True), ms=4, lw=1.4, label=name, **style)
            axes.set_title(title, fontsize=10)
            axes.set_xlabel(self.x_title)
            axes.set_ylabel(self.y_title)
            if self.log_x:
                axes.set_xscale("log", base=2)
            elif (bottom := _bottom([points for _, points in lines])) is not None:
                axes.set_ylim(bottom=bottom)
            axes.grid(color=_GRID)
            _open_frame(axes)
        found: dict[str, Any] = {}
        for axes in grid.flat[: len(self.panels)]:
            found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.tight_layout()
        figure.legend(
            [found[name] for name in names],
            names,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=min(4, len(names)),
            frameon=False,
        )
        return figure


def _bottom(lines: Sequence[Sequence[tuple[float, float]]]) -> float | None:
    """Where to begin the axis, so that lines that start far below do not flatten all others.

    What the lines are after a quarter of the way decides; None where all of them are near it.
    """
    points = [point for line in lines for point in line]
    end = max(x for x, _ in points)
    late = [y for x, y in points if x >= end / 4]
    bottom = min(late) - 0.5 * (max(late) - min(late))
    return bottom if min(y for _, y in points) < bottom else None


@dataclass(frozen=True, slots=True)
class PointPicture(Picture):
    """A point per model with its spread; `points` are (model, x, y, spread of y)."""

    x_title: str
    y_title: str
    points: tuple[tuple[str, float, float, float], ...]

    def _draw(self, pyplot: Any) -> Any:
        figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
        for place, (model, x, y, spread) in enumerate(self.points):
            axes.errorbar(
                [x],
                [y],
                yerr=[spread],
                color=_COLOURS[place % len(_COLOURS)],
                marker=_MARKERS[place % len(_MARKERS)],
                capsize=3,
                ms=7,
                label=model,
                ls="none",
            )
        axes.set_xscale("log")
        axes.set_xlabel(self.x_title)
        axes.set_ylabel(self.y_title)
        axes.grid(color=_GRID)
        _open_frame(axes)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return figure

"""One self-contained HTML page about runs: metrics, curves, and what the model read and answered.

`write_report(path, data)` renders `ReportData` with the jinja2 template beside this file. The page
needs no network and no script, follows the reader's light or dark setting, prints, and fits a
phone. All text that comes from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import markupsafe
import numpy as np
import numpy.typing as npt

from m6rec_jax.errors import DataError
from m6rec_jax.evaluation import report_figures
from m6rec_jax.io.atomic import write_atomically

TEMPLATE = Path(__file__).with_name("report_template.html")
# Tenths of fewer impressions say nothing.
LEAST_CALIBRATED = 100


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the headline table.

    Attributes:
      task: what was asked, such as "Will the user like the film?".
      metric: such as "AUC".
      model: the model's value on the test part.
      baselines: name -> value; None where the baseline has none. The columns of the
        table are the names of all lines, in order.
      higher_is_better: False for losses.
    """

    task: str
    metric: str
    model: float
    baselines: Mapping[str, float | None]
    higher_is_better: bool = True

    @property
    def lead(self) -> float | None:
        """How far the model is ahead of the best baseline; positive is better."""
        sign = 1 if self.higher_is_better else -1
        leads = [sign * (self.model - v) for v in self.baselines.values() if v is not None]
        return min(leads, default=None)


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over the steps of a run.

    Attributes:
      title: of the drawing, such as "Loss: tuning".
      series: name -> (steps, values).
    """

    title: str
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]]


@dataclass(frozen=True, slots=True)
class ScoredExamples:
    """Test impressions, for the ROC curve and the calibration plot.

    Attributes:
      labels: `[n]`, 0 or 1.
      scores: `[n]`, the model's.
      baseline_scores: name -> `[n]`, any scale; drawn in the ROC plot.
      are_probabilities: whether `scores` are; only then they are drawn against the labels.
      title: what the drawings' titles name, or "".
    """

    labels: npt.ArrayLike
    scores: npt.ArrayLike
    baseline_scores: Mapping[str, npt.ArrayLike] = field(default_factory=dict)
    are_probabilities: bool = True
    title: str = ""


@dataclass(frozen=True, slots=True)
class RankedTargets:
    """Ranks of what test rows want, for the plot of hit rates.

    Attributes:
      ranks: name -> int `[n, m]`, from 1; 0 is padding. The model comes first.
      longest: the longest list that is drawn.
      title: as in `ScoredExamples`.
    """

    ranks: Mapping[str, npt.NDArray[np.int64]]
    longest: int = 50
    title: str = ""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item of a list, as the model reads it.

    Attributes:
      item, score: its text, and the model's score.
      bar: how much of its bar is filled, from 0 to 1.
      is_hit: whether the user chose it later.
    """

    item: str
    score: float
    bar: float = 0.0
    is_hit: bool = False


@dataclass(frozen=True, slots=True)
class UserPanel:
    """One user: what the model read, profile first and newest last, and the list made for them.

    Attributes:
      name: such as "User 405".
      history: texts.
      recommendations: best first.
      wanted: what the user chose later.
      history_length: behaviours that were there, if `history` shows fewer.
    """

    name: str
    history: Sequence[str]
    recommendations: Sequence[Recommendation]
    wanted: Sequence[str] = ()
    history_length: int | None = None


@dataclass(frozen=True, slots=True)
class TextPiece:
    """One segment or candidate exactly as the model read it, and its length in tokens."""

    text: str
    num_tokens: int
    remark: str = ""


@dataclass(frozen=True, slots=True)
class ModelText:
    """The input of one example: source segments for the encoder, what it answered for the decoder.

    Attributes:
      title: of the example.
      segments: of the source.
      answers: candidates, or texts, with what the model made of them as remarks.
      task: whose example it is, or "".
    """

    title: str
    segments: Sequence[TextPiece]
    answers: Sequence[TextPiece] = ()
    task: str = ""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters of one part of the model."""

    name: str
    count: int
    is_trained: bool


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything the page shows. A part that is empty is left out.

    Attributes:
      title: usually the data set.
      summary: a sentence or two under the title.
      comparisons: the headline table.
      curves: of training. scored, ranked: of test rows, one for each task.
      users, texts: examples. score_name: what the users' scores are.
      parameters: while tuning; the trained share is worked out from these.
      facts: name -> value: gin file, date, hardware, seconds and the like.
      notes: what a reader must know to judge the metrics.
    """

    title: str
    summary: str = ""
    comparisons: Sequence[Comparison] = ()
    curves: Sequence[Curve] = ()
    scored: Sequence[ScoredExamples] = ()
    ranked: Sequence[RankedTargets] = ()
    users: Sequence[UserPanel] = ()
    score_name: str = "score"
    texts: Sequence[ModelText] = ()
    parameters: Sequence[ParameterGroup] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def num_parameters(self) -> int:
        return sum(group.count for group in self.parameters)

    @property
    def num_frozen(self) -> int:
        return sum(group.count for group in self.parameters if not group.is_trained)

    @property
    def trained_share(self) -> float:
        """Parameters that tuning trains, as a share of the frozen backbone, as `m6rec params`."""
        return (self.num_parameters - self.num_frozen) / max(self.num_frozen, 1)

    @property
    def baseline_names(self) -> list[str]:
        """Columns of the headline table."""
        return list(dict.fromkeys(name for line in self.comparisons for name in line.baselines))


def render_report(data: ReportData) -> str:
    """Returns the page.

    Raises:
      DataError: a metric is not finite, lengths do not fit, or labels are not 0 and 1.
    """
    _check(data)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "decimals": _decimals,
        "signed": _signed,
        "count": "{:,}".format,
        "compact": _compact,
        "percent": "{:.2%}".format,
    }
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    facts = {**_single_points(data), **data.facts}
    return template.render(data=data, figures=_figures(data), facts=facts)


def write_report(path: str | Path, data: ReportData) -> Path:
    """Renders the page and writes it, whole or not at all; raises as `render_report`."""
    page = render_report(data)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def _figures(data: ReportData) -> list[tuple[str, str, markupsafe.Markup]]:
    """Title, caption and drawing of each figure. The drawings are ours, so they are not escaped."""
    drawings: list[tuple[str, str, str]] = []
    for number, curve in enumerate(data.curves):
        if not _is_drawn(curve):
            continue
        drawing = report_figures.curves(curve.series, name=f"curve{number}")
        drawings.append((curve.title, "", drawing))
    for number, ranked in enumerate(data.ranked):
        drawing = report_figures.hit_rates(ranked.ranks, ranked.longest, name=f"ranks{number}")
        caption = "Share of the test rows with an item the user chose among the first k."
        drawings.append((_titled("Hit rate by length of the list", ranked.title), caption, drawing))
    for number, scored in enumerate(data.scored):
        labels, scores = np.asarray(scored.labels), np.asarray(scored.scores, np.float64)
        drawing = report_figures.roc_curves(
            labels, {"this model": scores, **scored.baseline_scores}, name=f"roc{number}"
        )
        caption = f"{len(labels):,} test impressions, {labels.mean():.0%} of them positive."
        drawings.append((_titled("ROC", scored.title), caption, drawing))
        if not scored.are_probabilities or len(labels) < LEAST_CALIBRATED:
            continue
        drawing, error = report_figures.calibration(labels, scores, name=f"calibration{number}")
        caption = (
            "Tenths of the test impressions by predicted probability, against the share that was "
            f"positive. Mean distance from the diagonal: {error:.3f}."
        )
        drawings.append((_titled("Calibration", scored.title), caption, drawing))
    return [(title, caption, markupsafe.Markup(svg)) for title, caption, svg in drawings]


def _is_drawn(curve: Curve) -> bool:
    """Whether there is a line to draw: of a single point its value is told."""
    return any(len(steps) > 1 for steps, _ in curve.series.values())


def _single_points(data: ReportData) -> dict[str, str]:
    """What `Curve` of one point each say."""
    return {
        curve.title: ", ".join(
            f"{_decimals(values[0])} ({name}, step {steps[0]:,})"
            for name, (steps, values) in curve.series.items()
        )
        for curve in data.curves
        if not _is_drawn(curve)
    }


def _titled(what: str, title: str) -> str:
    return f"{what}: {title}" if title else what


def _check(data: ReportData) -> None:
    for line in data.comparisons:
        values = {"this model": line.model, **line.baselines}
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                raise DataError(
                    f"report: {line.metric} of {name!r} is {value}; leave it out (None)"
                )


def _decimals(value: float | None, decimals: int = 4) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+,.4f}".replace("-", "−")


def _compact(value: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)

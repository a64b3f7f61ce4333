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

from m6rec_jax.errors import DataError
from m6rec_jax.evaluation.report_figures import Figure
from m6rec_jax.io.atomic import write_atomically

TEMPLATE = Path(__file__).with_name("report_template.html")


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
      figures: of training, and of test rows.
      users, texts: examples. score_name: what the users' scores are.
      parameters: while tuning; the trained share is worked out from these.
      facts: name -> value: gin file, date, hardware, seconds and the like.
      notes: what a reader must know to judge the metrics.
    """

    title: str
    summary: str = ""
    comparisons: Sequence[Comparison] = ()
    figures: Sequence[Figure] = ()
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
      DataError: a metric is not finite.
    """
    for line in data.comparisons:
        for name, value in {"this model": line.model, **line.baselines}.items():
            if value is not None and not math.isfinite(value):
                raise DataError(
                    f"report: {line.metric} of {name!r} is {value}; leave it out (None)"
                )
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
    return template.render(data=data)


def write_report(path: str | Path, data: ReportData) -> Path:
    """Renders the page and writes it, whole or not at all; raises as `render_report`."""
    page = render_report(data)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path


def _decimals(value: float | None, decimals: int = 4) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+,.4f}".replace("-", "−")


def _compact(value: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)

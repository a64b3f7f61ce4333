"""One self-contained HTML page about runs: metrics, curves, and what the model read and answered.

`write_report` renders the jinja2 template beside this file. The page needs no network and no
script, follows the reader's light or dark setting, prints, and fits a phone. All text that comes
from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from m6rec_jax.errors import DataError
from m6rec_jax.evaluation.report_figures import Figure
from m6rec_jax.io.atomic import write_atomically

TEMPLATE = Path(__file__).with_name("report_template.html")


class Comparison(NamedTuple):
    """One line of the headline table.

    Attributes:
      task: what was asked, such as "Will the user like the film?".
      metric: such as "AUC".
      model: the model's value on the test part.
      baselines: name -> value; None where the baseline has none. The columns of the table are the
        names of all lines, in order.
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


class Text(NamedTuple):
    """A text exactly as the model read or wrote it.

    Attributes:
      text: it.
      note: what is said of it: its length in tokens, its score, the truth.
      bar: how much of its bar is filled, 0 to 1; None: it has none.
      is_hit: the user chose it later.
    """

    text: str
    note: str = ""
    bar: float | None = None
    is_hit: bool = False


class Example(NamedTuple):
    """A row: what the encoder read, what the model answered, what was chosen later."""

    title: str
    read: Sequence[Text]
    answers: Sequence[Text]
    wanted: Sequence[Text] = ()


class ParameterGroup(NamedTuple):
    """Parameters of one part of the model."""

    name: str
    num_parameters: int
    is_trained: bool


class ReportData(NamedTuple):
    """Everything the page shows. A part that is empty is left out.

    Attributes:
      title: usually the data set.
      summary: a sentence or two under the title.
      comparisons: the headline table.
      figures: of training, and of test rows.
      examples: of test rows.
      parameters: while tuning.
      facts: name -> value: gin file, date, hardware, seconds and the like.
      notes: what a reader must know to judge the metrics.
    """

    title: str
    summary: str = ""
    comparisons: Sequence[Comparison] = ()
    figures: Sequence[Figure] = ()
    examples: Sequence[Example] = ()
    parameters: Sequence[ParameterGroup] = ()
    facts: Mapping[str, str] = {}
    notes: Sequence[str] = ()

    @property
    def num_frozen(self) -> int:
        return sum(group.num_parameters for group in self.parameters if not group.is_trained)

    @property
    def trained_share(self) -> float:
        """Parameters that tuning trains, as a share of the frozen backbone, as `m6rec params`."""
        num_trained = sum(group.num_parameters for group in self.parameters if group.is_trained)
        return num_trained / max(self.num_frozen, 1)


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
        "decimals": lambda value: "–" if value is None else f"{value:,.4f}",
        "signed": lambda value: "–" if value is None else f"{value:+,.4f}".replace("-", "−"),
        "count": "{:,}".format,
        "percent": "{:.2%}".format,
    }
    columns = dict.fromkeys(name for line in data.comparisons for name in line.baselines)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(data=data, columns=list(columns))


def write_report(path: str | Path, data: ReportData) -> Path:
    """Renders the page and writes it, whole or not at all; raises as `render_report`."""
    page = render_report(data)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path

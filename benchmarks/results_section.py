"""One section of the results: a result file and the prose around its figures.

`NAME.json` may have prose beside it, `NAME.md`, a jinja2 template. Its first line is the section's
`# Title`; sections stand in the order of the files' names unless a line
`{# order: 10 #}` says otherwise (lower comes first, default 100). What it may call:

    {{ table(["auc", "log_loss"]) }}           rows: models, cells: mean ± spread over seeds
    {{ table(["auc"], split="few_shot_64") }}  of one split (or `dataset`) of several
    {{ figure("FM", "auc") }}                  one mean, to be named in a sentence
    {{ comparison("retrieval", ["ndcg@10"]) }} figures of a job beside their baselines
    {{ table_by("samples", "auc") }}           one metric: rows are models, columns a key's values
    {% if has("score") %} ... {% endif %}      only where that split (`dataset`, `model`) has rows

A result file without prose is on no page. Measured figures come from these calls; what prose says
of data, settings and other people's papers is typed. Commands, commits, hardware and dates of the
rows stand in the result file, which is named below each section.

Prose with a line `{# page: speed.md #}` stands on `docs/speed.md`, other on `docs/results.md`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from benchmarks.comparison_table import comparison_table
from benchmarks.metric_names import describe_metric
from benchmarks.results_file import Results, Row
from benchmarks.table_cells import Cell, called, markdown
from m6rec_jax.errors import DataError

# What is known of a run stands in each of its rows.
OF_RUNS = ("seconds", "trainable_share", "steps_to_90_percent")


@dataclass(slots=True)
class Line:
    """One line of a table: a model made in one way."""

    model: str
    rows: list[Row] = field(default_factory=list)

    def cell(self, metric: str) -> Cell | None:
        known = {row["seed"]: row[metric] for row in self.rows if metric in row}
        if metric in OF_RUNS and known:
            # A mean of those seeds that have the figure would mislead.
            is_whole = all(known.get(row["seed"]) is not None for row in self.rows)
            values = list(known.values()) if is_whole else []
        else:
            values = [row["value"] for row in self.rows if row["metric"] == metric]
        return Cell(tuple(values)) if values else None

    def of_baseline(self, name: str) -> Line:
        """The line of a baseline that stands beside this one, as far as it has figures."""
        rows = [row for row in self.rows if name in row["baselines"]]
        beside = [row | {"value": row["baselines"][name]} for row in rows]
        return Line(name, beside)

    @property
    def notes(self) -> list[str]:
        found: dict[str, list[str]] = {}
        for row in self.rows:
            seeds = found.setdefault(row["note"], []) if row.get("note") else None
            if seeds is not None and row["seed"] is not None and str(row["seed"]) not in seeds:
                seeds.append(str(row["seed"]))
        return [
            f"{self.model}: {note}" + (f" (seed {', '.join(seeds)})" if seeds else "")
            for note, seeds in found.items()
        ]


def filled_in(template: str, name: str, **calls: Any) -> str:
    """Prose with its figures, without more than one empty line at a time.

    Args:
      template: of jinja2.
      name: of its file.
      calls: what it may call.

    Raises:
      DataError: it is not valid, or asks for what is not there.
    """
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        text = environment.from_string(template).render(**calls)
    except jinja2.TemplateError as error:
        raise DataError(f"{name}: {error}") from error
    return re.sub(r"\n{3,}", "\n\n", text.strip())


class Section:
    """Renders one result file.

    Args:
      results: the file.
      prose: a template.
    """

    def __init__(self, results: Results, prose: str) -> None:
        self.results = results
        self.prose = prose
        order = re.search(r"\{#\s*order:\s*(\d+)\s*#\}", prose)
        self.order = int(order.group(1)) if order else 100
        self.is_of_speed = re.search(r"\{#\s*page: speed\.md\s*#\}", prose) is not None

    def render(self) -> str:
        """Returns the section's Markdown, which begins with its title, `# Title`.

        Raises:
          DataError: the prose asks for what the file does not hold, or is not a valid template.
        """
        name = self.results.name
        text = filled_in(
            self.prose,
            f"{name}.md",
            table=self.table,
            figure=self.figure,
            comparison=self.comparison,
            table_by=self.table_by,
            has=self.has,
        )
        if not text.startswith("# "):
            raise DataError(f"{name}.md: the first line must be '# Title'")
        return f"{text.rstrip()}\n\n*[`{name}.json`](../benchmarks/results/{name}.json)*\n"

    def has(self, split: str | None = None, **values: str) -> bool:
        """Whether a row is of a split and has these values: studies are rendered before their end.

        Args:
          split: of the data; None: any.
          values: keys of a row, such as `dataset` or `model`, and what stands there.
        """
        wanted = values if split is None else values | {"split": split}
        return any(
            all(row.get(key) == value for key, value in wanted.items()) for row in self.results.rows
        )

    def _rows(self, dataset: str | None, split: str | None) -> list[Row]:
        rows = [
            row
            for row in self.results.rows
            if dataset in (None, row["dataset"]) and split in (None, row["split"])
        ]
        groups = {(row["dataset"], row["split"]) for row in rows}
        if len(groups) != 1:
            raise DataError(
                f"{self.results.name}.md: dataset={dataset!r}, split={split!r} picks "
                f"{sorted(groups) or 'no rows'}; one table or figure is of one split"
            )
        return rows

    def _lines(self, dataset: str | None, split: str | None) -> list[Line]:
        lines: dict[str, Line] = {}
        for row in self._rows(dataset, split):
            name = called(row["model"])
            lines.setdefault(name, Line(name)).rows.append(row)
        return list(lines.values())

    def table(
        self,
        metrics: Sequence[str],
        *,
        dataset: str | None = None,
        split: str | None = None,
        sort: str | None = None,
        bold: bool = True,
    ) -> str:
        """A Markdown table.

        Args:
          metrics: columns; `"seconds"` is the time the rows give.
          dataset, split: which rows, where the file has several.
          sort: metric to order by, best last (by default the first of `metrics`).
          bold: whether the best mean of each metric is; not where lines are of unlike work.
        """
        lines = self._lines(dataset, split)
        order = sort or metrics[0]
        sign = -1 if describe_metric(order)[2] == "lower" else 1

        def place(line: Line) -> float:
            cell = line.cell(order)
            return float("-inf") if cell is None else sign * cell.mean

        lines.sort(key=place)
        best: dict[str, float] = {}
        for metric in metrics:
            better = describe_metric(metric)[2]
            means = [cell.mean for line in lines if (cell := line.cell(metric)) is not None]
            if not means and not any(metric in row for line in lines for row in line.rows):
                raise DataError(f"{self.results.name}.md: no row has the metric {metric!r}")
            if bold and better != "none" and len(means) > 1:
                best[metric] = max(means) if better == "higher" else min(means)
        head = ["model", *(describe_metric(metric)[0] for metric in metrics)]
        table = [head, ["---", *["---:"] * len(metrics)]]
        notes: list[str] = []
        for line in lines:
            marks = ""
            for note in line.notes:
                notes.append(note)
                marks += f"<sup>{len(notes)}</sup>"
            cells = [line.model + marks]
            for metric in metrics:
                cell = line.cell(metric)
                text = "–" if cell is None else cell.text(describe_metric(metric)[1])
                is_best = cell is not None and best.get(metric) == cell.mean
                cells.append(f"**{text}**" if is_best else text)
            table.append(cells)
        text = markdown(table)
        if notes:
            text += "\n" + "\n".join(f"<sup>{n}</sup> {note}  " for n, note in enumerate(notes, 1))
            text += "\n"
        return text

    def figure(
        self,
        model: str,
        metric: str,
        *,
        dataset: str | None = None,
        split: str | None = None,
        baseline: str | None = None,
    ) -> str:
        """The mean of one metric of one model, with the metric's decimals.

        Args:
          model, metric: whose, and which.
          dataset, split: which rows, where the file has several.
          baseline: that stands beside it (rows of `benchmarks.jobs`), in place of the model's own.
        """
        lines = [line for line in self._lines(dataset, split) if line.model == called(model)]
        if baseline is not None:
            lines = [line.of_baseline(baseline) for line in lines]
        cells = [cell for line in lines if (cell := line.cell(metric)) is not None]
        if len(cells) != 1:
            raise DataError(
                f"{self.results.name}.md: figure({model!r}, {metric!r}) matches {len(cells)} lines"
            )
        return f"{cells[0].mean:,.{describe_metric(metric)[1]}f}"

    def comparison(self, job: str, metrics: Sequence[str]) -> str:
        """A line for every data set, model and metric of a job, beside what it is compared with."""
        rows = [row for row in self.results.rows if row.get("job") == job]
        rows = [row for metric in metrics for row in rows if row["metric"] == metric]
        if not rows:
            raise DataError(f"{self.results.name}.md: comparison({job!r}) matches no row")
        return comparison_table(rows)

    def table_by(self, key: str, metric: str) -> str:
        """A Markdown table of one metric: a line per model, a column per value of a row's key.

        The best mean of each column is set in bold.
        """
        cells = self._cells_by(key, metric)
        columns = sorted({value for found in cells.values() for value in found})
        _, decimals, better = describe_metric(metric)
        best: dict[Any, float] = {}
        for column in columns if better != "none" else ():
            means = [found[column].mean for found in cells.values() if column in found]
            if len(means) > 1:
                best[column] = max(means) if better == "higher" else min(means)
        head = [f"{at:,g}" if isinstance(at, int | float) else called(at) for at in columns]
        table = [["model", *head], ["---", *["---:"] * len(columns)]]
        for model, found in cells.items():
            texts = []
            for column in columns:
                cell = found.get(column)
                text = "–" if cell is None else cell.text(decimals)
                is_best = cell is not None and best.get(column) == cell.mean
                texts.append(f"**{text}**" if is_best else text)
            table.append([model, *texts])
        return markdown(table)

    def _cells_by(self, key: str, metric: str) -> dict[str, dict[Any, Cell]]:
        """Model -> value of the key -> cell."""
        values: dict[str, dict[Any, list[float]]] = {}
        for row in self.results.rows:
            if key in row and row["metric"] == metric:
                of_model = values.setdefault(called(row["model"]), {})
                of_model.setdefault(row[key], []).append(row["value"])
        if not values:
            raise DataError(f"{self.results.name}.md: no row of {metric!r} has the key {key!r}")
        return {
            model: {at: Cell(tuple(found)) for at, found in by_key.items()}
            for model, by_key in values.items()
        }

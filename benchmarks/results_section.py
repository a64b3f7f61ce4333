"""One section of the results: a result file and the prose around its figures.

`NAME.json` may have prose beside it, `NAME.md`, a jinja2 template. Its first line is the section's
`# Title`; sections stand in the order of the files' names unless a line
`{# order: 10 #}` says otherwise (lower comes first, default 100). What it may call:

    {{ table(["auc", "log_loss"]) }}           rows: models, cells: mean ± spread over seeds
    {{ table(["auc"], split="few_shot_64") }}  of one split (or `dataset`) of several
    {{ tables() }}                             one of each split, of all its metrics
    {{ figure("FM", "auc") }}                  one mean, to be named in a sentence
    {{ chart("auc") }}                         a picture, written to `docs/images/NAME_auc.svg`
    {{ curves("auc") }}                        validations by step, a panel for each data set
    {{ trade_off("trainable_share", "auc") }}  one figure by another, a point for each model
    {{ comparison("explanation") }}            figures of a job beside their baselines
    {{ jobs }}                                 which jobs there are rows of
    {{ table_by("samples", "auc") }}           one metric: rows are models, columns a key's values
    {{ lines_by("samples", "auc") }}           the same as a picture, the key in powers
    {{ provenance() }}                         commands, commits and hardware of the rows
    {% if has("score") %} ... {% endif %}      only where that split (`dataset`, `model`) has rows

A result file without prose gets its name as title and a table for each of its splits. Measured
figures come from these calls; what prose says of data, settings and other people's papers is typed.

Prose with a line `{# page: NAME.md #}` stands on the page `docs/NAME.md`, other on that of results.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.comparison_table import comparison_table
from benchmarks.metric_names import describe_metric
from benchmarks.results_chart import DotPicture, LinePicture, Picture, PointPicture
from benchmarks.results_file import Results, Row
from benchmarks.table_cells import Cell, called, made_by
from m6rec_jax.errors import DataError

# What is known of a run stands in each of its rows.
OF_RUNS = ("seconds", "trainable_share", "steps_to_90_percent")


@dataclass(slots=True)
class Line:
    """One line of a table: a model made in one way."""

    model: str
    made_by: str
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
        return Line(name, self.made_by, beside)

    @property
    def seeds(self) -> int:
        return len({row["seed"] for row in self.rows if row["seed"] is not None})

    @property
    def date(self) -> str:
        return str(max(row["date"] for row in self.rows))

    def said(self, column: str) -> str:
        """What a column says that is of no metric; nothing of the seeds where nothing is drawn."""
        told = {"seeds": str(self.seeds or ""), "made by": self.made_by, "date": self.date}
        return told[column]

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


def _of_all(lines: Sequence[Line], columns: Collection[str]) -> str:
    """What all lines of a table have in common, as a sentence below it."""
    told = [lines[0].date] if "date" in columns else []
    if "seeds" in columns and (seeds := max(line.seeds for line in lines)):
        drawn = "" if all(line.seeds for line in lines) else " where anything is drawn"
        told.append(f"{'one seed' if seeds == 1 else f'{seeds} seeds'}{drawn}")
    told += [f"made by {lines[0].made_by}"] if "made by" in columns else []
    return f"\nEach row: {', '.join(told)}.\n" if told else ""


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
    """Renders one result file: its prose, or a table per split where it has none.

    Args:
      results: the file.
      prose: a template; None: there is none.
      images: folder of pictures.
      foundations: fingerprints of today's.
    """

    def __init__(
        self,
        results: Results,
        prose: str | None,
        images: Path,
        foundations: Collection[str] = (),
    ) -> None:
        self.results = results
        self._foundations = foundations
        self.prose = prose
        self._images = images
        self.pictures: dict[Path, Picture] = {}
        order = re.search(r"\{#\s*order:\s*(\d+)\s*#\}", prose or "")
        self.order = int(order.group(1)) if order else 100
        page = re.search(r"\{#\s*page:\s*(\w+\.md)\s*#\}", prose or "")
        self.page = page.group(1) if page else None

    def render(self) -> str:
        """Returns the section's Markdown, which begins with its title, `# Title`.

        Raises:
          DataError: the prose asks for what the file does not hold, or is not a valid template.
        """
        if self.prose is None:
            return self._without_prose()
        text = filled_in(
            self.prose,
            f"{self.results.name}.md",
            table=self.table,
            tables=self.tables,
            figure=self.figure,
            chart=self.chart,
            curves=self.curves,
            trade_off=self.trade_off,
            comparison=self.comparison,
            jobs=list(dict.fromkeys(row.get("job") for row in self.results.rows)),
            table_by=self.table_by,
            lines_by=self.lines_by,
            provenance=self.provenance,
            has=self.has,
        )
        if not text.startswith("# "):
            raise DataError(f"{self.results.name}.md: the first line must be '# Title'")
        return text + "\n"

    def _without_prose(self) -> str:
        title = f"# {self.results.name.replace('_', ' ').capitalize()}"
        return f"{title}\n\n{self.tables()}\n{self.provenance()}"

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
        lines: dict[tuple[str, str], Line] = {}
        for row in self._rows(dataset, split):
            key = called(row["model"]), made_by(row)
            lines.setdefault(key, Line(*key)).rows.append(row)
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
        last = {"seeds": "---:", "made by": "---", "date": "---"}
        same = {name for name in last if len({line.said(name) for line in lines} - {""}) < 2}
        columns = [name for name in last if name not in same]
        head = ["model", *(describe_metric(metric)[0] for metric in metrics), *columns]
        table = [head, ["---", *["---:"] * len(metrics), *(last[name] for name in columns)]]
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
            cells += [line.said(name) or "–" for name in columns]
            table.append(cells)
        text = "".join("| " + " | ".join(cells) + " |\n" for cells in table)
        if notes:
            text += "\n" + "\n".join(f"<sup>{n}</sup> {note}  " for n, note in enumerate(notes, 1))
            text += "\n"
        if same:
            text += _of_all(lines, same)
        return text

    def tables(self) -> str:
        """A table for each data set and split, of all metrics that its rows have."""
        groups = dict.fromkeys((row["dataset"], row["split"]) for row in self.results.rows)
        parts = []
        for dataset, split in groups:
            metrics = dict.fromkeys(row["metric"] for row in self._rows(dataset, split))
            parts.append(f"{dataset}, {split.replace('_', ' ')}:\n")
            parts.append(self.table(list(metrics), dataset=dataset, split=split))
        return "\n".join(part.rstrip("\n") + "\n" for part in parts)

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

    def chart(self, metric: str, *, dataset: str | None = None, split: str | None = None) -> str:
        """A dot for every seed and a bar for every mean, as an SVG file beside the page."""
        cells = [(line.model, line.cell(metric)) for line in self._lines(dataset, split)]
        data = [(model, cell.values) for model, cell in cells if cell is not None]
        data.sort(key=lambda pair: statistics.fmean(pair[1]))
        title, _, better = describe_metric(metric)
        if better == "lower":
            data.reverse()
        picture = DotPicture(title, tuple(data))
        return self._drawn(f"{split or ''}_{metric}", picture, f"{title} by model")

    def curves(self, metric: str) -> str:
        """The `curve` of the rows, mean over seeds, a panel per data set and a line per model."""
        title = describe_metric(metric)[0]
        panels = []
        for dataset in dict.fromkeys(row["dataset"] for row in self.results.rows):
            lines = []
            for line in self._lines(dataset, None):
                steps: dict[float, list[float]] = {}
                for row in line.rows:
                    for step, value in row.get("curve", ()) if row["metric"] == metric else ():
                        steps.setdefault(step, []).append(value)
                if steps:
                    points = tuple((step, statistics.fmean(steps[step])) for step in sorted(steps))
                    lines.append((line.model, points))
            if lines:
                panels.append((dataset.replace("_", " "), tuple(lines)))
        if not panels:
            raise DataError(f"{self.results.name}.md: no row of {metric!r} has a curve")
        picture = LinePicture("steps", title, tuple(panels))
        return self._drawn(f"{metric}_by_step", picture, f"{title} by step")

    def trade_off(
        self, x: str, y: str, *, dataset: str | None = None, split: str | None = None
    ) -> str:
        """One metric by another: the means of every model that has both; x is drawn in powers."""
        points = []
        for line in self._lines(dataset, split):
            cells = line.cell(x), line.cell(y)
            if cells[0] is not None and cells[1] is not None:
                points.append((line.model, cells[0].mean, cells[1].mean, cells[1].spread or 0.0))
        titles = describe_metric(x)[0], describe_metric(y)[0]
        picture = PointPicture(*titles, tuple(points))
        name = f"{dataset or ''}_{split or ''}_{y}_by_{x}"
        return self._drawn(name, picture, f"{titles[1]} by {titles[0]}")

    def comparison(self, job: str) -> str:
        """A line for every data set, task and figure of a job, beside what it is compared with."""
        rows = [row for row in self.results.rows if row.get("job") == job]
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
        best: dict[float, float] = {}
        for column in columns if better != "none" else ():
            means = [found[column].mean for found in cells.values() if column in found]
            if len(means) > 1:
                best[column] = max(means) if better == "higher" else min(means)
        table = [["model", *(f"{column:,g}" for column in columns), "made by"]]
        table.append(["---", *["---:"] * len(columns), "---"])
        for (model, made), found in cells.items():
            texts = []
            for column in columns:
                cell = found.get(column)
                text = "–" if cell is None else cell.text(decimals)
                is_best = cell is not None and best.get(column) == cell.mean
                texts.append(f"**{text}**" if is_best else text)
            table.append([model, *texts, made])
        return "".join("| " + " | ".join(line) + " |\n" for line in table)

    def lines_by(self, key: str, metric: str) -> str:
        """A picture of one metric by a key of the rows, which is drawn in powers."""
        lines = tuple(
            (model, tuple((value, found[value].mean) for value in sorted(found)))
            for (model, _), found in self._cells_by(key, metric).items()
        )
        title = describe_metric(metric)[0]
        picture = LinePicture(key.replace("_", " "), title, (("", lines),), log_x=True)
        return self._drawn(f"{metric}_by_{key}", picture, f"{title} by {key}")

    def _cells_by(self, key: str, metric: str) -> dict[tuple[str, str], dict[float, Cell]]:
        """(model, made by) -> value of the key -> cell."""
        values: dict[tuple[str, str], dict[float, list[float]]] = {}
        for row in self.results.rows:
            if key in row and row["metric"] == metric:
                line = values.setdefault((called(row["model"]), made_by(row)), {})
                line.setdefault(row[key], []).append(row["value"])
        if not values:
            raise DataError(f"{self.results.name}.md: no row of {metric!r} has the key {key!r}")
        return {
            line: {at: Cell(tuple(found)) for at, found in by_key.items()}
            for line, by_key in values.items()
        }

    def _drawn(self, name: str, picture: Picture, alt: str) -> str:
        name = re.sub(r"[^a-z0-9]+", "_", f"{self.results.name}_{name}").strip("_")
        path = self._images / f"{name}.svg"
        self.pictures[path] = picture
        return f"![{alt}]({self._images.name}/{path.name})\n"

    def provenance(self) -> str:
        """Which commands made the rows, at which commit, on what, when.

        Rows of a foundation that is no more are named first.
        """
        seen = dict.fromkeys(
            (row["command"], row["commit"], row["date"], row["hardware"])
            for row in self.results.rows
        )
        lines = [
            self._of_earlier(fingerprint)
            for fingerprint in sorted(self.results.foundations - set(self._foundations))
        ]
        lines.append("<details><summary>Commands, commits and hardware</summary>\n\n")
        hardware = list(dict.fromkeys(entry[3] for entry in seen))
        for text in hardware:
            lines.append(f"On {text}:\n\n")
            lines += [
                f"- `{command}` ({commit}, {date})\n"
                for command, commit, date, machine in seen
                if machine == text
            ]
            lines.append("\n")
        return "".join(lines) + "</details>\n"

    def _of_earlier(self, fingerprint: str) -> str:
        """A sentence that says what was made from a foundation that is no more."""
        rows = [row for row in self.results.rows if "foundation" in row]
        own = [row for row in rows if row["foundation"] == fingerprint]
        told = f"made from an earlier foundation (`{fingerprint}`), not one of"
        told += " [The foundations](results.md#the-foundations).\n\n"
        if len(own) < len(rows):
            what = dict.fromkeys(str(row.get("job", row["dataset"])) for row in own)
            told = f"{', '.join(what)}: {told}"
        return told[0].upper() + told[1:]

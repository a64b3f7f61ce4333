"""Tables and figures of a result file, as its prose calls them.

{{ table(["auc", "log_loss"]) }}           rows: models, cells: mean ± spread over seeds
{{ table(["auc"], split="few_shot_64") }}  of one split (or `dataset`) of several
{{ figure("FM", "auc") }}                  one mean, to be named in a sentence
{{ comparison("retrieval", ["ndcg@10"]) }} figures of a job beside their baselines
{{ table_by("samples", "auc") }}           one metric: rows are models, columns a key's values
{% if has("score") %} ... {% endif %}      only where that split (`dataset`, `model`) has rows
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.metric_names import describe_metric
from benchmarks.results_file import Row
from m6rec_jax.errors import DataError

# What is known of a run stands in each of its rows.
OF_RUNS = ("seconds", "trainable_share")
Cells = Mapping[Any, Sequence[float]]


class Tables:
    """The rows of one result file; errors name it."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name, self.rows = name, rows

    def calls(self) -> dict[str, Callable[..., Any]]:
        """What a template may call."""
        names = ("table", "figure", "comparison", "table_by", "has")
        return {name: getattr(self, name) for name in names}

    def has(self, split: str | None = None, **values: str) -> bool:
        """Whether a row is of a split and has these values: a study may be under way."""
        wanted = values if split is None else values | {"split": split}
        return any(wanted.items() <= _plain(row).items() for row in self.rows)

    def table(
        self,
        metrics: Sequence[str],
        *,
        dataset: str | None = None,
        split: str | None = None,
        sort: str | None = None,
        bold: bool = True,
    ) -> str:
        """Models by metrics, the best last by `sort` or the first metric, the best mean bold."""
        rows = self._of(dataset, split)
        models = list(dict.fromkeys(row["model"] for row in rows))
        columns = {
            metric: {
                model: _values([r for r in rows if r["model"] == model], metric) for model in models
            }
            for metric in metrics
        }
        if empty := [metric for metric, cells in columns.items() if not any(cells.values())]:
            raise DataError(f"{self.name}.md: no row has the metric {empty[0]!r}")
        order = sort or metrics[0]
        sign = -1 if describe_metric(order)[2] == "lower" else 1
        by = {model: _values([r for r in rows if r["model"] == model], order) for model in models}
        models.sort(key=lambda m: sign * statistics.fmean(by[m]) if by[m] else float("-inf"))
        texts = {metric: _texts(metric, cells, bold) for metric, cells in columns.items()}
        head = ["model", *(describe_metric(metric)[0] for metric in metrics)]
        body = [[_called(model), *(texts[metric][model] for metric in metrics)] for model in models]
        return _markdown(head, body)

    def table_by(self, key: str, metric: str) -> str:
        """Models by the values of a row's key, the best mean of each column bold."""
        rows = [row for row in self.rows if key in row and row["metric"] == metric]
        if not rows:
            raise DataError(f"{self.name}.md: no row of {metric!r} has the key {key!r}")
        models = list(dict.fromkeys(row["model"] for row in rows))
        columns = sorted({row[key] for row in rows})
        texts = {}
        for column in columns:
            cells = {
                model: [r["value"] for r in rows if (r[key], r["model"]) == (column, model)]
                for model in models
            }
            texts[column] = _texts(metric, cells)
        head = [f"{at:,g}" if isinstance(at, int | float) else _called(at) for at in columns]
        body = [[_called(model), *(texts[column][model] for column in columns)] for model in models]
        return _markdown(["model", *head], body)

    def figure(
        self,
        model: str,
        metric: str,
        *,
        dataset: str | None = None,
        split: str | None = None,
        baseline: str | None = None,
    ) -> str:
        """The mean of a metric of a model, or of a baseline that stands beside it."""
        rows = [row for row in self._of(dataset, split) if row["model"] == model]
        values = _values(rows, metric)
        if baseline is not None:
            rows = [row for row in rows if row["metric"] == metric]
            values = [row["baselines"][baseline] for row in rows if baseline in row["baselines"]]
        if not values:
            raise DataError(f"{self.name}.md: figure({model!r}, {metric!r}) matches no row")
        return f"{statistics.fmean(values):,.{describe_metric(metric)[1]}f}"

    def comparison(self, job: str, metrics: Sequence[str]) -> str:
        """A line for every data set, model and metric of a job, beside what it is compared with.

        *against it* is how much better (+) or worse (-) the mean is than that of the best baseline,
        relative to this one; empty for metrics of which neither more nor less is better.
        """
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for metric in metrics:
            for row in self.rows:
                if row.get("job") == job and row["metric"] == metric:
                    how = row["model"].partition(", ")[2]
                    groups.setdefault((row["dataset"], how, metric), []).append(row)
        if not groups:
            raise DataError(f"{self.name}.md: comparison({job!r}) matches no row")
        head = ["data", "model", "metric", "ours", "best baseline", "against it", "other baselines"]
        body = [
            [*key[:2], *_compared(rows)]
            for key, rows in sorted(groups.items(), key=lambda item: item[0][:2])
        ]
        return _markdown(head, body, text_columns=(0, 1, 2, 4, 6))

    def _of(self, dataset: str | None, split: str | None) -> list[Row]:
        rows = [
            row
            for row in self.rows
            if dataset in (None, row["dataset"]) and split in (None, row["split"])
        ]
        groups = {(row["dataset"], row["split"]) for row in rows}
        if len(groups) != 1:
            raise DataError(
                f"{self.name}.md: dataset={dataset!r}, split={split!r} picks "
                f"{sorted(groups) or 'no rows'}; one table or figure is of one split"
            )
        return rows


def _plain(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not isinstance(value, dict)}


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    """A value of each seed."""
    of_runs = {row["seed"]: row[metric] for row in rows if metric in OF_RUNS and metric in row}
    return list(of_runs.values()) or [row["value"] for row in rows if row["metric"] == metric]


def _cell(values: Sequence[float], decimals: int) -> str:
    """Mean, and sample standard deviation of several."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):,.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):,.{decimals}f}"


def _best(metric: str, cells: Cells) -> Any:
    """Whose mean is the best; None where neither more nor less is better."""
    better = describe_metric(metric)[2]
    means = {key: statistics.fmean(values) for key, values in cells.items() if values}
    if better == "none" or not means:
        return None
    return (max if better == "higher" else min)(means, key=lambda key: means[key])


def _texts(metric: str, cells: Cells, bold: bool = True) -> dict[Any, str]:
    """A column of a table."""
    texts = {key: _cell(values, describe_metric(metric)[1]) for key, values in cells.items()}
    best = _best(metric, cells) if bold and sum(map(bool, cells.values())) > 1 else None
    if best is not None:
        mean = statistics.fmean(cells[best])
        equal = [
            key for key, values in cells.items() if values and statistics.fmean(values) == mean
        ]
        texts |= {key: f"**{texts[key]}**" for key in equal}
    return texts


def _compared(rows: Sequence[Row]) -> list[str]:
    metric = rows[0]["metric"]
    title, decimals, better = describe_metric(metric)
    ours = [row["ours"] for row in rows]
    names = dict.fromkeys(name for row in rows for name in row["baselines"])
    cells = {}
    for name in names:
        values = [row["baselines"][name] for row in rows if name in row["baselines"]]
        cells[name] = values[:1] if len(set(values)) == 1 else values  # measured once for all seeds
    best = _best(metric, cells) or next(iter(cells), None)
    texts = {name: f"{_called(name)} {_cell(values, decimals)}" for name, values in cells.items()}
    against = ""
    if best is not None and better != "none":
        relative = statistics.fmean(ours) / statistics.fmean(cells[best]) - 1
        against = f"{100 * relative * (1 if better == 'higher' else -1):+.1f}%"
    others = " · ".join(text for name, text in texts.items() if name != best) or "–"
    return [title, _cell(ours, decimals), texts.get(best, "–"), against, others]


def _called(model: str) -> str:
    """What tables call a model: rows may have an identifier of the code."""
    if not re.fullmatch("[a-z_]+", model):
        return model
    return model.replace("co_occ", "co-occ").replace("_and_", " + ").replace("_", " ")


def _markdown(
    head: Sequence[str], body: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)
) -> str:
    aligned = ["---" if column in text_columns else "---:" for column in range(len(head))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [head, aligned, *body])

"""A table of figures, each beside what it is compared with: rows of `benchmarks.jobs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.metric_names import describe_metric
from benchmarks.results_file import Row
from benchmarks.table_cells import Cell, made_by

HEAD = ("data set", "task", "figure", "ours", "best baseline", "against it", "other baselines")
_ALIGNED = ("---", "---", "---", "---:", "---", "---:", "---")


def comparison_table(rows: Sequence[Row]) -> str:
    """A Markdown table with a line for every data set, task, model and figure, means over seeds.

    *against it* is how much better (+) or worse (-) the mean is than that of the best baseline,
    relative to this one; empty for figures of which neither more nor less is better.

    Args:
      rows: with `job`, `ours` and `baselines`, as `benchmarks.jobs` writes them.
    """
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row["dataset"], row["split"], row["model"], made_by(row), row["metric"])
        lines.setdefault(key, []).append(row)
    table = [[*HEAD, "seeds", "made by", "date"], [*_ALIGNED, "---:", "---", "---"]]
    for (dataset, task, model, made, metric), of in lines.items():
        title, decimals, better = describe_metric(metric)
        ours = Cell(tuple(row["ours"] for row in of))
        names = dict.fromkeys(name for row in of for name in row["baselines"])
        known = {
            name: Cell(tuple(row["baselines"][name] for row in of if name in row["baselines"]))
            for name in names
        }
        best = strongest(metric, {name: cell.mean for name, cell in known.items()})
        others = " · ".join(
            f"{name} {cell.text(decimals)}" for name, cell in known.items() if name != best
        )
        seeds = {row["seed"] for row in of} - {None}
        table.append(
            [
                dataset,
                task,
                title,
                ours.text(decimals),
                "–" if best is None else f"{best} {known[best].text(decimals)}",
                "" if best is None else _against(ours.mean, known[best].mean, better),
                others or "–",
                str(len(seeds) or "–"),
                f"{made}, {model}",
                str(max(row["date"] for row in of)),
            ]
        )
    return "".join("| " + " | ".join(cells) + " |\n" for cells in table)


def strongest(metric: str, baselines: Mapping[str, float]) -> str | None:
    """The best baseline; the first where neither more nor less is better, None where none is."""
    better = describe_metric(metric)[2]
    if not baselines or better == "none":
        return next(iter(baselines), None)
    return (max if better == "higher" else min)(baselines, key=lambda name: baselines[name])


def _against(ours: float, baseline: float, better: str) -> str:
    if better == "none" or not baseline:
        return ""
    relative = (ours / baseline - 1) * (1 if better == "higher" else -1)
    return f"{100 * relative:+.1f}%"

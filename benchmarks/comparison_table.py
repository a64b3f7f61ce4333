"""Tables of figures, each beside what it is compared with: rows of `benchmarks.jobs`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.metric_names import describe_metric
from benchmarks.results_file import Row
from benchmarks.table_cells import Cell, called, made_by

FIGURES = ("metric", "ours", "best baseline", "against it", "other baselines")
_ALIGNED = ("---", "---:", "---", "---:", "---")


@dataclass(frozen=True, slots=True)
class Run:
    """What the figures of a table have in common, or what a line of it is of."""

    dataset: str
    task: str
    made: str
    model: str
    seeds: str


def comparison_table(rows: Sequence[Row]) -> str:
    """Markdown tables with a line for every figure, means over seeds.

    Each data set, task and model has a table of its own below a line that says which, unless all of
    them have a single figure: these stand in one table. *against it* is how much better (+) or
    worse (-) the mean is than that of the best baseline, relative to this one; empty for figures of
    which neither more nor less is better.

    Args:
      rows: with `job`, `ours` and `baselines`, as `benchmarks.jobs` writes them.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row["dataset"], row["split"], row["model"], made_by(row))
        groups.setdefault(key, []).append(row)
    lines = {_run(of): _lines(of) for of in groups.values()}
    if len(lines) > 1 and all(len(own) == 1 for own in lines.values()):
        (first, *_) = lines
        same = f"{first.made}, {first.model}; {first.seeds}.\n\n"
        table = [["data set", "task", *FIGURES], ["---", "---", *_ALIGNED]]
        table += [[run.dataset, f"`{run.task}`", *own[0]] for run, own in lines.items()]
        return same + _markdown(table)
    return "\n".join(
        f"{run.dataset}, `{run.task}`: {run.made}, {run.model}; {run.seeds}.\n\n"
        + _markdown([[*FIGURES], [*_ALIGNED], *own])
        for run, own in lines.items()
    )


def strongest(metric: str, baselines: Mapping[str, float]) -> str | None:
    """The best baseline; the first where neither more nor less is better, None where none is."""
    better = describe_metric(metric)[2]
    if not baselines or better == "none":
        return next(iter(baselines), None)
    return (max if better == "higher" else min)(baselines, key=lambda name: baselines[name])


def _run(rows: Sequence[Row]) -> Run:
    first, seeds = rows[0], {row["seed"] for row in rows} - {None}
    told = {0: "nothing drawn", 1: "one seed"}.get(len(seeds), f"{len(seeds)} seeds")
    return Run(first["dataset"], first["split"], made_by(first), first["model"], told)


def _lines(rows: Iterable[Row]) -> list[list[str]]:
    by_metric: dict[str, list[Row]] = {}
    for row in rows:
        by_metric.setdefault(row["metric"], []).append(row)
    found = []
    for metric, of in by_metric.items():
        title, decimals, better = describe_metric(metric)
        ours = Cell(tuple(row["ours"] for row in of))
        names = dict.fromkeys(name for row in of for name in row["baselines"])
        known = {
            name: _baseline(row["baselines"][name] for row in of if name in row["baselines"])
            for name in names
        }
        best = strongest(metric, {name: cell.mean for name, cell in known.items()})
        others = " · ".join(
            f"{called(name)} {cell.text(decimals)}" for name, cell in known.items() if name != best
        )
        found.append(
            [
                title,
                ours.text(decimals),
                "–" if best is None else f"{called(best)} {known[best].text(decimals)}",
                "" if best is None else _against(ours.mean, known[best].mean, better),
                others or "–",
            ]
        )
    return found


def _baseline(values: Iterable[float]) -> Cell:
    """Its figures by seed; one where it was measured once for all of them."""
    values = tuple(values)
    return Cell(values[:1] if len(set(values)) == 1 else values)


def _against(ours: float, baseline: float, better: str) -> str:
    if better == "none" or not baseline:
        return ""
    relative = (ours / baseline - 1) * (1 if better == "higher" else -1)
    return f"{100 * relative:+.1f}%"


def _markdown(table: Iterable[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(cells) + " |\n" for cells in table)

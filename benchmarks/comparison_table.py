"""Tables of figures, each beside what it is compared with: rows of `benchmarks.jobs`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.metric_names import describe_metric
from benchmarks.results_file import Row
from benchmarks.table_cells import Cell, called, markdown

_HEAD = ["data", "model", "metric", "ours", "best baseline", "against it", "other baselines"]
_ALIGNED = ["---", "---", "---", "---:", "---", "---:", "---"]


def comparison_table(rows: Sequence[Row]) -> str:
    """A Markdown table with a line for every data set, model and metric, means over seeds.

    *against it* is how much better (+) or worse (-) the mean is than that of the best baseline,
    relative to this one; empty for metrics of which neither more nor less is better.

    Args:
      rows: with `job`, `ours` and `baselines`, as `benchmarks.jobs` writes them.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        _, _, how = row["model"].partition(", ")
        groups.setdefault((row["dataset"], how, row["metric"]), []).append(row)
    lines = sorted(groups.items(), key=lambda item: item[0][:2])
    return markdown([_HEAD, _ALIGNED, *([*key[:2], *_cells(of)] for key, of in lines)])


def strongest(metric: str, baselines: Mapping[str, float]) -> str | None:
    """The best baseline; the first where neither more nor less is better, None where none is."""
    better = describe_metric(metric)[2]
    if not baselines or better == "none":
        return next(iter(baselines), None)
    return (max if better == "higher" else min)(baselines, key=lambda name: baselines[name])


def _cells(rows: Sequence[Row]) -> list[str]:
    metric = rows[0]["metric"]
    title, decimals, better = describe_metric(metric)
    ours = Cell(tuple(row["ours"] for row in rows))
    names = dict.fromkeys(name for row in rows for name in row["baselines"])
    cells = {
        name: _baseline(row["baselines"][name] for row in rows if name in row["baselines"])
        for name in names
    }
    best = strongest(metric, {name: cell.mean for name, cell in cells.items()})
    texts = {name: f"{called(name)} {cell.text(decimals)}" for name, cell in cells.items()}
    others = " · ".join(text for name, text in texts.items() if name != best)
    against = "" if best is None else _against(ours.mean, cells[best].mean, better)
    best_text = "–" if best is None else texts[best]
    return [title, ours.text(decimals), best_text, against, others or "–"]


def _baseline(values: Iterable[float]) -> Cell:
    """Its figures by seed; one where it was measured once for all of them."""
    values = tuple(values)
    return Cell(values[:1] if len(set(values)) == 1 else values)


def _against(ours: float, baseline: float, better: str) -> str:
    if better == "none" or not baseline:
        return ""
    relative = (ours / baseline - 1) * (1 if better == "higher" else -1)
    return f"{100 * relative:+.1f}%"

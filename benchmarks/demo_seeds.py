"""Does the demo's lead over its baselines exceed what the seed alone moves?

    python -m benchmarks.demo_seeds [--seeds 0 1 2]

Runs `m6rec demo --seed N --output runs/demo_seeds/N` for each seed (a seed whose
`metrics.json` is there is not run again), writes the figures to
`benchmarks/results/demo.json`, and exits with 3 unless the smallest lead of any seed over the best
baseline is larger than the distance between the best and the worst seed. One seed has no spread,
and is not judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import UNMET, errors_told
from benchmarks.movielens import m6rec
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, results_path
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.retrieval import TWO_TOWERS

DATASET = "movielens-100k"
MODEL = "M6-Rec mini"
HYBRID = f"{MODEL}, hybrid"
CLICK_SPLIT, RETRIEVAL_SPLIT = "per_user_temporal", "leave_one_out"
BASELINES = {
    "popularity": "ctr.baselines.popularity.auc",
    "smoothed mean": "ctr.baselines.smoothed_mean.auc",
    "user mean + item mean": "ctr.baselines.user_and_item_mean.auc",
}
RETRIEVED = {
    "popularity": "retrieval.baselines.popularity.hit_rate@10",
    MODEL: f"retrieval.baselines.{TWO_TOWERS}.hit_rate@10",
    HYBRID: "retrieval.hit_rate@10",
}
NEEDED = (
    "ctr.auc",
    "ctr.log_loss",
    *BASELINES.values(),
    *RETRIEVED.values(),
    "trainable_share",
)

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Lead against spread, in AUC.

    Attributes:
      smallest_lead: over seeds, of the model over the best baseline.
      spread: largest less smallest AUC over seeds.
    """

    smallest_lead: float
    spread: float

    @property
    def holds(self) -> bool:
        return self.smallest_lead > self.spread


def read_metrics(path: Path) -> Metrics:
    """Reads the demo's `metrics.json`.

    Raises:
      DataError: the file is not there, or a figure is missing.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: the demo did not finish; see its output above")
    metrics = json.loads(path.read_text(encoding="utf-8"))
    if missing := [key for key in NEEDED if not isinstance(metrics.get(key), int | float)]:
        raise DataError(f"{path}: no number for {missing}")
    return dict(metrics)


def judge(runs: Sequence[Metrics]) -> Verdict:
    """Compares the lead with the spread over seeds, of which there are two or more."""
    aucs = [run["ctr.auc"] for run in runs]
    leads = [run["ctr.auc"] - max(run[key] for key in BASELINES.values()) for run in runs]
    return Verdict(min(leads), max(aucs) - min(aucs))


def demo_rows(seed: int, metrics: Metrics) -> list[Row]:
    """Result rows of one run of the demo."""

    def rows_of(
        figures: Metrics, model: str, split: str, seed: int | None, seconds: float | None = None
    ) -> list[Row]:
        return metric_rows(
            figures,
            model=model,
            dataset=DATASET,
            split=split,
            seed=seed,
            config="m6rec demo",
            seconds=seconds,
        )

    click = {
        "auc": metrics["ctr.auc"],
        "log_loss": metrics["ctr.log_loss"],
        "trainable_share": metrics["trainable_share"],
    }
    # A demo that was interrupted has no seconds.
    rows = rows_of(click, MODEL, CLICK_SPLIT, seed, metrics.get("seconds"))
    for name, key in BASELINES.items():
        rows += rows_of({"auc": metrics[key]}, name, CLICK_SPLIT, None)
    for name, key in RETRIEVED.items():
        own = None if name in BASELINES else seed
        rows += rows_of({"hit_rate@10": metrics[key]}, name, RETRIEVAL_SPLIT, own)
    return rows


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 3 when the lead does not exceed the spread, 2 on an error."""
    parser = argparse.ArgumentParser(description="The demo over several seeds.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo_seeds")
    options = parser.parse_args(arguments)
    runs = []
    for seed in dict.fromkeys(options.seeds):
        folder = options.output / str(seed)
        if not (folder / "metrics.json").exists():
            m6rec("demo", "--seed", seed, "--output", folder.resolve())
        metrics = read_metrics(folder / "metrics.json")
        add_rows(results_path("demo"), demo_rows(seed, metrics))
        runs.append(metrics)
        print(f"seed {seed}: AUC {metrics['ctr.auc']:.4f}", flush=True)
    if len(runs) == 1:
        return 0
    verdict = judge(runs)
    print(
        f"smallest lead over the best baseline {verdict.smallest_lead:.4f}, spread over "
        f"{len(runs)} seeds {verdict.spread:.4f}: the lead "
        + ("exceeds the spread" if verdict.holds else "does NOT exceed the spread")
    )
    return 0 if verdict.holds else UNMET


if __name__ == "__main__":
    sys.exit(main())

"""The demo over seeds: how far do its figures differ by the seed alone?

    python -m benchmarks.demo_seeds [--seeds 0 1 2]

Runs `m6rec demo --seed N --output runs/demo_seeds/N` for each seed (a seed whose `metrics.json` is
there is not run again) and writes the figures to `benchmarks/results/demo.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.movielens import DATASET
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, results_path
from benchmarks.runs import m6rec
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.retrieval import TWO_TOWERS

MODEL = "M6-Rec mini"
CLICK_SPLIT, RETRIEVAL_SPLIT = "per_user_temporal", "leave_one_out"
# (model, split): metric to the key of `metrics.json`.
KEYS: Mapping[tuple[str, str], Mapping[str, str]] = {
    (MODEL, CLICK_SPLIT): {
        "auc": "ctr.auc",
        "log_loss": "ctr.log_loss",
        "trainable_share": "trainable_share",
    },
    ("popularity", CLICK_SPLIT): {"auc": "ctr.baselines.popularity.auc"},
    ("smoothed mean", CLICK_SPLIT): {"auc": "ctr.baselines.smoothed_mean.auc"},
    ("user mean + item mean", CLICK_SPLIT): {"auc": "ctr.baselines.user_and_item_mean.auc"},
    ("popularity", RETRIEVAL_SPLIT): {
        "hit_rate@10": "retrieval.baselines.popularity.hit_rate@10",
    },
    (MODEL, RETRIEVAL_SPLIT): {
        "hit_rate@10": f"retrieval.baselines.{TWO_TOWERS}.hit_rate@10",
    },
    (f"{MODEL}, hybrid", RETRIEVAL_SPLIT): {"hit_rate@10": "retrieval.hit_rate@10"},
}


def demo_rows(seed: int, path: Path) -> list[Row]:
    """Result rows of one run of the demo, from its `metrics.json`.

    Raises:
      DataError: a figure is missing.
    """
    metrics = json.loads(path.read_text(encoding="utf-8"))
    keys = [key for of_model in KEYS.values() for key in of_model.values()]
    if missing := [key for key in keys if not isinstance(metrics.get(key), int | float)]:
        raise DataError(f"{path}: no number for {missing}")
    rows: list[Row] = []
    for (model, split), of_model in KEYS.items():
        is_ours = model.startswith(MODEL)
        rows += metric_rows(
            {metric: metrics[key] for metric, key in of_model.items()},
            model=model,
            dataset=DATASET,
            split=split,
            # Baselines are the same whatever the seed.
            seed=seed if is_ours else None,
            config="m6rec demo",
            # A demo that was interrupted has no seconds.
            seconds=metrics.get("seconds") if is_ours and split == CLICK_SPLIT else None,
        )
    return rows


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The demo over several seeds.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo_seeds")
    options = parser.parse_args(arguments)
    for seed in dict.fromkeys(options.seeds):
        folder = options.output / str(seed)
        if not (folder / "metrics.json").exists():
            m6rec("demo", "--seed", seed, "--output", folder.resolve())
        add_rows(results_path("demo"), demo_rows(seed, folder / "metrics.json"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

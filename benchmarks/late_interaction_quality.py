"""What late interaction costs in quality: deep models of MovieLens-100k, with late layers or not.

    python -m benchmarks.late_interaction_quality [--seeds 0 1 2] [--variants full '3 late' ...]

Trains `movielens_ctr_late_interaction.gin` whole, with 3 and 1 late layers and either decoder, and
a plain model of 3 layers, from random values; all have the same rows, steps and rate. What is
finished is not run again. Rows go to `benchmarks/results/late_interaction.json`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.movielens import DATASET, EXAMPLES, PREPARE, evaluated, m6rec, train
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path

GIN_FILE = f"{EXAMPLES}/movielens_ctr_late_interaction.gin"
LAYERS = 8
METRICS = ("auc", "log_loss")
_ENDS = "--gin.ModelConfig.cross_attention_at='ends'"
# By the names of `benchmarks.late_interaction`.
VARIANTS = {
    "full": (),
    "3 late": (f"--gin.LATE_LAYERS_START={LAYERS - 3}",),
    "3 late, ends": (f"--gin.LATE_LAYERS_START={LAYERS - 3}", _ENDS),
    "1 late": (f"--gin.LATE_LAYERS_START={LAYERS - 1}",),
    "1 late, ends": (f"--gin.LATE_LAYERS_START={LAYERS - 1}", _ENDS),
    "3 layers": tuple(f"--gin.ModelConfig.num_{side}_layers=3" for side in ("encoder", "decoder")),
}


def run(variant: str, seed: int, folder: Path) -> dict[str, float]:
    """Trains and tests one variant with one seed; records and returns its metrics."""
    seeds = (f"--gin.train.seed={seed}", f"--gin.BatchIterator.seed={seed}")
    seconds = train(GIN_FILE, folder, (*VARIANTS[variant], *seeds))
    figures = evaluated(GIN_FILE, folder, folder / "test.json")
    metrics = {name: figures[name] for name in METRICS}
    rows = metric_rows(
        metrics,
        model=variant,
        dataset=DATASET,
        split="quality",
        seed=seed,
        gin_file=GIN_FILE,
        seconds=seconds,
    )
    add_rows(results_path("late_interaction"), rows)
    return metrics


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The quality of late interaction, over seeds.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "late_interaction")
    options = parser.parse_args(arguments)
    m6rec("data", "fetch", DATASET)
    m6rec("data", "prepare", DATASET, "--gin_file", PREPARE)
    m6rec("vocab", "train", "--gin_file", PREPARE)
    for seed in options.seeds:
        for variant in options.variants:
            name = variant.replace(",", "").replace(" ", "_")
            metrics = run(variant, seed, options.output.resolve() / f"{name}-{seed}")
            text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            print(f"{variant}, seed {seed}: {text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`m6rec demo`: MovieLens-100k from nothing to a tuned, evaluated model and an HTML report.

Each part is what the commands `m6rec data`, `vocab` and `train` do with the gin files named here,
in one process so that libraries are loaded once. Run again after an interruption, it resumes where
it stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from m6rec_jax.checkpoints.checkpoint import CHECKPOINTS_FOLDER
from m6rec_jax.data.getting.sources import fetch
from m6rec_jax.jobs.retrieval import TWO_TOWERS
from m6rec_jax.quickstart import SUMMARY, prepare_both, seeds, train_and_evaluate
from m6rec_jax.run_report import write_page
from m6rec_jax.training.parameter_table import count_parameters

DATASET = "movielens-100k"
DATA = "gin_configs/data/movielens-100k"
MODEL, TUNING = "gin_configs/models/mini.gin", "gin_configs/tuning/option_adapter.gin"
# Run -> gin files, and what is cut to what two CPU cores do in minutes.
RUNS = {
    "pretraining": ([MODEL, f"{DATA}/pretrain.gin"], ["TRAIN_STEPS=500"]),
    "scoring": (
        [MODEL, TUNING, f"{DATA}/scoring.gin"],
        ["TRAIN_STEPS=150", "EVAL_PERIOD=150", "EVAL_ROWS=None"],
    ),
    "retrieval": (
        [MODEL, TUNING, f"{DATA}/retrieval.gin"],
        ["TRAIN_STEPS=300", "EVAL_PERIOD=300", "EVAL_ROWS=None"],
    ),
}


def run_demo(output: Path, seed: int = 0) -> dict[str, float]:
    """Makes `report.html`, `metrics.json` and the three runs under `output`.

    Args:
      output: folder; what an earlier, unfinished call left there is used.
      seed: of initialisation, dropout and the order of the data.

    Returns:
      The metrics of `metrics.json`; `seconds` only where nothing had been there before.

    Raises:
      DataError: the data set cannot be had.
      KeyboardInterrupt: a signal stopped one of the runs.
    """
    started = time.monotonic()
    # The demo's own; there may be another one beside the prepared text.
    vocabulary = output / "vocabulary.model"
    prepare_both(fetch(DATASET), f"{DATA}/prepare.gin", vocabulary)
    resumed = any((output / name / CHECKPOINTS_FOLDER).exists() for name in RUNS)
    shared = [*seeds(seed), f"vocabulary_file.path={str(vocabulary)!r}"]
    runs = {name: (files, [*bindings, *shared]) for name, (files, bindings) in RUNS.items()}
    (scoring, retrieval), config = train_and_evaluate(runs, output)
    metrics = {
        "ctr.auc": scoring.metrics["auc"],
        "ctr.user_averaged_auc": scoring.metrics["user_averaged_auc"],
        "ctr.log_loss": scoring.metrics["log_loss"],
        "ctr.baselines.popularity.auc": scoring.baselines["popularity"]["auc"],
        "ctr.baselines.smoothed_mean.auc": scoring.baselines["item_mean"]["auc"],
        "ctr.baselines.user_and_item_mean.auc": scoring.baselines["user_and_item_mean"]["auc"],
        "ctr.baselines.smoothed_mean.log_loss": scoring.baselines["item_mean"]["log_loss"],
        "retrieval.hit_rate@10": retrieval.metrics["hit_rate@10"],
        "retrieval.ndcg@10": retrieval.metrics["ndcg@10"],
        **{
            f"retrieval.baselines.{name}.hit_rate@10": retrieval.baselines[name]["hit_rate@10"]
            for name in ("popularity", TWO_TOWERS)
        },
        "trainable_share": count_parameters(config, "prompts").trainable_share,
    }
    seconds = time.monotonic() - started
    if not resumed:
        metrics["seconds"] = seconds
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    page = write_page(
        output / "report.html",
        [scoring, retrieval],
        config,
        "prompts",
        runs={name: output / name for name in RUNS},
        title="MovieLens-100k",
        summary=SUMMARY,
        facts={
            "Gin files": ", ".join(files[-1] for files, _ in RUNS.values()),
            "Seed": str(seed),
            "Seconds, data to metrics": "–" if resumed else f"{seconds:.0f}",
        },
        notes=[
            "Scoring: each user's first 80% of ratings train, the next 10% validate, the last 10% "
            "test; 4 or 5 stars are positive. Statistics in the text come from earlier training "
            "ratings alone; those of the user, in test rows, from that user's validation ratings, "
            "too.",
            "Retrieval: each user's last film, among all films the user has not rated before.",
            "Item mean: the film's share of likes in training, with five ratings' worth of the "
            "overall share.",
        ],
    )
    print(f"\nreport: {page}\nmetrics: {output / 'metrics.json'}")
    return metrics

"""`m6rec demo`: MovieLens-100k from nothing to a tuned, evaluated model and an HTML report.

Each part is what the commands `m6rec data`, `vocab` and `train` do with the gin files named here,
in one process so that libraries are loaded once. Run again after an interruption, it resumes where
it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from m6rec_jax.checkpoints.location import CHECKPOINTS_FOLDER
from m6rec_jax.data.sources import fetch
from m6rec_jax.evaluation.report import write_report
from m6rec_jax.jobs.retrieval import TWO_TOWERS
from m6rec_jax.quickstart import HYBRID_NOTE, evaluate_phase, prepare_both, run_phase, seeds
from m6rec_jax.run_report import TaskResult, parameter_groups, report_data
from m6rec_jax.training.parameter_table import count_parameters

DATASET = "movielens-100k"
PREPARE = "gin_configs/examples/movielens_prepare.gin"
PHASES = {
    "pretraining": "gin_configs/examples/demo_pretrain.gin",
    "scoring": "gin_configs/examples/demo_ctr.gin",
    "retrieval": "gin_configs/examples/demo_retrieval.gin",
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
    prepare_both(fetch(DATASET), PREPARE, vocabulary)
    folders = {name: output / name for name in PHASES}
    resumed = any((folder / CHECKPOINTS_FOLDER).exists() for folder in folders.values())
    bindings = [*seeds(seed), f"vocabulary_file.path={str(vocabulary)!r}"]
    start = [f"INITIAL_CHECKPOINT_PATH={str(folders['pretraining'])!r}"]
    run_phase(PHASES["pretraining"], folders["pretraining"], bindings)
    results: dict[str, TaskResult] = {}
    for name in ("scoring", "retrieval"):
        trained = run_phase(PHASES[name], folders[name], [*bindings, *start])
        results[name] = evaluate_phase(trained)
        if name == "scoring":
            config = trained.model.config
    scoring, retrieval = results["scoring"], results["retrieval"]
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
    data = report_data(
        list(results.values()),
        folders,
        title="MovieLens-100k",
        summary="One encoder-decoder that reads nothing but text: pretrained on what users did and "
        "what films are, then option-adapter-tuned for scoring and for retrieval with the backbone "
        "frozen.",
        parameters=parameter_groups(config, "prompts"),
        facts={
            "Gin files": ", ".join(PHASES.values()),
            "Date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "Seed": str(seed),
            "Seconds, data to metrics": "–" if resumed else f"{seconds:.0f}",
        },
        notes=[
            "Scoring: each user's first 80% of ratings train, the next 10% validate, the last 10% "
            "test; 4 or 5 stars are positive. Statistics in the text come from earlier training "
            "ratings alone; those of the user, in test rows, from that user's validation ratings, "
            "too.",
            "Retrieval: each user's last film, among all films the user has not rated before."
            + HYBRID_NOTE,
            "Item mean: the film's share of likes in training, with five ratings' worth of the "
            "overall share.",
        ],
    )
    path = write_report(output / "report.html", data)
    _print_table(metrics)
    print(f"\nreport: {path}\nmetrics: {output / 'metrics.json'}")
    return metrics


def _print_table(metrics: Mapping[str, float]) -> None:
    """Names and values, aligned."""
    width = max(map(len, metrics))
    print()
    for name, value in metrics.items():
        print(f"{name.ljust(width)}  {value:.4f}")

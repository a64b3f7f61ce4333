"""`m6rec demo`: MovieLens-100k from nothing to a tuned, evaluated model and an HTML report.

Each part is what the commands `m6rec data`, `vocab` and `train` do with the gin files named here,
in one process so that libraries are loaded once. Run again after an interruption, it goes on where
it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from m6rec_jax import configuration
from m6rec_jax.checkpoints.location import CHECKPOINTS_FOLDER
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.sources import fetch
from m6rec_jax.data.vocabulary_text import train_on_prepared
from m6rec_jax.demo_report import DemoResult, report_data
from m6rec_jax.evaluation.evaluator import Evaluator
from m6rec_jax.evaluation.report import write_report
from m6rec_jax.jobs.retrieval import RetrievalPredictions
from m6rec_jax.jobs.scoring import ScoringPredictions
from m6rec_jax.metrics.baselines import MeanBaselines, popularity_ranks
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.locations import data_dir
from m6rec_jax.training.loop import TrainResult, train
from m6rec_jax.training.parameter_table import count_parameters
from m6rec_jax.training.step_loop import EARLY_STOPPING

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
      The figures of `metrics.json`; `seconds` only where nothing had been there before.

    Raises:
      DataError: the data set cannot be had.
      KeyboardInterrupt: a signal stopped one of the runs; what comes after it needs all of it.
    """
    started = time.monotonic()
    vocabulary = output / "vocabulary.model"
    scoring, retrieval = _prepared_data(vocabulary)
    folders = {name: output / name for name in PHASES}
    resumed = any((folder / CHECKPOINTS_FOLDER).exists() for folder in folders.values())

    def run(name: str) -> TrainResult:
        print(f"\n{name}: {PHASES[name]}", flush=True)
        bindings = [
            f"MODEL_DIR='{folders[name]}'",
            f"train.seed={seed}",
            f"BatchIterator.seed={seed}",
            f"vocabulary_file.path='{vocabulary}'",
        ]
        if name != "pretraining":
            bindings.append(f"INITIAL_CHECKPOINT_PATH='{folders['pretraining']}'")
        configuration.parse_config([PHASES[name]], bindings)
        result = train()
        if result.stopped_by not in (None, EARLY_STOPPING):
            raise KeyboardInterrupt
        return result

    run("pretraining")
    scoring_run = run("scoring")
    scored, scoring_metrics = _test(scoring_run)
    assert isinstance(scored, ScoringPredictions)
    retrieval_run = run("retrieval")
    ranked, retrieval_metrics = _test(retrieval_run)
    assert isinstance(ranked, RetrievalPredictions)
    baselines = _mean_baselines(scoring)
    figures = baselines.scoring_metrics(scored.users, scored.items, scored.labels)
    seconds = time.monotonic() - started
    table = count_parameters(scoring_run.model.config, "prompts")
    metrics = {
        "ctr.auc": scoring_metrics["auc"],
        "ctr.user_averaged_auc": scoring_metrics["user_averaged_auc"],
        "ctr.log_loss": scoring_metrics["log_loss"],
        "ctr.baselines.popularity.auc": figures["popularity"]["auc"],
        "ctr.baselines.smoothed_mean.auc": figures["item_mean"]["auc"],
        "ctr.baselines.smoothed_mean.log_loss": figures["item_mean"]["log_loss"],
        "retrieval.hit_rate@10": retrieval_metrics["hit_rate@10"],
        "retrieval.ndcg@10": retrieval_metrics["ndcg@10"],
        "retrieval.baselines.popularity.hit_rate@10": _popularity_hit_rate(retrieval, ranked),
        "trainable_share": table.trainable_share,
    }
    if not resumed:
        metrics["seconds"] = seconds
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    result = DemoResult(
        metrics=metrics,
        scoring=scoring,
        retrieval=retrieval,
        scored=scored,
        ranked=ranked,
        vocabulary_file=vocabulary,
        baselines=baselines,
        parameters=table,
        folders=folders,
        gin_files=PHASES,
        facts={
            "Gin files": ", ".join(PHASES.values()),
            "Date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "Seed": str(seed),
            "Seconds, data to figures": "–" if resumed else f"{seconds:.0f}",
        },
    )
    path = write_report(output / "report.html", report_data(result))
    _print_table(metrics)
    print(f"\nreport: {path}\nfigures: {output / 'metrics.json'}")
    return metrics


def _prepared_data(vocabulary: Path) -> tuple[Prepared, Prepared]:
    folder = fetch(DATASET)
    configuration.parse_config([PREPARE])
    scoring = prepare(folder, data_dir())
    # The demo's own: what lies beside the prepared text may be another one.
    if not vocabulary.is_file():
        train_on_prepared(data_dir(), output=vocabulary)
    configuration.parse_config(
        [PREPARE], ["SPLIT='leave_one_out'", "VIEWS=('next_items', 'catalogue')"]
    )
    return scoring, prepare(folder, data_dir())


def _test(
    result: TrainResult,
) -> tuple[ScoringPredictions | RetrievalPredictions, dict[str, float]]:
    """Predictions and figures of a run's last state on the test part of its task."""
    evaluator = Evaluator(
        configuration.macro("MIXTURE_OR_TASK_NAME"),
        configuration.macro("TASK_FEATURE_LENGTHS"),
        batch_size=64,
        split="test",
    )
    (task,) = evaluator.tasks
    variables = {"params": result.state.params, "prompts": result.state.prompts}
    predictions = evaluator.predict(task, result.model, variables)
    assert isinstance(predictions, ScoringPredictions | RetrievalPredictions)
    return predictions, evaluator.metrics(task, predictions)


def _mean_baselines(prepared: Prepared) -> MeanBaselines:
    events = prepared_rows.interactions(prepared, "train")
    num_users = int(prepared.manifest["counts"]["users"])
    num_items = len(prepared.catalogue().items)
    return MeanBaselines.fit(events.users, events.items, events.labels, num_users, num_items)


def _popularity_hit_rate(prepared: Prepared, ranked: RetrievalPredictions) -> float:
    seen = prepared_rows.seen_items(prepared, "test")
    counts = prepared.catalogue().train_counts
    ranks = popularity_ranks(counts, ranked.users, ranked.targets, seen)
    return float(np.mean((ranks[:, 0] >= 1) & (ranks[:, 0] <= 10)))


def _print_table(metrics: Mapping[str, float]) -> None:
    width = max(map(len, metrics))
    print()
    for name, value in metrics.items():
        print(f"{name.ljust(width)}  {value:.4f}")

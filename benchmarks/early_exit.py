"""Early exit: quality against measured time, of scoring and of generation.

    python -m benchmarks.early_exit scoring runs/exits
    python -m benchmarks.early_exit generation runs/titles

Needs runs of `movielens_ctr_early_exit.gin` and `movielens_titles_early_exit.gin` in
`gin_configs/examples/`, whose heads say how they are made. Exits are chosen on validation rows, as
`m6rec calibrate` does for several losses; quality is that of the test rows.

Scoring: a request is a history with 100 candidates, from text to probabilities, the encoder
included. All settings take turns in one process, so that what else the machine does meets all of
them; a figure is that of the fastest turn. Generation: one text at a time, then 16, greedy.

Rows go to `benchmarks/results/early_exit.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.command_line import errors_told
from benchmarks.efficiency import fastest
from benchmarks.results_file import Row, add_rows, results_path, told_rows
from m6rec_jax import configuration
from m6rec_jax.engine.task_settings import NEVER, ExitSettings

SCORING = "gin_configs/examples/movielens_ctr_early_exit.gin"
GENERATION = "gin_configs/examples/movielens_titles_early_exit.gin"
GENERATION_CALIBRATE = "gin_configs/examples/movielens_titles_calibrate.gin"
LOSSES = (0.01, 0.002)
CANDIDATES = 100
WHOLE = "whole decoder"


def open_run(run: str, gin_file: str, split: str, batch_size: int, limit: int = 0) -> Any:
    """(evaluator of the split, restored model, task) of a run."""
    import gin

    from m6rec_jax.evaluation.checkpoint_evaluation import restored_evaluator

    gin.clear_config()
    configuration.parse_config([gin_file], [f"MODEL_DIR='{run}'"])
    evaluator, restored = restored_evaluator(
        run,
        configuration.macro("MIXTURE_OR_TASK_NAME"),
        configuration.macro("TASK_FEATURE_LENGTHS"),
        split,
        batch_size,
        None,
        limit,
    )
    return evaluator, restored, evaluator.tasks[0]


def at_most(depth: int) -> str:
    """What settings are called in the tables that leave after a layer, whatever is read there."""
    return f"at most {depth} layer{'s' if depth > 1 else ''}"


def scoring(run: str, turns: int, limit: int) -> dict[str, dict[str, float]]:
    """Figures of each setting."""
    from m6rec_jax.engine.model_folder import load_model
    from m6rec_jax.evaluation.calibration import cheapest, exit_scores
    from m6rec_jax.pipeline.prepared_rows import TaskPart

    scores = {}
    for split in ("validation", "test"):
        evaluator, restored, task = open_run(run, SCORING, split, 32, limit)
        scores[split] = exit_scores(evaluator, task, restored.model, restored.variables)
    num_exits = restored.model.config.num_exits
    last = ExitSettings(NEVER, num_exits)
    settings: dict[str, ExitSettings | None] = {WHOLE: None, f"{WHOLE}, which might be left": last}
    settings |= {at_most(depth): ExitSettings(NEVER, depth) for depth in range(1, num_exits)}
    settings |= {
        f"calibrated, {100 * loss:g}% loss": cheapest(scores["validation"], loss) for loss in LOSSES
    }

    rows = list(TaskPart(task, "test").rows(("history", "candidates")))
    history = list(rows[0]["history"])
    texts = list(dict.fromkeys(text for row in rows for text in row["candidates"]))[:CANDIDATES]
    model = load_model(run)
    tasks = dict(model.settings.tasks)

    def ask(exits: ExitSettings | None) -> Callable[[], Any]:
        own = {task.name: dataclasses.replace(tasks[task.name], exits=exits)}
        scorer = model.scorer(
            tasks=own,
            batch_sizes=(1, 16, 32, 40),
            source_buckets=(evaluator.lengths["inputs"],),
            target_buckets=(evaluator.lengths["targets"],),
        )
        return lambda: scorer.score_requests([history], [texts])

    seconds = fastest({name: ask(exits) for name, exits in settings.items()}, turns)
    whole = scores["test"].auc(last)
    found = {}
    for name, exits in settings.items():
        quality = scores["test"].auc(exits or last)
        found[name] = {
            "auc": quality,
            "quality_kept": 100 * quality / whole,
            "mean_exits": scores["test"].mean_exits(exits or last),
            "request_milliseconds": 1000 * seconds[name],
            "times_faster": seconds[WHOLE] / seconds[name],
        }
    found[WHOLE]["steps"] = restored.step
    return found


def generation(run: str, batch_size: int, limit: int, turns: int) -> dict[str, dict[str, float]]:
    """Figures of each setting, for that many texts at a time."""
    from m6rec_jax.evaluation.calibration import Texts, agreement, settings_for
    from m6rec_jax.metrics.generation import rouge

    evaluator, restored, task = open_run(run, GENERATION_CALIBRATE, "validation", 16, limit)
    chosen = settings_for(Texts(evaluator, task, restored), LOSSES[0])[0]
    evaluator, restored, task = open_run(run, GENERATION_CALIBRATE, "test", batch_size, limit)
    texts = Texts(evaluator, task, restored)
    tried: dict[str, ExitSettings | None] = {
        WHOLE: None,
        at_most(1): ExitSettings(NEVER, 1),
        f"calibrated, {100 * LOSSES[0]:g}% loss": chosen,
    }
    written = {name: texts.generate(exits) for name, exits in tried.items()}

    def timed(exits: ExitSettings | None) -> Callable[[], Any]:
        return lambda: texts.generate(exits)

    seconds = fastest({name: timed(exits) for name, exits in tried.items()}, turns)
    references = [row["target"] for row in texts.rows]
    return {
        name: {
            "agreement": agreement(own, written[WHOLE]),
            "rouge_1": rouge(own, references, (1,))[1],
            "text_milliseconds": 1000 * seconds[name] / len(own),
            "times_faster": seconds[WHOLE] / seconds[name],
        }
        for name, own in written.items()
    }


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Quality and time of early exit.")
    parser.add_argument("job", choices=("scoring", "generation"))
    parser.add_argument("run", help="MODEL_DIR of the run")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--rows", type=int, default=0, help="of each part, of scoring; 0: all")
    parser.add_argument("--texts", type=int, default=64, help="written, of generation")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    if options.job == "scoring":
        gin_file = SCORING
        found = {"scoring": scoring(options.run, options.turns, options.rows)}
    else:
        gin_file = GENERATION
        found = {
            f"generation, batch {size}": generation(options.run, size, options.texts, options.turns)
            for size in (1, 16)
        }
    for split, figures in found.items():
        rows += told_rows(figures, dataset="movielens-100k", split=split, seed=0, gin_file=gin_file)
    add_rows(results_path("early_exit"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One run of tuning in this process: training, validation and test; what the studies share."""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.provenance import portable
from m6rec_jax.errors import DataError
from m6rec_jax.io.hashing import sha256

SPLIT = "test"

Curve = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run gave.

    Attributes:
      figures: on the test part.
      curve: (step, AUC) on validation rows.
      trainable_share: of the backbone.
      seconds: of training, validations included.
      step: whose parameters were tested.
      predictions: of the test part, as the task's job makes them.
    """

    figures: Mapping[str, float]
    curve: Curve
    trainable_share: float
    seconds: float
    step: int
    predictions: Any = None

    def known(self) -> dict[str, Any]:
        """What each row of the run says besides its figure."""
        return {
            "trainable_share": round(self.trainable_share, 6),
            "step": self.step,
            "curve": [list(point) for point in self.curve],
        }


def read_curve(path: Path) -> Curve:
    """(step, AUC) of every validation in a run's `metrics.jsonl`.

    Raises:
      DataError: the run was never validated.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    curve = [
        (int(line["step"]), round(float(line["validation/auc"]), 6))
        for line in lines
        if "validation/auc" in line
    ]
    if not curve:
        raise DataError(f"{path} holds no validation/auc: is EVAL_PERIOD larger than TRAIN_STEPS?")
    return curve


def tune(
    files: Sequence[str],
    foundation: Path,
    seed: int,
    folder: Path,
    bindings: Sequence[str] = (),
) -> Run:
    """Trains, validates and tests one run in this process; its folder is removed.

    Tested is the last step, or the best one where the files follow a validation figure.

    Args:
      files: gin files of the run.
      foundation: MODEL_DIR of the foundation.
      seed: of initial values, dropout and the order of the data.
      folder: MODEL_DIR of the run; what lies there is removed first.
      bindings: further gin bindings.

    Raises:
      KeyboardInterrupt: a signal stopped the training.
      M6RecError: the run failed.
    """
    import jax

    from m6rec_jax import configuration
    from m6rec_jax.engine.model_folder import restore_model
    from m6rec_jax.evaluation.evaluator import Evaluator
    from m6rec_jax.training.loop import train
    from m6rec_jax.training.parameter_table import count_parameters
    from m6rec_jax.training.step_loop import EARLY_STOPPING

    shutil.rmtree(folder, ignore_errors=True)
    configuration.parse_config(
        list(files),
        [
            f"MODEL_DIR='{folder}'",
            f"INITIAL_CHECKPOINT_PATH='{foundation}'",
            f"train.seed={seed}",
            f"BatchIterator.seed={seed}",
            *bindings,
        ],
    )
    started = time.monotonic()
    result = train()
    seconds = time.monotonic() - started
    if result.stopped_by not in (None, EARLY_STOPPING):
        raise KeyboardInterrupt
    step = result.step if result.best_step is None else result.best_step
    variables = {"params": result.state.params, "prompts": result.state.prompts}
    if result.best_step is not None:
        variables = dict(restore_model(folder, step=step).variables)
    evaluator = Evaluator(
        configuration.macro("MIXTURE_OR_TASK_NAME"),
        configuration.macro("TASK_FEATURE_LENGTHS"),
        batch_size=64,
        split=SPLIT,
        limit=0,
    )
    (task,) = evaluator.tasks
    predictions = evaluator.predict(task, result.model, variables)
    figures = evaluator.metrics(task, predictions)
    del variables, evaluator
    share = count_parameters(result.model.config, configuration.macro("TRAINABLE")).trainable_share
    curve = read_curve(folder / "metrics.jsonl")
    shutil.rmtree(folder)
    del result
    # Each run compiles programs of its own.
    jax.clear_caches()
    gc.collect()
    return Run(figures, curve, share, seconds, step, predictions)


def backbone_of(foundation: Path) -> str:
    """Fingerprint of a foundation's backbone.

    Raises:
      CheckpointError: there is none.
    """
    from m6rec_jax.checkpoints.fingerprint import backbone_fingerprint
    from m6rec_jax.engine.model_folder import restore_model

    return backbone_fingerprint(restore_model(foundation).variables["params"])[:16]


def conditions_of(
    foundation: str,
    files: Sequence[str],
    bindings: Sequence[str] = (),
    own_bindings: Sequence[str] = (),
) -> dict[str, Any]:
    """What runs must have in common that stand in one table, as keys of their rows.

    Args:
      foundation: fingerprint of the backbone.
      files: gin files of a run.
      bindings: gin bindings that the study was given for every run.
      own_bindings: further ones, which belong to this run as its files do.

    Returns:
      `foundation`, `bindings` (as `NAME=VALUE`), `train_steps` and `configuration`, a fingerprint
      of all settings that gin is told, which changes with any of the files. Imports set nothing.

    Raises:
      ConfigError: files and bindings do not fit each other.
    """
    import gin

    from m6rec_jax import configuration

    unused = ["MODEL_DIR='unused'", "INITIAL_CHECKPOINT_PATH='unused'"]
    try:
        configuration.parse_config(list(files), [*unused, *own_bindings, *bindings])
        steps = int(configuration.macro("TRAIN_STEPS"))
        lines = filter(None, gin.config_str().splitlines())
        settings = "\n".join(line for line in lines if not line.startswith(("import ", "#")))
        told = sha256(settings)[:16]
    finally:
        gin.clear_config()
    return {
        "foundation": foundation,
        "bindings": [portable(binding.removeprefix("--gin.")) for binding in bindings],
        "train_steps": steps,
        "configuration": told,
    }


def refuse_others(
    path: Path, rows: Iterable[Mapping[str, Any]], foundation: Path, own: Mapping[str, Any]
) -> None:
    """Refuses to put rows beside others that were made under other conditions.

    Rows that older versions wrote do not say their steps or configuration; without `bindings` they
    had none.

    Args:
      path: the result file.
      rows: those of it that must have been made alike.
      foundation: MODEL_DIR of the foundation in use.
      own: of the rows to come; see `conditions_of`. What is left out need not be alike.

    Raises:
      DataError: rows of another foundation, or with other bindings, steps or settings, are there.
    """
    rows = list(rows)
    others = {str(row["foundation"]) for row in rows} - {own["foundation"]}
    if others:
        raise DataError(
            f"{path} has rows of the foundation {', '.join(sorted(others))}, but {foundation} is "
            f"{own['foundation']}: a table is of one foundation. Take those rows out of the file "
            "to begin another"
        )
    end = (
        "a table is of one budget. Give the same settings, or take those rows out of the file, and "
        "all are made again"
    )
    for row in rows if "bindings" in own else ():
        theirs = row.get("bindings", [])
        if theirs != own["bindings"]:
            raise DataError(
                f"{path} has rows made with {_told(theirs)}, but this study is given "
                f"{_told(own['bindings'])}: {end}"
            )
    steps = {row["train_steps"] for row in rows if "train_steps" in row}
    if "train_steps" in own and (steps := steps - {own["train_steps"]}):
        raise DataError(
            f"{path} has rows of {', '.join(map(str, sorted(steps)))} steps, but the gin files now "
            f"say TRAIN_STEPS = {own['train_steps']}: {end}"
        )
    told = {row["configuration"] for row in rows if "configuration" in row}
    if "configuration" in own and told - {own["configuration"]}:
        raise DataError(
            f"{path} has rows that were made before a gin file of theirs changed: {end}"
        )


def _told(bindings: Sequence[str]) -> str:
    return " ".join(f"--gin.{binding}" for binding in bindings) or "no gin bindings"

"""What studies have in common: commands of `m6rec`, runs of tuning in this process, foundations."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT
from m6rec_jax.errors import DataError

DATA = "gin_configs/data"
SPLIT = "test"
RECORD = "training.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What `m6rec train` is given by name.

    Attributes:
      recipe, model, data, tuning: as its options; no tuning in pretraining.
      bindings: gin settings besides.
    """

    recipe: str
    model: str
    data: str
    tuning: str = ""
    bindings: tuple[str, ...] = ()

    @property
    def gin_file(self) -> str:
        """The file that says most of it."""
        return f"{DATA}/{self.data}/{self.recipe}.gin"

    def gin_files(self) -> list[str]:
        """All that the names stand for."""
        parts = (("models", self.model), ("tuning", self.tuning))
        return [*(f"gin_configs/{f}/{name}.gin" for f, name in parts if name), self.gin_file]

    def arguments(self) -> list[str]:
        """Of the command line."""
        options = {name: getattr(self, name) for name in ("recipe", "model", "data", "tuning")}
        named = [word for name, of in options.items() if of for word in (f"--{name}", of)]
        return [*named, *(f"--gin.{binding}" for binding in self.bindings)]


def m6rec(*arguments: object) -> None:
    """Runs the command of the environment this runs in.

    Raises:
      DataError: it failed; what it printed says why.
    """
    command = [sys.executable, "-m", "m6rec_jax.cli", *map(str, arguments)]
    if status := subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise DataError(f"`m6rec {' '.join(command[3:])}` ended with status {status}")


def train(recipe: Recipe, folder: Path, bindings: Sequence[str] = ()) -> float | None:
    """Trains, unless that was done; returns the seconds it took (None where it was interrupted).

    Raises:
      DataError: the folder has a run that was begun with another recipe or other bindings.
    """
    record = folder / RECORD
    settings: dict[str, Any] = {"arguments": [*recipe.arguments(), *bindings]}
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(settings | {"is_finished": False}))
    state = json.loads(record.read_text())
    if (recorded := {name: state[name] for name in settings}) != settings:
        raise DataError(
            f"{folder} has a run that was begun with {recorded}, not with {settings}; give another "
            "--output, or remove the folder"
        )
    if not state["is_finished"]:
        resumed = (folder / "checkpoints").exists()
        started = time.monotonic()
        m6rec("train", *settings["arguments"], f"--gin.MODEL_DIR='{folder}'")
        seconds = None if resumed else time.monotonic() - started
        state |= {"is_finished": True, "seconds": seconds}
        record.write_text(json.dumps(state))
    return None if state["seconds"] is None else float(state["seconds"])


def evaluated(model_dir: Path, output: Path, *arguments: str) -> dict[str, float]:
    """Figures of a checkpoint, evaluated unless that was done.

    Args:
      model_dir: of the checkpoint.
      output: where the figures are kept.
      arguments: further ones of `m6rec eval`.
    """
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        m6rec(
            *("eval", f"--gin.MODEL_DIR='{model_dir}'"),
            f"--gin.evaluate.output='{output}'",
            *arguments,
        )
    return json.loads(output.read_text())


def hybrid(model_dir: Path, *arguments: str, towers: bool = True) -> dict[str, float]:
    """Figures of a run of retrieval as the hybrid, whose weights are learnt unless that was done.

    To be called once the two towers were evaluated alone, as they are until there are weights.

    Args:
      model_dir: of the run.
      arguments: further ones of `m6rec eval`.
      towers: False: without what the model finds.
    """
    output = model_dir / ("hybrid.json" if towers else "without_towers.json")
    bindings = () if towers else ("--gin.Reranking.towers=False",)
    if not output.exists():
        m6rec("calibrate", f"--gin.MODEL_DIR='{model_dir}'", *bindings)
    return evaluated(model_dir, output, *arguments, *bindings)


@dataclass(frozen=True, slots=True)
class Run:
    """What one run gave.

    Attributes:
      figures: on the test part.
      trainable_share: of the backbone.
      seconds: of training, validations included.
      step: whose parameters were tested.
      predictions: of the test part, as the task's job makes them.
    """

    figures: Mapping[str, float]
    trainable_share: float
    seconds: float
    step: int
    predictions: Any = None

    def settings(self) -> dict[str, Any]:
        """What each row of the run says besides its figure."""
        return {
            "trainable_share": round(self.trainable_share, 6),
            "step": self.step,
        }


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
    shutil.rmtree(folder)
    del result
    # Each run compiles programs of its own.
    jax.clear_caches()
    gc.collect()
    return Run(figures, share, seconds, step, predictions)


def backbone_of(foundation: Path) -> str:
    """Fingerprint of a foundation's backbone.

    Raises:
      CheckpointError: there is none.
    """
    from m6rec_jax.checkpoints.fingerprint import backbone_fingerprint
    from m6rec_jax.engine.model_folder import restore_model

    return backbone_fingerprint(restore_model(foundation).variables["params"])[:16]


def refuse_others(
    path: Path, rows: Iterable[Mapping[str, Any]], foundation: Path, fingerprint: str
) -> None:
    """Refuses to put rows beside others that were made from another foundation.

    Args:
      path: the result file.
      rows: those of it that must have been made alike.
      foundation: MODEL_DIR of the foundation in use.
      fingerprint: of its backbone.

    Raises:
      DataError: rows of another foundation are there.
    """
    others = {str(row["foundation"]) for row in rows} - {fingerprint}
    if others:
        raise DataError(
            f"{path} has rows of the foundation {', '.join(sorted(others))}, but {foundation} is "
            f"{fingerprint}: a table is of one foundation. Take those rows out of the file to "
            "begin another"
        )

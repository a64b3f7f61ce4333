"""The paper's table of phone models: a teacher, and what is left of it.

    python -m benchmarks.demo_seeds
    python -m benchmarks.edge [--seeds 0 1 2] [--demos runs/demo_seeds] [--output runs/edge]

The teacher of a seed is what `m6rec demo` made with it. As it does, for each seed and model a
backbone is pretrained on MovieLens-100k and then option-adapter-tuned for scoring and for
retrieval: a small model alone, and distilled; one of shared layers, distilled; that one pruned to
80% while it is trained on; and the last two with weights of 8 bits. A teacher that is pretrained
for as long as the small models are teaches a small one, too. What is finished is not run again.
Rows go to `benchmarks/results/edge.json`; `ms_per_candidate` is on one thread, of a history that
was encoded.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import device_speed
from benchmarks.command_line import errors_told
from benchmarks.movielens import DATASET, PREPARE, PREPARE_LEAVE_ONE_OUT
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path
from benchmarks.runs import Recipe, m6rec, train
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.configuration import macro, parse_config
from m6rec_jax.engine.model_folder import packed_of, read_vocabulary, restore_model
from m6rec_jax.engine.programs.packed_archive import write_archive
from m6rec_jax.engine.programs.packed_file import float_variables, quantized_variables
from m6rec_jax.errors import DataError
from m6rec_jax.evaluation.checkpoint_evaluation import restored_evaluator
from m6rec_jax.model.quantization import SCALE
from m6rec_jax.pipeline.run_vocabulary import own_vocabulary

DISTILLATION = "gin_configs/extras/distillation.gin"
PRUNING = "gin_configs/extras/pruning.gin"
# job: (steps, as in the demo, the metric, and what a teacher teaches).
JOBS = {
    "scoring": (150, "auc", "class_weight"),
    "retrieval": (300, "hit_rate@10", "similarity_weight"),
}
# The demo's teacher has 500; a small backbone learns more slowly.
BACKBONE_STEPS, PRUNING_STEPS = 1500, 1000


@dataclass(frozen=True)
class Model:
    """A backbone of the table.

    Attributes:
      size: of `gin_configs/models`.
      bindings: of gin, for every run.
      taught_by: the model whose runs it learns from; empty: none.
      pruned_from: the model whose backbone is trained on and pruned; empty: none.
    """

    size: str = "edge"
    bindings: tuple[str, ...] = ()
    taught_by: str = ""
    pruned_from: str = ""


# Layers of their own, with 7% more parameters than shared ones have.
_SMALL = (
    *("share_layers=False", "embed_dim=48", "head_dim=12", "mlp_dim=96"),
    *("num_encoder_layers=2", "num_decoder_layers=2"),
)
_small = tuple(f"ModelConfig.{binding}" for binding in _SMALL)
TEACHER, LONGER_TEACHER = "teacher", f"teacher, {BACKBONE_STEPS:,} steps"
MODELS = {
    TEACHER: Model("mini"),
    LONGER_TEACHER: Model("mini"),
    "small, alone": Model(bindings=_small),
    "small, distilled": Model(bindings=_small, taught_by=TEACHER),
    f"small, distilled from {BACKBONE_STEPS:,} steps": Model(
        bindings=_small, taught_by=LONGER_TEACHER
    ),
    "shared, distilled": Model(taught_by=TEACHER),
    "shared, pruned 80%": Model(taught_by=TEACHER, pruned_from="shared, distilled"),
}
# Of which 8 bits are evaluated, too.
ROUNDED = ("shared, distilled", "shared, pruned 80%")


@dataclass(frozen=True)
class Folders:
    """Of runs.

    Attributes:
      demos: `benchmarks.demo_seeds` made them.
      output: of all others.
    """

    demos: Path
    output: Path

    def of(self, name: str, seed: int, part: str) -> Path:
        """Of one run."""
        if name == TEACHER:
            return self.demos / str(seed) / part
        words = "".join(letter for letter in name if letter.isalnum() or letter == " ")
        return self.output / f"{words.replace(' ', '_')}-{seed}" / part


def run_model(name: str, seed: int, folders: Folders) -> None:
    """Trains one model with one seed, tests it and records its rows."""
    model, demo = MODELS[name], folders.demos / str(seed)
    if not (demo / "metrics.json").exists():
        raise DataError(
            f"{demo} has no finished demo to learn from; run `python -m benchmarks.demo_seeds "
            f"--seeds {seed}`, or name its --output with --demos"
        )
    common = [f"--gin.{one}" for one in (*model.bindings, f"train.seed={seed}")]
    common.append(f"--gin.BatchIterator.seed={seed}")
    common.append(f"--gin.vocabulary_file.path='{demo / 'vocabulary.model'}'")

    def taught(part: str, *weights: str) -> list[str]:
        if not model.taught_by:
            return []
        teacher = folders.of(model.taught_by, seed, part)
        given = (f"TEACHER='{teacher}'", *(f"Distillation.{weight}" for weight in weights))
        return [f"--gin_file={DISTILLATION}", *(f"--gin.{one}" for one in given)]

    backbone = folders.of(name, seed, "pretraining")
    of_pretraining = taught(
        "pretraining", "vocabulary_weight=0.5", "similarity_weight=0.3", "chunk_length=4"
    )
    steps = PRUNING_STEPS if model.pruned_from else BACKBONE_STEPS
    of_pretraining.append(f"--gin.TRAIN_STEPS={steps}")
    if model.pruned_from:
        dense = folders.of(model.pruned_from, seed, "pretraining")
        of_pretraining += [
            f"--gin_file={PRUNING}",
            f"--gin.INITIAL_CHECKPOINT_PATH='{dense}'",
            "--gin.Start.prompts='all'",
            f"--gin.PRUNING_END={steps * 2 // 3}",
        ]
    seconds = None
    if name != TEACHER:
        pretrain = Recipe("pretrain", model.size, DATASET)
        seconds = train(pretrain, backbone, [*common, *of_pretraining])
    metrics, rounded = dict[str, float](), dict[str, float]()
    for job, (job_steps, metric, lesson) in JOBS.items():
        run = folders.of(name, seed, job)
        start = f"--gin.INITIAL_CHECKPOINT_PATH='{backbone}'"
        lessons = taught(job, "relation_weight=0.0", f"{lesson}=1.0")
        if name != TEACHER:
            once = (f"TRAIN_STEPS={job_steps}", f"EVAL_PERIOD={job_steps}", "EVAL_ROWS=None")
            recipe = Recipe(job, model.size, DATASET, "option_adapter", once)
            train(recipe, run, [*common, start, *lessons])
        _check_zeros(run, backbone)
        metrics[metric] = _tested(run, metric, rounds=False)
        if name in ROUNDED:
            rounded[metric] = _tested(run, metric, rounds=True)
    run, teacher = (folders.of(one, seed, "scoring") for one in (name, TEACHER))
    # As shares of the teacher's.
    whole = {"auc": _tested(teacher, "auc", rounds=False)}
    whole["parameters"] = _sizes(restored_params(teacher))["parameters"]

    def add(model: str, found: dict[str, float], path: Path, seconds: float | None) -> None:
        shares = {f"{key}_share": found[key] / of_teacher for key, of_teacher in whole.items()}
        speed = device_speed.measured(path)["candidate_milliseconds"]
        _add(model, seed, found | shares | {"ms_per_candidate": speed}, seconds)

    add(name, metrics | _sizes(restored_params(run)), run, seconds)
    if rounded:
        file = run / "model.m6rec"
        write_archive(file, packed_of(run))
        sizes = _sizes(restored_params(file), file.stat().st_size)
        add(f"{name}, int8", rounded | sizes, file, None)


def restored_params(run: Path) -> Mapping[str, Any]:
    """The backbone of a run."""
    fingerprint = read_vocabulary(run).fingerprint
    return restore_model(run, vocabulary_fingerprint=fingerprint).variables["params"]


def _check_zeros(run: Path, backbone: Path) -> None:
    """Raises DataError where tuning gave weights back that pruning took."""
    tuned, before = (_share_of_zeros(restored_params(folder)) for folder in (run, backbone))
    if tuned < before:
        raise DataError(
            f"{run} has {tuned:.1%} zeros, and {backbone}, which it tunes, {before:.1%}: its "
            "backbone was not frozen"
        )


def _share_of_zeros(params: Mapping[str, Any]) -> float:
    sizes = _sizes(params)
    return 1.0 - sizes["nonzero_parameters"] / sizes["parameters"]


def _tested(run: Path, metric: str, *, rounds: bool) -> float:
    """A metric on the test part, perhaps of the weights as a packed file has them; kept."""
    path = run / f"test{'-int8' * rounds}.json"
    if not path.exists():
        parse_config([run / CONFIG_FILE], [f"MODEL_DIR='{run}'"])
        task = macro("MIXTURE_OR_TASK_NAME")
        lengths = macro("TASK_FEATURE_LENGTHS")
        with own_vocabulary(run):
            evaluator, restored = restored_evaluator(str(run), task, lengths, "test", 32, None, 0)
            variables = restored.variables
            if rounds:
                variables = float_variables(quantized_variables(variables))
            (one,) = evaluator.tasks
            found = evaluator.metrics(one, evaluator.predict(one, restored.model, variables))
        path.write_text(json.dumps(found, indent=2))
    return float(json.loads(path.read_text())[metric])


def _sizes(params: Mapping[str, Any], size: int | None = None) -> dict[str, float]:
    """Parameters of a backbone; bytes of a file, or of all parameters as float32."""
    leaves = {n: leaf for n, leaf in flatten(dict(params)).items() if not n.endswith(SCALE)}
    number = sum(leaf.size for leaf in leaves.values())
    nonzero = sum(int((leaf != 0).sum()) for leaf in leaves.values())
    return {
        "parameters": number,
        "nonzero_parameters": nonzero,
        "bytes": 4 * number if size is None else size,
    }


def _add(name: str, seed: int, metrics: dict[str, float], seconds: float | None) -> None:
    print(f"{name}, seed {seed}: {metrics}", flush=True)
    rows = metric_rows(
        metrics,
        model=name,
        dataset=DATASET,
        split="per_user_temporal, leave_one_out",
        seed=seed,
        gin_file="gin_configs/models/edge.gin",
        seconds=seconds,
    )
    add_rows(results_path("edge"), rows)


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The paper's table of phone models, over seeds.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--demos", type=Path, default=ROOT / "runs" / "demo_seeds")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "edge")
    options = parser.parse_args(arguments)
    m6rec("data", "fetch", DATASET)
    m6rec("data", "prepare", DATASET, *PREPARE)
    m6rec("data", "prepare", DATASET, *PREPARE_LEAVE_ONE_OUT)
    folders = Folders(options.demos.resolve(), options.output.resolve())
    for seed in options.seeds:
        for name in options.models:
            run_model(name, seed, folders)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a method of tuning gains or loses by other settings: rates, prompt lengths, ranks, starts.

    python -m benchmarks.tuning_variants --foundation runs/foundation_answers
        [--variants rate_option_adapter prompts_option ...] [--tasks movielens_ctr]

Each variant is a run of the study of tuning (`benchmarks.tuning`) with one setting changed, from
the same foundation, with seed 0. The figure is the best AUC of its validations: settings are chosen
by this table, and test parts are for the study alone. Runs whose rows stand in
`benchmarks/results/tuning_variants.json` are not made again, nor is the study's own value of a
setting, which is one run whatever the setting; rows of another foundation or of settings that have
changed since are an error.

A row has the keys of a row of the study (`task`, `method`, `curve`, ...) and

    setting   the gin name that changes, of `VARIANTS`
    at        its value here, as gin reads it
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.locks import locked
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, read_results, results_path
from benchmarks.tuned_run import backbone_of, conditions_of, refuse_others, tune
from benchmarks.tuning import METHODS, STUDY, TASKS, files_of
from m6rec_jax.huge_pages import start_with_huge_pages
from m6rec_jax.io.progress import progress_bar

RESULTS = "tuning_variants"
SPLIT = "validation"
SEED = 0


@dataclass(frozen=True, slots=True)
class Variant:
    """A method whose setting takes several values, the study's own among them.

    Attributes:
      method: of `benchmarks.tuning.METHODS`.
      setting: its name in gin.
      values: as gin reads them.
    """

    method: str
    setting: str
    values: tuple[str, ...]


_SMALL_RATES = ("1e-2", "4e-2", "1e-1", "3e-1")
_LARGE_RATES = ("1e-2", "3e-2", "1e-1", "3e-1")
_STARTS = ("'random'", "'vocabulary'", "'class_labels'")
# Embeddings frozen, as slow as in the foundation, and as fast as all else.
_FROZEN = "{'relative_bias/': 5.0, 'token_embedder/': 0.0}"
_DAMPED = "{'relative_bias/': 5.0, 'token_embedder/': 0.2}"
_UNDAMPED = "{'relative_bias/': 5.0}"

VARIANTS: Mapping[str, Variant] = {
    "rate_full": Variant("full", "BACKBONE_LEARNING_RATE", ("3e-3", "1e-2", "3e-2")),
    "embeddings_full": Variant("full", "RATE_FACTORS", (_FROZEN, _DAMPED, _UNDAMPED)),
    "rate_option_adapter": Variant("option_adapter", "LEARNING_RATE", _SMALL_RATES),
    "rate_option_embedding": Variant("option_embedding", "LEARNING_RATE", _SMALL_RATES),
    "rate_adapter": Variant("adapter", "LEARNING_RATE", _SMALL_RATES),
    "rate_lora": Variant("lora", "LEARNING_RATE", _SMALL_RATES),
    "rate_option": Variant("option", "LEARNING_RATE", _LARGE_RATES),
    "rate_prompt": Variant("prompt", "LEARNING_RATE", _LARGE_RATES),
    "rate_linear_probe": Variant("linear_probe", "LEARNING_RATE", _LARGE_RATES),
    "prompts_option": Variant("option", "TASK_PROMPTS", ("8", "16", "32")),
    # Options that start from their words would replace the labels.
    "start_option": Variant("option_without_words", "INITIAL_SOFT_PROMPTS", _STARTS),
    "start_prompt": Variant("prompt", "INITIAL_SOFT_PROMPTS", _STARTS),
    "rank_option_adapter": Variant("option_adapter", "ADAPTER_RANK", ("10", "20", "40")),
    "rank_option_embedding": Variant("option_embedding", "EMBEDDING_RANK", ("1", "2", "4")),
    "scale_option_adapter": Variant(
        "option_adapter", "PromptConfig.adapter_scale", ("1.0", "8.0", "32.0", "128.0")
    ),
    # The study's own are the first for behaviours, the second for texts.
    "steps_option_adapter": Variant("option_adapter", "TRAIN_STEPS", ("160", "480", "1920")),
    "dropout_option_adapter": Variant("option_adapter", "DROPOUT_RATE", ("0.0", "0.1")),
}


def model_name(variant: Variant, value: str) -> str:
    """What a row's run is called."""
    return f"{METHODS[variant.method]}, {variant.setting} = {value}"


def num_classes(task: str) -> int:
    """NUM_OPTIONS of a task."""
    from m6rec_jax import configuration

    unused = [f"{name}='unused'" for name in ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH")]
    configuration.parse_config(files_of(task, "option"), unused)
    return int(configuration.macro("NUM_OPTIONS"))


def study(foundation: Path, tasks: Sequence[str], variants: Sequence[str], output: Path) -> None:
    """Makes the runs that are missing and writes the result file after each.

    Args:
      foundation: MODEL_DIR of the foundation.
      tasks: of `benchmarks.tuning.TASKS`.
      variants: of `VARIANTS`.
      output: folder for runs while they train.

    Raises:
      DataError: rows of another foundation or of other settings are there.
      M6RecError: a run failed.
    """
    path, fingerprint = results_path(RESULTS), backbone_of(foundation)
    runs = [
        (VARIANTS[name], value, task)
        for task, name in itertools.product(tasks, variants)
        for value in VARIANTS[name].values
        # Every class is a soft prompt.
        if VARIANTS[name].setting != "TASK_PROMPTS" or int(value) >= num_classes(task)
    ]
    bar = progress_bar(runs, unit="run", desc="variants")
    for variant, value, task in bar:
        model, files = model_name(variant, value), files_of(task, variant.method)
        changed = f"{variant.setting}={value}"
        conditions = conditions_of(fingerprint, files, own_bindings=[changed])
        words = re.findall(r"[\w.]+", value)
        folder = output / "-".join([task, variant.method, variant.setting, *words])
        # Another command of this table would make the same run, and remove this one's folder.
        lock = path.with_name(f"{RESULTS}-{folder.name}")
        with locked(lock, f"waiting for another command to be done with {folder.name}"):
            rows = read_results(path).rows
            refuse_others(path, rows, foundation, {"foundation": fingerprint})
            same = [row for row in rows if (row["model"], row["dataset"]) == (model, task)]
            refuse_others(path, same, foundation, conditions)
            if same:
                continue
            named = {"model": model, "setting": variant.setting, "at": value}
            told = conditions["configuration"]
            if alike := [row for row in rows if row.get("configuration") == told]:
                add_rows(path, [alike[0] | named])
                continue
            run = tune(files, foundation, SEED, folder, [changed], tested=False)
            best = max(auc for step, auc in run.curve if step)  # the start is no checkpoint
            new = metric_rows(
                {"auc": best},
                model=model,
                dataset=task,
                split=SPLIT,
                seed=SEED,
                gin_file=f"{STUDY}/{variant.method}.gin",
                seconds=run.seconds,
            )
            known = {"task": task, "method": variant.method, **conditions, **run.known()}
            add_rows(path, [row | known | named for row in new])
            bar.write(f"{task}, {model}: AUC {best:.4f}")


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Methods of tuning under other settings.")
    parser.add_argument("--foundation", type=Path, default=ROOT / "runs" / "foundation_answers")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=[*TASKS],
        default=["movielens_ctr", "film_reviews_sentiment"],
    )
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / RESULTS)
    options = parser.parse_args(arguments)
    foundation, output = options.foundation.resolve(), options.output.resolve()
    study(foundation, options.tasks, options.variants, output)
    return 0


if __name__ == "__main__":
    start_with_huge_pages()
    sys.exit(main())

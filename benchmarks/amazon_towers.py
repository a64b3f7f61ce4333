"""The documented path for sequences, command by command: towers of texts alone, and the hybrid.

    python -m benchmarks.amazon_towers FOLDER [--seeds 0 1 2]

FOLDER is what `benchmarks.amazon` reads. Every command of "From sequences to recommendations" in
docs/importing.md is run as it stands there, but for names of folders and seeds of tuning, and the
last two once more without the towers. What is finished is not run again. Rows go to
`benchmarks/results/amazon.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.documented_path import commands_of, run
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax.jobs.retrieval import TWO_TOWERS

PAGE = "docs/importing.md", "From sequences to recommendations"
MODEL = "M6-Rec mini, option-adapter"
_METRICS = ("hit_rate@5", "hit_rate@10", "ndcg@10", "hit_rate@50", "mrr")
# What is bound in learning weights and in the evaluation, and what rows are called, by the prefix
# of their figures.
_RANKINGS = (
    ("", {"": f"{MODEL}; hybrid", f"{TWO_TOWERS}/": MODEL}),
    ("--gin.Reranking.towers=False", {"": f"{MODEL}; hybrid without the towers"}),
)


def with_names(command: Sequence[str], folder: Path, seed: int) -> list[str]:
    """A command of the page for another folder and seed of tuning."""
    name = folder.name
    words = [
        word.replace("~/beauty", str(folder))
        .replace("data/beauty", f"data/{name}")
        .replace("=beauty", f"={name}")
        .replace("runs/next_item", f"runs/next_item-{seed}")
        for word in command
    ]
    if words[1] == "train" and f"--gin.MODEL_DIR=runs/next_item-{seed}" in words:
        words += [f"--gin.train.seed={seed}", f"--gin.BatchIterator.seed={seed}"]
    return words


def follow(folder: Path, output: Path, seed: int) -> dict[str, dict[str, float]]:
    """Runs the commands; figures by what rows are called."""
    commands = [with_names(command, folder, seed) for command in commands_of(*PAGE)]
    *before, learn, evaluate = commands
    for command in before:
        run(command, output)
    found = {}
    for binding, models in _RANKINGS:
        figures = output / f"{folder.name}-{seed}{'-without' if binding else ''}.json"
        bound = [binding] if binding else []
        run([*learn, *bound], output)
        run([*evaluate, *bound, f"--gin.evaluate.output={figures}"], output)
        values = json.loads(figures.read_text(encoding="utf-8"))
        for prefix, model in models.items():
            found[model] = {metric: values[prefix + metric] for metric in _METRICS}
    return found


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The documented path for sequences.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of tuning")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "amazon")
    options = parser.parse_args(arguments)
    folder, output = options.folder.resolve(), options.output.resolve() / options.folder.name
    output.mkdir(parents=True, exist_ok=True)
    for seed in dict.fromkeys(options.seeds):
        for model, metrics in follow(folder, output, seed).items():
            own = {"gin_file": "gin_configs/own_data/retrieval.gin", "seed": seed}
            rows = metric_rows(
                metrics, model=model, dataset=folder.name, split="leave_one_out", **own
            )
            add_rows(results_path("amazon"), rows)
            print(f"{model}, seed {seed}: hit_rate@10 {metrics['hit_rate@10']:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

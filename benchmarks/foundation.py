"""The foundation from nothing: data, vocabulary, pretraining, perplexity of every source.

    python -m benchmarks.foundation [--output runs/foundation] [--gin.TRAIN_STEPS=4000 ...]

Runs the commands that the headers of gin_configs/examples/foundation_*.gin name, one after the
other. What is finished is not done again; a training run that was stopped goes on where it stopped.
Gin bindings are handed to the training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.movielens import EXAMPLES, m6rec, train
from benchmarks.movielens import PREPARE as MOVIELENS_PREPARE
from benchmarks.provenance import ROOT
from m6rec_jax.errors import DataError, M6RecError
from m6rec_jax.pipeline.locations import shared_vocabulary

BOOKS_PREPARE = f"{EXAMPLES}/book_crossing_prepare.gin"
VOCABULARY = f"{EXAMPLES}/foundation_vocabulary.gin"
PRETRAIN = f"{EXAMPLES}/foundation_pretrain.gin"
EVALUATE = f"{EXAMPLES}/foundation_eval.gin"
NAME = "foundation"
TABLES = {"movielens-100k": MOVIELENS_PREPARE, "book-crossing-small": BOOKS_PREPARE}
TEXTS = ("film-attributes", "film-consensus", "film-plots", "film-reviews", "chitchat")


def prepare_data() -> None:
    """Fetches and prepares everything and trains the vocabulary; what is there stays."""
    for name in ("movielens-100k", "book-crossing", *TEXTS):
        m6rec("data", "fetch", name)
    m6rec("data", "sample", "book-crossing", "--gin_file", BOOKS_PREPARE)
    for name, gin_file in TABLES.items():
        m6rec("data", "prepare", name, "--gin_file", gin_file)
        # Retrieval jobs are tested on these; the foundation does not read them.
        m6rec(
            *("data", "prepare", name, "--gin_file", gin_file, "--gin.SPLIT='leave_one_out'"),
            "--gin.VIEWS=('next_items', 'catalogue')",
        )
    for name in TEXTS:
        m6rec("data", "prepare", name)
    # A run that is resumed refuses another vocabulary than the one that it began with.
    if not shared_vocabulary(NAME).exists():
        m6rec("vocab", "train", "--gin_file", VOCABULARY)


def perplexities(folder: Path, arguments: Sequence[str] = ()) -> dict[str, float]:
    """Held-out perplexity of every source, evaluated unless that was done."""
    output = folder / "perplexity.json"
    if not output.exists():
        m6rec(
            *("eval", "--gin_file", EVALUATE, f"--gin.MODEL_DIR='{folder}'"),
            f"--gin.evaluate.output='{output}'",
            *arguments,
        )
    figures = json.loads(output.read_text())
    end = "/perplexity"
    return {
        name.removesuffix(end): float(value)
        for name, value in figures.items()
        if name.endswith(end)
    }


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The foundation, from nothing.")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / NAME)
    parser.add_argument("--eval-limit", type=int, help="rows of each source, at most")
    options, bindings = parser.parse_known_args(arguments)
    folder = options.output.resolve()
    limit = [f"--gin.evaluate.limit={options.eval_limit}"] if options.eval_limit else []
    try:
        for binding in bindings:
            if not binding.startswith("--gin."):
                raise DataError(f"unrecognized argument: {binding}")
        prepare_data()
        seconds = train(PRETRAIN, folder, bindings)
        print(f"{folder}: {'resumed' if seconds is None else f'{seconds:.0f} seconds'}")
        for name, value in sorted(perplexities(folder, limit).items()):
            print(f"{name}: perplexity {value:.2f}")
    except M6RecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

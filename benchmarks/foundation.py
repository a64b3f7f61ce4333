"""The foundation from nothing: data, vocabulary, pretraining, perplexity of every source.

    python -m benchmarks.foundation [--output runs/foundation] [--gin.TRAIN_STEPS=4000 ...]
    python -m benchmarks.foundation --answers [--first runs/foundation] [--output FOLDER]
    python -m benchmarks.foundation --books [--output runs/foundation_books]

Runs the commands that the headers of gin_configs/data/foundation/*.gin name, one after the
other. What is finished is not done again; a training run that was stopped goes on where it stopped.
Gin bindings are handed to the training. `--answers` makes its second stage, from which the study of
tuning starts (gin_configs/data/foundation/answers.gin), and the first where that is missing.
`--books` makes the foundation that has read no behaviour about films
(gin_configs/data/foundation/books.gin). Perplexities go to
`benchmarks/results/foundation.json`, unless bindings or a limit make them of something else;
`foundation` is the fingerprint of the backbone, which rows of studies on it name, too.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.command_line import errors_told, with_bindings
from benchmarks.movielens import PREPARE as MOVIELENS_PREPARE
from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, metric_rows, results_path
from benchmarks.runs import DATA, Recipe, backbone_of, evaluated, m6rec, train
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.locations import shared_vocabulary

WRITING_VIEWS = "--gin.VIEWS=('explanations', 'contents', 'titles', 'queries', 'catalogue')"
BOOKS_PREPARE = ("--gin_file", f"{DATA}/book-crossing-small/prepare.gin")
VOCABULARY = ("--gin_file", f"{DATA}/foundation/prepare_vocabulary.gin")
RATED_PREPARE = ("--gin_file", f"{DATA}/book-crossing-small/prepare_rated.gin")
# Of each source, to measure perplexity.
ROWS = 2_000
NAME = "foundation"
# What has not read everything.
BOOKS_NAME = "foundation_books"
# What goes on from all of it.
ANSWERS_NAME = "foundation_answers"
RECIPES = {
    name: Recipe(recipe, "foundation", "foundation")
    for name, recipe in ((NAME, "pretrain"), (BOOKS_NAME, "books"), (ANSWERS_NAME, "answers"))
}
ALL_SOURCES = "all sources"
TABLES = {"movielens-100k": MOVIELENS_PREPARE, "book-crossing-small": BOOKS_PREPARE}
RATED = "book-crossing-rated"
TEXTS = ("film-attributes", "film-consensus", "film-plots", "film-reviews", "chitchat")
# What the second stage reads besides.
QUESTIONS = ("film-overviews", "film-tones")


def prepare_data() -> None:
    """Fetches and prepares everything and trains the vocabulary; what is there stays."""
    for name in ("sentence-encoder", "movielens-100k", "book-crossing", *TEXTS):
        m6rec("data", "fetch", name)
    m6rec("data", "sample", "book-crossing", *BOOKS_PREPARE)
    for name, settings in TABLES.items():
        m6rec("data", "prepare", name, *settings)
        # Retrieval jobs are tested on these; the foundation does not read them.
        m6rec(
            *("data", "prepare", name, *settings, "--gin.SPLIT='leave_one_out'"),
            "--gin.VIEWS=('next_items', 'catalogue')",
        )
    m6rec("data", "prepare", "movielens-100k", *MOVIELENS_PREPARE, WRITING_VIEWS)
    for name in TEXTS:
        m6rec("data", "prepare", name)
    # A run that is resumed refuses another vocabulary than the one that it began with.
    if not shared_vocabulary(NAME).exists():
        m6rec("vocab", "train", *VOCABULARY)


def prepare_rated_books() -> None:
    """Prepares what the foundation of books reads beside texts."""
    m6rec("data", "sample", "book-crossing", *RATED_PREPARE)
    m6rec("data", "prepare", RATED, *RATED_PREPARE)


def prepare_questions() -> None:
    """Fetches and prepares what the second stage reads besides."""
    for name in QUESTIONS:
        m6rec("data", "fetch", name)
        m6rec("data", "prepare", name)


def perplexities(folder: Path, mixture: str, limit: int = ROWS) -> dict[str, float]:
    """Perplexity of every source of a mixture, on `limit` rows of its validation part.

    Evaluated unless that was done.
    """
    figures = evaluated(
        folder,
        folder / f"perplexity-{limit}.json",
        f"--gin.MIXTURE_OR_TASK_NAME='{mixture}'",
        "--gin.SPLIT='validation'",
        f"--gin.evaluate.limit={limit}",
    )
    end = "/perplexity"
    return {name.removesuffix(end): value for name, value in figures.items() if name.endswith(end)}


def tokens_seen(folder: Path) -> float:
    """Tokens that a finished run trained on, padding left out, by its log of mean rates."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    per_example = {
        line["step"]: line["tokens_per_second"] / line["examples_per_second"]
        for line in lines
        if "tokens_per_second" in line
    }
    examples = re.search(r"^BATCH_SIZE = (\d+)$", (folder / "config.gin").read_text(), re.MULTILINE)
    if examples is None:
        raise DataError(f"{folder / 'config.gin'} has no BATCH_SIZE")
    before, total = 0, 0.0
    for step, mean in sorted(per_example.items()):
        total += (step - before) * int(examples[1]) * mean
        before = step
    return total


def rows_of(
    name: str, gin_file: str, figures: Mapping[str, float], folder: Path, seconds: float | None
) -> list[Row]:
    """Rows of the result file.

    Of each source, perplexities by how its text is learnt; of `ALL_SOURCES`, tokens seen.
    """
    of_source: dict[str, dict[str, float]] = {}
    for task, value in figures.items():
        source, _, kind = task.rpartition("_")
        of_source.setdefault(source, {})[f"{kind}_perplexity"] = value
    measured = [(source, "validation", metrics) for source, metrics in sorted(of_source.items())]
    measured.append((ALL_SOURCES, "train", {"tokens": tokens_seen(folder)}))
    return [
        row
        for source, split, metrics in measured
        for row in metric_rows(
            metrics,
            model=source.replace("_", " "),
            dataset=name,
            split=split,
            seed=0,
            gin_file=gin_file,
            seconds=seconds,
        )
    ]


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="The foundation, from nothing.")
    parser.add_argument("--output", type=Path, help="default: a folder of its name in runs/")
    first = ROOT / "runs" / NAME
    parser.add_argument("--first", type=Path, default=first, help="the first stage, of --answers")
    which = parser.add_mutually_exclusive_group()
    for flag, name, told in (
        ("--answers", ANSWERS_NAME, "the foundation's second stage, which answers questions"),
        ("--books", BOOKS_NAME, "the foundation that has read no behaviour about films"),
    ):
        which.add_argument(flag, dest="name", action="store_const", const=name, help=told)
    parser.set_defaults(name=NAME)
    parser.add_argument("--eval-limit", type=int, default=ROWS, help="rows of each source, at most")
    options, bindings = with_bindings(parser, arguments)
    name, pretrain = options.name, RECIPES[options.name]
    folder = (options.output or ROOT / "runs" / name).resolve()
    start: list[str] = []
    prepare_data()
    if name == BOOKS_NAME:
        prepare_rated_books()
    if name == ANSWERS_NAME:
        prepare_questions()
        first = options.first.resolve()
        train(RECIPES[NAME], first)
        start = [f"--gin.INITIAL_CHECKPOINT_PATH='{first}'"]
    seconds = train(pretrain, folder, [*start, *bindings])
    print(f"{folder}: {'resumed' if seconds is None else f'{seconds:.0f} seconds'}")
    mixture = name if name == BOOKS_NAME else "foundation_language"
    figures = perplexities(folder, mixture, options.eval_limit)
    for task, value in sorted(figures.items()):
        print(f"{task}: perplexity {value:.2f}")
    if not bindings and options.eval_limit == ROWS:
        known = {"foundation": backbone_of(folder)}
        rows = rows_of(name, pretrain.gin_file, figures, folder, seconds)
        add_rows(results_path(NAME), [row | known for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())

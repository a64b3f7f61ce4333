"""The foundation from nothing: data, vocabulary, pretraining.

    python -m benchmarks.foundation [--output runs/foundation] [--gin.TRAIN_STEPS=4000 ...]
    python -m benchmarks.foundation --answers [--first runs/foundation] [--output FOLDER]
    python -m benchmarks.foundation --books [--output runs/foundation_books]

Runs the commands that the headers of gin_configs/data/foundation/*.gin name, one after the
other. What is finished is not done again; a training run that was stopped goes on where it stopped.
Gin bindings are handed to the training. `--answers` makes its second stage, from which the study of
tuning starts (gin_configs/data/foundation/answers.gin), and the first where that is missing.
`--books` makes the foundation that has read no behaviour about films
(gin_configs/data/foundation/books.gin).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.command_line import errors_told, with_bindings
from benchmarks.movielens import PREPARE as MOVIELENS_PREPARE
from benchmarks.provenance import ROOT
from benchmarks.runs import DATA, Recipe, m6rec, train
from m6rec_jax.pipeline.locations import data_dir

WRITING_VIEWS = "--gin.VIEWS=('explanations', 'contents', 'titles', 'queries')"
BOOKS_PREPARE = ("--gin_file", f"{DATA}/book-crossing-small/prepare.gin")
VOCABULARY = ("--gin_file", f"{DATA}/foundation/prepare_vocabulary.gin")
RATED_PREPARE = ("--gin_file", f"{DATA}/book-crossing-small/prepare_rated.gin")
NAME = "foundation"
# What has not read everything.
BOOKS_NAME = "foundation_books"
# What goes on from all of it.
ANSWERS_NAME = "foundation_answers"
RECIPES = {
    name: Recipe(recipe, "foundation", "foundation")
    for name, recipe in ((NAME, "pretrain"), (BOOKS_NAME, "books"), (ANSWERS_NAME, "answers"))
}
TABLES = {"movielens-100k": MOVIELENS_PREPARE, "book-crossing-small": BOOKS_PREPARE}
RATED = "book-crossing-rated"
TEXTS = ("film-attributes", "film-consensus", "film-plots", "film-reviews", "chitchat")
# What the second stage reads besides.
QUESTIONS = ("film-overviews", "film-tones")


def prepare_data() -> None:
    """Fetches and prepares everything and trains the vocabulary; what is there stays."""
    for name in ("movielens-100k", "book-crossing", *TEXTS):
        m6rec("data", "fetch", name)
    m6rec("data", "sample", "book-crossing", *BOOKS_PREPARE)
    for name, settings in TABLES.items():
        m6rec("data", "prepare", name, *settings)
        # Retrieval jobs are tested on these; the foundation does not read them.
        m6rec(
            *("data", "prepare", name, *settings, "--gin.SPLIT='leave_one_out'"),
            "--gin.VIEWS=('next_items',)",
        )
    m6rec("data", "prepare", "movielens-100k", *MOVIELENS_PREPARE, WRITING_VIEWS)
    for name in TEXTS:
        m6rec("data", "prepare", name)
    # A run that is resumed refuses another vocabulary than the one that it began with.
    if not (data_dir() / NAME / "vocabulary.model").exists():
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
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line `m6rec`: thin. Each sub-command parses its arguments and calls one function.

Heavy libraries are imported inside the sub-commands, so `m6rec --help` answers at once.
Settings live in gin files; the flags here only name files and folders.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import absl.logging

from m6rec_jax import __version__
from m6rec_jax.errors import ConfigError, DataError, M6RecError

EXIT_USER_ERROR = 2
EXIT_OF_SIGNALS = {"SIGINT": 130, "SIGTERM": 143}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status (2 for an error the user can mend)."""
    # A console script does not look for modules in the current directory, where a user's own tasks/
    # are. They go last, so that nothing there can shadow a library.
    sys.path.append(os.getcwd())
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    _set_up_logging()
    try:
        args.gin_bindings = _gin_bindings(rest, parser)
        return args.run(args) or 0
    except M6RecError as error:
        print(f"m6rec: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("m6rec: stopped", file=sys.stderr)
        return EXIT_OF_SIGNALS["SIGINT"]


def _set_up_logging() -> None:
    """Shows this package's messages, and of tensorflow's only what a user can do something about.

    Tensorflow reads data here and computes nothing: that it finds no GPU, or could be compiled
    otherwise, is no news. With `TF_CPP_MIN_LOG_LEVEL=0` in the environment everything is shown.
    """
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        absl.logging.set_verbosity(absl.logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("m6rec_jax")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _gin_bindings(rest: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """`--gin.NAME=VALUE` (t5x's way) to gin's own `NAME = VALUE`; anything else is refused."""
    bindings = []
    for argument in rest:
        if not argument.startswith("--gin."):
            parser.error(f"unrecognized argument: {argument}")
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals:
            raise ConfigError(
                f"{argument}: write --gin.NAME=VALUE, for instance --gin.BATCH_SIZE=8"
            )
        bindings.append(f"{name} = {value}")
    return bindings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m6rec",
        description="One language model for every job of a recommender (M6-Rec in JAX).",
        epilog="Settings live in gin files: add --gin_file FILE and --gin.NAME=VALUE to the "
        "commands that take them.",
    )
    parser.add_argument("--version", action="version", version=f"m6rec_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="get, check and prepare data sets")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = actions.add_parser("fetch", help="download a public data set into a canonical folder")
    fetch.add_argument("name", help="for instance movielens-100k")
    fetch.set_defaults(run=_data_fetch)
    check = actions.add_parser("check", help="report every problem of a data set folder")
    check.add_argument("folder", type=Path)
    check.add_argument("--quarantine", type=Path, help="write rejected rows to this file")
    check.add_argument("--json", type=Path, help="write the report to this file, too")
    check.set_defaults(run=_data_check)
    prepare = actions.add_parser("prepare", help="render a data set's text as a TFDS data set")
    prepare.add_argument(
        "folder", type=Path, help="a data set folder, or the name of a fetched data set"
    )
    _takes_gin(prepare)
    prepare.set_defaults(run=_data_prepare)

    vocab = commands.add_parser("vocab", help="train a vocabulary")
    actions = vocab.add_subparsers(dest="action", required=True, metavar="ACTION")
    train = actions.add_parser("train", help="SentencePiece on the prepared text")
    _takes_gin(train)
    train.set_defaults(run=_vocab_train)

    for name, run, text in (
        ("train", _train, "train or tune a model; run the same command again to resume"),
        ("eval", _eval, "evaluate a checkpoint on its task"),
        ("infer", _infer, "write a checkpoint's predictions for a task to a file"),
        ("params", _params, "print what a model has and what of it trains"),
    ):
        command = commands.add_parser(name, help=text)
        _takes_gin(command, required=True)
        command.set_defaults(run=run)

    convert = commands.add_parser(
        "convert", help="take weights from T5, mT5, UMT5 or t5x checkpoints, or give them back"
    )
    where = "FORMAT:FOLDER, FORMAT one of m6rec (or none), huggingface, t5x, scalable_t5"
    convert.add_argument("--from", dest="source", required=True, help=where)
    convert.add_argument("--to", dest="target", required=True, help="likewise; a new folder")
    convert.add_argument(
        "--vocabulary", type=Path, help="SentencePiece file (default: the one in the source)"
    )
    convert.add_argument("--dry-run", action="store_true", help="only print the mapping")
    convert.set_defaults(run=_convert)

    demo = commands.add_parser("demo", help="MovieLens-100k from nothing to an HTML report")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"))
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="versions, devices and known version traps")
    doctor.set_defaults(run=_doctor)
    return parser


def _takes_gin(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        required=required,
        metavar="FILE",
        help="a gin file; may be given several times, later ones win",
    )


def _configure(args: argparse.Namespace) -> None:
    from m6rec_jax import configuration

    configuration.parse_config(args.gin_file, args.gin_bindings)


def _data_fetch(args: argparse.Namespace) -> None:
    from m6rec_jax.tables.sources import fetch

    print(fetch(args.name))


def _data_check(args: argparse.Namespace) -> None:
    from m6rec_jax.tables.checking import check_dataset

    report = check_dataset(args.folder, args.quarantine)
    print(report.render())
    if args.json is not None:
        args.json.write_text(report.to_json() + "\n")
    if not report.ok:
        raise DataError(
            f"{args.folder} has errors; --quarantine FILE sets the rows aside and writes the rest"
        )


def _data_prepare(args: argparse.Namespace) -> None:
    from m6rec_jax.pipeline.locations import data_dir
    from m6rec_jax.tables.preparation import prepare

    _configure(args)
    folder = args.folder if args.folder.is_dir() else data_dir() / args.folder
    print(prepare(folder, data_dir()).folder)


def _vocab_train(args: argparse.Namespace) -> None:
    from m6rec_jax.pipeline.locations import data_dir
    from m6rec_jax.tables.vocabulary_text import train_on_prepared

    _configure(args)
    print(train_on_prepared(data_dir()).model_file)


def _train(args: argparse.Namespace) -> int:
    from m6rec_jax.training.loop import train

    _configure(args)
    # What comes after a run that was told to stop must not take it for finished.
    return EXIT_OF_SIGNALS.get(train().stopped_by, 0)


def _eval(args: argparse.Namespace) -> None:
    from m6rec_jax.evaluation.evaluator import evaluate

    _configure(args)
    print(json.dumps(evaluate(), indent=2))


def _infer(args: argparse.Namespace) -> None:
    from m6rec_jax.evaluation.evaluator import infer

    _configure(args)
    print(infer())


def _convert(args: argparse.Namespace) -> None:
    from m6rec_jax.convert import convert

    report = convert(
        args.source, args.target, vocabulary_file=args.vocabulary, dry_run=args.dry_run
    )
    print(report)


def _demo(args: argparse.Namespace) -> None:
    from m6rec_jax.demo import run_demo

    run_demo(args.output, seed=args.seed)


def _params(args: argparse.Namespace) -> None:
    from m6rec_jax import configuration
    from m6rec_jax.training.parameter_table import count_parameters

    _configure(args)
    model = configuration.macro("MODEL")
    table = count_parameters(
        model.config,
        configuration.macro("TRAINABLE", "all"),
        configuration.bound("train.frozen_dtype"),
    )
    print(table.render())


def _doctor(args: argparse.Namespace) -> None:
    from m6rec_jax.doctor import report

    print(report())


if __name__ == "__main__":
    sys.exit(main())

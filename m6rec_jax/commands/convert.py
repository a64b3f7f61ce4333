"""`m6rec convert`."""

import argparse
from typing import Any

from m6rec_jax.checkpoints.formats import Location
from m6rec_jax.commands.arguments import add_command, local_path
from m6rec_jax.commands.settings import check_there


def add_commands(commands: Any) -> None:
    convert = add_command(commands, "convert", run_convert)
    where = (
        "FORMAT:FOLDER, FORMAT one of m6rec (or none), huggingface, t5x, scalable_t5, t5x_bridge"
    )
    convert.add_argument("--from", dest="source", required=True, help=where)
    convert.add_argument("--to", dest="target", required=True, help="likewise; a new folder")
    convert.add_argument(
        "--vocabulary", type=local_path, help="SentencePiece file (default: the one in the source)"
    )
    convert.add_argument(
        "--model-type",
        choices=("t5", "mt5", "umt5"),
        help="what a Hugging Face target is (default: what the source was there, else t5 or umt5)",
    )


def run_convert(args: argparse.Namespace) -> None:
    """take weights from T5, mT5, UMT5 or t5x checkpoints, or give them back"""
    Location.parse(args.target)
    check_there(Location.parse(args.source).folder, f"--from {args.source}")
    if args.vocabulary is not None:
        check_there(args.vocabulary, f"--vocabulary {args.vocabulary}")
    from m6rec_jax.convert import convert

    report = convert(
        args.source,
        args.target,
        vocabulary_file=args.vocabulary,
        model_type=args.model_type,
    )
    print(report)

"""`m6rec compile`."""

import argparse
from typing import Any

from m6rec_jax.commands.arguments import add_command, local_path, takes_gin
from m6rec_jax.io.atomic import check_output


def add_commands(commands: Any) -> None:
    command = add_command(
        commands,
        "compile",
        run_compile,
        description="Compiles the training, scoring and decoding step of a run for a TPU slice "
        "with XLA's TPU compiler (pip install 'm6rec_jax[compile]'; no TPU is needed) and reports "
        "memory, operations, collectives and the time at peak rates.",
    )
    command.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:16x16, v4:4x8x8, v6e:8x16, ... or an accelerator type such as v5litepod-256",
    )
    command.add_argument("--slices", type=int, default=1, help="how many such slices (default 1)")
    command.add_argument("--model", metavar="NAME", help="a file of gin_configs/models, e.g. xl")
    command.add_argument(
        "--tuning", metavar="NAME", help="a file of gin_configs/tuning, e.g. option_adapter"
    )
    command.add_argument(
        "--sharding",
        metavar="NAME",
        help="a file of gin_configs/sharding, which overrides what gin files say (default with "
        "--model, where they say nothing: fully_sharded)",
    )
    command.add_argument(
        "--steps",
        default="train,score,decode",
        metavar="LIST",
        help="which of train,score,decode (default: all)",
    )
    command.add_argument(
        "--json", type=local_path, metavar="FILE", help="write the report here, too"
    )
    command.add_argument(
        "--hlo",
        type=local_path,
        metavar="FOLDER",
        help="write the optimised programs here, as text",
    )
    takes_gin(command)


def run_compile(args: argparse.Namespace) -> int:
    """what a run would take on TPUs that need not be there: memory, time, communication"""
    from m6rec_jax.compilation.command import compile_run

    if args.json is not None:
        check_output(args.json)
    report = compile_run(
        args.topology,
        slices=args.slices,
        model=args.model,
        tuning=args.tuning,
        sharding=args.sharding,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
        steps=tuple(filter(None, args.steps.split(","))),
        hlo_folder=args.hlo,
    )
    print(report.render())
    if args.json is not None:
        args.json.write_text(report.to_json(), encoding="utf-8")
    return 0 if report.fits else 1

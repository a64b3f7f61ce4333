"""`m6rec compile`."""

import argparse
from typing import Any

from m6rec_jax.commands.arguments import add_command, takes_names
from m6rec_jax.commands.settings import look_at_named


def add_commands(commands: Any) -> None:
    command = add_command(
        commands,
        "compile",
        run_compile,
        description="Compiles the training, scoring and decoding step of a run for a TPU slice "
        "with XLA's TPU compiler (pip install 'm6rec_jax[compile]'; no TPU is needed), or for this "
        "machine, and reports memory, operations and collectives. The exit status is 1 where a "
        "step does not compile or fit.",
    )
    command.add_argument(
        "--topology",
        metavar="NAME",
        help="v5e:16x16, v4:4x8x8, v6e:8x16, ... or an accelerator type such as v5litepod-256 "
        "(default: the devices of this machine)",
    )
    command.add_argument("--slices", type=int, default=1, help="how many such slices (default 1)")
    command.add_argument(
        "--steps",
        default="",
        metavar="LIST",
        help="which of train,score,decode (default: all that the model has)",
    )
    takes_names(command)


def run_compile(args: argparse.Namespace) -> int:
    """whether a run's steps compile for a TPU slice that need not be there, and fit its memory"""
    from m6rec_jax.compilation.topologies import parse_topology, use_libtpu_as_a_compiler

    look_at_named(args)
    topology = None
    if args.topology is not None:
        topology = parse_topology(args.topology, args.slices)
        use_libtpu_as_a_compiler()
    from m6rec_jax.compilation.command import compile_run

    fits = compile_run(
        topology,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
        steps=tuple(filter(None, args.steps.split(","))),
    )
    return 0 if fits else 1

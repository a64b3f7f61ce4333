"""t5x's programs in several processes: `m6rec t5x.train`, `t5x.eval`, `t5x.infer`, `t5x.export`."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from m6rec_jax.commands.arguments import add_command, takes_gin
from m6rec_jax.errors import ConfigError


def add_commands(commands: Any) -> None:
    for name in ("train", "eval", "infer", "export"):
        takes_gin(add_command(commands, f"t5x.{name}", run_program), required=True)


def run_program(args: argparse.Namespace) -> None:
    """t5x's program of that name, on one host or many (docs/t5x.md)"""
    if importlib.util.find_spec("t5x") is None:
        raise ConfigError(
            "t5x is not installed; in a checkout of this package: "
            "pip install --no-deps -r requirements-t5x.txt"
        )
    from m6rec_jax.t5x_bridge.programs import run_program

    run_program(args.command, args.gin_file, args.gin_bindings)

"""`m6rec export`."""

import argparse
from typing import Any

from m6rec_jax.commands.arguments import (
    add_command,
    existing_path,
    local_path,
    takes_gin,
    takes_run,
)
from m6rec_jax.commands.settings import look_first
from m6rec_jax.export.formats import FORMATS


def add_commands(commands: Any) -> None:
    export = add_command(commands, "export", run_export)
    takes_run(export)
    export.add_argument("--format", choices=FORMATS, default="stablehlo")
    export.add_argument(
        "--precision",
        choices=["float32", "float16", "int8"],
        help="of litert and web (default int8); float32 also for stablehlo and saved_model, whose "
        "products are otherwise those of the run",
    )
    export.add_argument("--output", type=local_path, required=True, metavar="DIR")
    export.add_argument(
        "--bank",
        type=existing_path,
        metavar="DIR",
        help="of prompts (default: the run's own tasks)",
    )
    export.add_argument(
        "--index",
        type=existing_path,
        metavar="DIR",
        help="of `m6rec index build`: saved_model, litert and web recommend its items",
    )
    export.add_argument(
        "--runtime",
        type=local_path,
        metavar="DIR",
        help="node_modules with LiteRT.js, for web (default: npm fetches it, once)",
    )
    export.add_argument(
        "--platforms",
        nargs="+",
        choices=["cpu", "cuda", "rocm", "tpu"],
        help="that run stablehlo and saved_model (default cpu cuda tpu)",
    )
    export.add_argument(
        "--split", default="test", help="part of the data that the export is checked on"
    )
    export.add_argument("--rows", type=int, default=500, help="of it, at most (default 500)")
    export.add_argument("--beams", type=int, help="of stablehlo's beam search (default 4)")
    takes_gin(export)


def run_export(args: argparse.Namespace) -> None:
    """write a model's programs for use without m6rec_jax, checked against the model"""
    look_first(args, reads=())
    from m6rec_jax.export.command import export
    from m6rec_jax.export.held_out import RANKED_BY

    results = export(
        args.folder,
        args.output,
        args.format,
        bank=args.bank,
        index=args.index,
        platforms=args.platforms,
        split=args.split,
        rows=args.rows,
        num_beams=args.beams,
        precision=args.precision,
        runtime=args.runtime,
        gin_files=args.gin_file,
        bindings=args.gin_bindings,
    )
    for name, result in results.items():
        equal = "" if result["equal"] == 1 else f", {result['equal']:.2%} of its answers are equal"
        print(
            f"{name}: {result['rows']} rows, largest difference "
            f"{result['largest_difference']:.2g} of the largest number{equal}"
        )
        if name.startswith("recommend "):
            print(f"{name} ranks by {RANKED_BY}")
    print(args.output)

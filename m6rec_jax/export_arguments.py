"""Arguments of `m6rec export`, and of `m6rec edge`, which measures exports."""

from typing import Any

from m6rec_jax import subcommands
from m6rec_jax.arguments import existing_path, local_path, takes_gin
from m6rec_jax.export.formats import FORMATS


def add_export(commands: Any) -> None:
    """Adds `export` to the sub-commands."""
    export = commands.add_parser(
        "export",
        help="write a model's programs for use without m6rec_jax, checked against the model",
    )
    export.add_argument("run_folder", type=existing_path, metavar="RUN", help="MODEL_DIR of a run")
    export.add_argument(
        "--format",
        choices=FORMATS,
        default="stablehlo",
    )
    export.add_argument(
        "--precision",
        choices=["float32", "float16", "int8"],
        default="int8",
        help="of litert and web (default int8)",
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
        help="of `m6rec index build`: saved_model, litert, onnx and web recommend its items",
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
        default=["cpu", "cuda", "tpu"],
        help="that run it (default cpu cuda tpu)",
    )
    export.add_argument(
        "--split", default="test", help="part of the data that the export is checked on"
    )
    export.add_argument("--rows", type=int, default=500, help="of it, at most (default 500)")
    export.add_argument("--beams", type=int, default=4, help="of beam search (default 4)")
    takes_gin(export)
    export.set_defaults(run=subcommands.run_export)


def add_edge(commands: Any) -> None:
    """Adds `edge` to the sub-commands."""
    edge = commands.add_parser("edge", help="models for phones: how large and fast they are")
    edge_commands = edge.add_subparsers(metavar="COMMAND", required=True)
    edge_bench = edge_commands.add_parser(
        "bench", help="size, start, latency by threads and memory"
    )
    edge_bench.add_argument(
        "path",
        type=local_path,
        metavar="PATH",
        help="folder of m6rec export --format litert, or file of m6rec compress pack",
    )
    edge_bench.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="default 1 2"
    )
    edge_bench.add_argument("--json", type=local_path, metavar="FILE", help="the same for programs")
    edge_bench.set_defaults(run=subcommands.run_edge_bench)

"""To begin with: `m6rec quickstart`, `demo` and `doctor`."""

import argparse
from pathlib import Path
from typing import Any

from m6rec_jax.commands.arguments import add_command, local_path
from m6rec_jax.commands.training import alone_in
from m6rec_jax.errors import ConfigError


def add_commands(commands: Any) -> None:
    quickstart = add_command(commands, "quickstart", run_quickstart)
    quickstart.add_argument(
        "folder", type=local_path, help="of users, items and events, with a dataset.json"
    )
    quickstart.add_argument(
        "--output", type=local_path, help="where everything goes (default runs/NAME)"
    )
    quickstart.add_argument(
        "--minutes",
        type=float,
        default=12.0,
        help="what it should take on this machine; more is better (default 12)",
    )
    quickstart.add_argument("--seed", type=int, default=0)

    demo = add_command(commands, "demo", run_demo)
    demo.add_argument("--output", type=local_path, help="of the report (default runs/demo)")
    demo.add_argument("--seed", type=int, help="of training (default 0)")
    demo.add_argument(
        "--edge",
        action="store_true",
        help="recommend by the small model that comes with this package, without network",
    )
    for name, meaning in (("liked", "films that you like"), ("disliked", "and that you do not")):
        demo.add_argument(
            f"--{name}",
            action="extend",
            nargs="+",
            metavar="TITLE",
            help=f"with --edge: {meaning}",
        )
    demo.add_argument("--count", type=int, metavar="K", help="with --edge: of films (default 10)")

    add_command(commands, "doctor", run_doctor)


def run_quickstart(args: argparse.Namespace) -> int:
    """a data set folder to a tuned scorer and retriever and a report about them; run the same
    command again to resume, or with more minutes to train on"""
    from m6rec_jax.data.dataset.schema import DatasetSpec

    DatasetSpec.load(args.folder)  # before libraries are imported, and anything is made
    from m6rec_jax import quickstart

    output = args.output or Path("runs") / args.folder.resolve().name
    output.mkdir(parents=True, exist_ok=True)
    with alone_in(str(output)):
        _, behind = quickstart.run_quickstart(
            args.folder, output, minutes=args.minutes, seed=args.seed
        )
    return int(bool(behind))


def run_demo(args: argparse.Namespace) -> None:
    """MovieLens-100k from nothing to an HTML report; --edge: films, at once"""
    of_edge, of_training = ("liked", "disliked", "count"), ("output", "seed")
    given = {name for name in (*of_edge, *of_training) if getattr(args, name) is not None}
    for name in given & set(of_training if args.edge else of_edge):
        raise ConfigError(
            f"--{name} is for `m6rec demo` {'without' if args.edge else 'with'} --edge"
        )
    if args.edge:
        from m6rec_jax.edge_demo import LIKED, MOST, run_edge_demo

        if args.count is not None and not 1 <= args.count <= MOST:
            raise ConfigError(f"--count {args.count}: from 1 to {MOST} films are recommended")
        run_edge_demo(args.liked or LIKED, args.disliked or (), args.count or 10)
    else:
        from m6rec_jax import demo

        output = args.output or Path("runs/demo")
        with alone_in(str(output)):
            demo.run_demo(output, seed=args.seed or 0)


def run_doctor(args: argparse.Namespace) -> None:
    """versions, devices and known version traps"""
    from m6rec_jax.doctor import report

    print(report())

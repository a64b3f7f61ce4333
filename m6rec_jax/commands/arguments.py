"""How a sub-command is added; arguments that several have, and types of arguments."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m6rec_jax.named_configs import QUESTIONS


def add_command(
    commands: Any, name: str, run: Callable[..., int | None], description: str | None = None
) -> argparse.ArgumentParser:
    """Adds a sub-command, without arguments yet; the docstring of what it runs is its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=run.__doc__, description=description
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def local_path(text: str) -> Path:
    """A path on a local disk; `Path` would make the folder gs:/bucket of an address.

    Raises:
      ArgumentTypeError: it is an address.
    """
    if "://" in text:
        raise argparse.ArgumentTypeError(
            f"{text} is the address of a bucket, and this is read and written on a local disk only"
        )
    return Path(text).expanduser()


def existing_path(text: str) -> Path:
    """A path on a local disk, of something that is there.

    Raises:
      ArgumentTypeError: it is an address, or nothing is there.
    """
    path = local_path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text}: nothing is there")
    return path


def path_or_address(text: str) -> str:
    """An address of a bucket as it is, or a path on a local disk."""
    return text if "://" in text else str(Path(text).expanduser())


def takes_run(parser: argparse.ArgumentParser) -> None:
    """Adds RUN, which is `folder` of the parsed arguments."""
    parser.add_argument("folder", type=existing_path, metavar="RUN", help="MODEL_DIR of a run")


def takes_gin(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Adds `--gin_file`; `--gin.NAME=VALUE` is then taken, too."""
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        required=required,
        metavar="FILE",
        help="a gin file; may be given several times, later ones win",
    )


def takes_names(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name gin files: see `look_at_named`."""
    takes_gin(parser)
    for option, question in QUESTIONS.items():
        parser.add_argument(f"--{option}", metavar="NAME", help=question)
    parser.epilog = "`m6rec configs` lists the names."


_WORKERS = (
    "what computes: this machine (default), or workers of Ray, on this machine or the cluster that "
    "RAY_ADDRESS names (pip install 'm6rec_jax[ray]')"
)


def takes_engine(parser: argparse.ArgumentParser, what: str = _WORKERS) -> None:
    """Adds `--engine`."""
    parser.add_argument("--engine", choices=("process", "ray"), default="process", help=what)

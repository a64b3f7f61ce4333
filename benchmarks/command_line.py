"""What the commands of this package have in common: gin bindings, and how an error ends them."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from typing import ParamSpec

from m6rec_jax.errors import DataError, M6RecError

_Arguments = ParamSpec("_Arguments")


def errors_told(main: Callable[_Arguments, int]) -> Callable[_Arguments, int]:
    """A `main` whose errors of this project are printed and become exit status 2."""

    @functools.wraps(main)
    def told(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except M6RecError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return told


def with_bindings(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the --gin.NAME=VALUE beside them.

    Raises:
      DataError: an argument is neither.
    """
    options, bindings = parser.parse_known_args(arguments)
    if unknown := [text for text in bindings if not text.startswith("--gin.")]:
        raise DataError(f"unrecognized argument: {unknown[0]}")
    return options, bindings

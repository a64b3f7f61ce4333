"""Errors whose message is meant for the person who runs the command.

The command line prints them without a traceback and exits with status 2 (3 for `UnreachableError`),
so every message names what was wrong, where it stands, and what to do about it.
"""

from collections.abc import Iterator


class M6RecError(Exception):
    """Base of all errors that a user can cause and fix."""


class DataError(M6RecError):
    """A table, row, file or data set is not what its schema promises."""


class ConfigError(M6RecError):
    """A gin file, macro or argument asks for something that does not exist or does not fit."""


class CheckpointError(M6RecError):
    """A checkpoint is missing, damaged, or belongs to another model or vocabulary."""


class UnreachableError(M6RecError):
    """Other processes of the run, their coordinator or a bucket do not answer (yet)."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__

"""The command line `m6rec`: how it starts, how it shows errors, exit statuses.

`commands` has the sub-commands. Settings live in gin files; flags only name files and folders.
"""

import argparse
import contextlib
import errno
import logging
import multiprocessing
import os
import re
import select
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn, TextIO

from m6rec_jax import __version__
from m6rec_jax.commands import (
    answering,
    compilation,
    compress,
    convert,
    data,
    export,
    prompts,
    starting,
    t5x,
    training,
)
from m6rec_jax.errors import ConfigError, M6RecError, UnreachableError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.quiet_start import keep_quiet

EXIT_USER_ERROR = 2
EXIT_LOST_PROCESS = 3
EXIT_NOBODY_READS = 141  # as of a program that SIGPIPE ends: `yes | head`
# In the order of `m6rec --help`.
_SUBJECTS = (
    data,
    training,
    export,
    answering,
    convert,
    prompts,
    compress,
    compilation,
    t5x,
    starting,
)

# The system's errors about paths and disks.
_OF_PATHS = FileExistsError | FileNotFoundError | IsADirectoryError | NotADirectoryError
_OF_DISKS = {errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status.

    1 is for a report that found something wrong (a run that does not fit or is worse than another
    or than a baseline, a damaged task in a bank, requests none of which could be answered) and for
    errors of the program, 2 for an error that the user can fix, 3 for other processes of the run,
    or a bucket, that do not answer: another start may help. 141 is for a reader of the output that
    has gone.
    """
    # A console script does not look for modules in the current directory, where a user's own tasks
    # are. It goes last, so that nothing there can shadow a library.
    sys.path.append(os.getcwd())
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    _set_up_logging()
    try:
        args.gin_bindings = _gin_bindings(rest, args.parser)
        if rest and not hasattr(args, "gin_file"):
            args.parser.error(f"m6rec {_command(args)} takes no gin settings: {' '.join(rest)}")
        status = args.run(args) or 0
        sys.stdout.flush()  # here, where an error is still told
        return status
    except (Exception, KeyboardInterrupt) as error:
        status = _failed(error)
        if argv is None:
            _leave(status)
        return status


def _leave(status: int) -> None:
    """Ends the process of a command that failed, while what its error holds is still there.

    To destroy it may take forever: a tf.data pipeline waits for threads, which wait for Python.
    """
    for child in multiprocessing.active_children():  # input processes, which `exit` would end
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody may be listening any more
            stream.flush()
    os._exit(status)


def _failed(error: Exception | KeyboardInterrupt) -> int:
    """Prints what went wrong; returns the exit status. One of several processes ends here, at once.

    What a user cannot fix has a traceback, and status 1.
    """
    processes = sys.modules.get("m6rec_jax.sharding.processes")
    joined = processes if processes is not None and processes.are_joined() else None
    is_unreachable = isinstance(error, UnreachableError)
    status, text = 1, ""
    try:
        if isinstance(error, KeyboardInterrupt):
            signals = training.EXIT_OF_SIGNALS
            status, text = signals.get(str(error), signals["SIGINT"]), "stopped"
        elif joined and not is_unreachable and joined.speaks_of_a_lost_process(error):
            status = EXIT_LOST_PROCESS
            text = (
                "another process of this run has gone, so this one ends, too. Its own log "
                "says why, unless it was killed. The same command in all processes resumes from "
                f"the newest checkpoint. Seen here: {type(error).__name__}: {error}"
            )
        elif _is_fixable(error):
            status = EXIT_LOST_PROCESS if is_unreachable else EXIT_USER_ERROR
            text = _message(error)
        elif isinstance(error, BrokenPipeError) and _nobody_reads():
            status = EXIT_NOBODY_READS
        else:
            traceback.print_exception(error)
        if text:
            print(f"m6rec: {text}", file=sys.stderr)
    finally:
        if joined is not None:
            joined.leave_at_once(status)
    return status


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that nobody reads any more: `head` has seen enough."""
    poll = select.poll()
    with contextlib.suppress(OSError, TypeError, ValueError):  # it is no file, or closed
        poll.register(sys.stdout, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _is_fixable(error: BaseException) -> bool:
    # What passes through gin is a copy, without an OSError's number.
    inner = error.__context__
    while error.__suppress_context__ and inner is not None and isinstance(error, type(inner)):
        error, inner = inner, inner.__context__
    duckdb = sys.modules.get("duckdb")
    # What a database says of a full disk or too little memory names both.
    if duckdb and isinstance(error, duckdb.IOException | duckdb.OutOfMemoryException):
        return True
    of_disks = isinstance(error, OSError) and error.errno in _OF_DISKS
    return of_disks or isinstance(error, M6RecError | PermissionError | _OF_PATHS)


def _message(error: BaseException) -> str:
    """An error's message without gin's addition: the configurable that it was about."""
    return re.sub(r"\n  In call to configurable .*", "", str(error))


class _AboveBars(logging.StreamHandler[TextIO]):
    """Writes to standard error, above the progress bars that are there."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")  # whoever shows bars has imported it
        if bars is None:
            super().emit(record)
        else:
            bars.tqdm.write(self.format(record), file=sys.stderr)


def _set_up_logging() -> None:
    """Shows this package's messages, and of other libraries' only what a user can act on."""
    keep_quiet()
    handler = _AboveBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("m6rec_jax")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _command(args: argparse.Namespace) -> str:
    return " ".join(filter(None, (args.command, getattr(args, "action", None))))


def _gin_bindings(rest: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """`--gin.NAME=VALUE` (t5x's way) to gin's own `NAME = VALUE`; anything else is refused."""
    bindings = []
    for argument in rest:
        if not argument.startswith("--gin."):
            options = re.findall(r"--[\w-]+", parser.format_help())
            near = did_you_mean(argument.partition("=")[0], options)
            quotes = " (a value with spaces stands in quotes: '--gin.MODEL_DIR=runs/my run')"
            parser.error(f"unrecognized argument: {argument}{near or quotes}")
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals:
            raise ConfigError(
                f"{argument}: write --gin.NAME=VALUE, for instance --gin.BATCH_SIZE=8"
            )
        bindings.append(f"{name} = {value}")
    return bindings


class _Parser(argparse.ArgumentParser):
    """Names the nearest choice to a misspelt one; its sub-commands' parsers do, too."""

    def error(self, message: str) -> NoReturn:
        found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        near = did_you_mean(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
        super().error(message + near)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="m6rec",
        description="One language model for every job of a recommender (M6-Rec in JAX).",
        epilog="Settings live in gin files: add --gin_file FILE and --gin.NAME=VALUE to the "
        "commands that take them.",
    )
    parser.add_argument("--version", action="version", version=f"m6rec_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for subject in _SUBJECTS:
        subject.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

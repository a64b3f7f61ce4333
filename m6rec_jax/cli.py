"""The command line `m6rec`: its arguments, how it shows errors, exit statuses.

`subcommands` has what a sub-command runs. Settings live in gin files; the flags here only name
files and folders.
"""

import argparse
import contextlib
import errno
import logging
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from m6rec_jax import __version__, subcommands
from m6rec_jax.arguments import (
    existing_path,
    local_path,
    path_or_address,
    takes_engine,
    takes_gin,
)
from m6rec_jax.compress_arguments import add_compress
from m6rec_jax.data_arguments import add_data
from m6rec_jax.errors import ConfigError, M6RecError, UnreachableError
from m6rec_jax.export_arguments import add_edge, add_export
from m6rec_jax.huge_pages import start_with_huge_pages
from m6rec_jax.quiet_start import keep_quiet

EXIT_USER_ERROR = 2
EXIT_LOST_PROCESS = 3
# Commands that compute in large batches.
_COMPUTING = ("train", "eval", "infer", "calibrate", "index", "compress", "quickstart", "demo")

# The system's errors about paths and disks.
_FIXABLE = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status.

    1 is for a report that found something wrong (a run that does not fit or is worse than another,
    a damaged task in a bank) and for errors of the program, 2 for an error that the user can fix, 3
    for other processes of the run, or a bucket, that do not answer: another start may help.
    """
    # A console script does not look for modules in the current directory, where a user's own tasks
    # are. It goes last, so that nothing there can shadow a library.
    sys.path.append(os.getcwd())
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # A script that calls this would begin anew, too.
    is_started = argv is None and Path(sys.argv[0]).stem in ("m6rec", "cli")
    if is_started and args.command in _COMPUTING:
        start_with_huge_pages()
    _set_up_logging()
    try:
        args.gin_bindings = _gin_bindings(rest, parser)
        if rest and not hasattr(args, "gin_file"):
            parser.error(f"m6rec {_command(args)} takes no gin settings: {' '.join(rest)}")
        return args.run(args) or 0
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
    if processes is None or not processes.are_joined():
        if isinstance(error, KeyboardInterrupt):
            print("m6rec: stopped", file=sys.stderr)
            return subcommands.EXIT_OF_SIGNALS["SIGINT"]
        if not _is_fixable(error):
            traceback.print_exception(error)
            return 1
        print(f"m6rec: {_message(error)}", file=sys.stderr)
        return _status(error)
    status = 1
    try:
        if not isinstance(error, UnreachableError) and processes.speaks_of_a_lost_process(error):
            status = EXIT_LOST_PROCESS
            print(
                "m6rec: another process of this run has gone, so this one ends, too. Its own log "
                "says why, unless it was killed. The same command in all processes resumes from "
                f"the newest checkpoint. Seen here: {type(error).__name__}: {error}",
                file=sys.stderr,
            )
        elif _is_fixable(error):
            status = _status(error)
            print(f"m6rec: {_message(error)}", file=sys.stderr)
        else:
            traceback.print_exception(error)
    finally:
        processes.leave_at_once(status)
    return status


def _is_fixable(error: BaseException) -> bool:
    return isinstance(error, M6RecError) or (isinstance(error, OSError) and error.errno in _FIXABLE)


def _status(error: BaseException) -> int:
    return EXIT_LOST_PROCESS if isinstance(error, UnreachableError) else EXIT_USER_ERROR


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
            parser.error(
                f"unrecognized argument: {argument} (a value with spaces stands in quotes: "
                "'--gin.MODEL_DIR=runs/my run')"
            )
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals:
            raise ConfigError(
                f"{argument}: write --gin.NAME=VALUE, for instance --gin.BATCH_SIZE=8"
            )
        bindings.append(f"{name} = {value}")
    return bindings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m6rec",
        description="One language model for every job of a recommender (M6-Rec in JAX).",
        epilog="Settings live in gin files: add --gin_file FILE and --gin.NAME=VALUE to the "
        "commands that take them.",
    )
    parser.add_argument("--version", action="version", version=f"m6rec_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add_data(commands)
    for name, run, text in (
        (
            "train",
            subcommands.run_train,
            "train or tune a model; run the same command again to resume",
        ),
        ("eval", subcommands.run_eval, "evaluate a checkpoint on its task"),
    ):
        command = commands.add_parser(name, help=text)
        if name == "eval":
            command.add_argument(
                "--against",
                type=path_or_address,
                metavar="RUN",
                help="compare with this run on the same examples, and say whether it was better by "
                "more than chance; the exit status is then 1",
            )
        takes_gin(command, required=name == "train")
        command.set_defaults(run=run)

    params = commands.add_parser("params", help="print what a model has and what of it trains")
    params.add_argument(
        "folder",
        nargs="?",
        type=local_path,
        metavar="RUN",
        help="of a trained model: also how many parameters are not zero (default: of gin files)",
    )
    takes_gin(params)
    params.set_defaults(run=subcommands.run_params)

    calibrate = commands.add_parser(
        "calibrate",
        help="on validation rows, learn how to order what a run retrieves, and choose where a run "
        "trained with losses at every exit leaves its decoder early; write both beside the model",
    )
    calibrate.add_argument(
        "--max_loss",
        type=float,
        metavar="SHARE",
        help="of the whole model's quality that may be lost on validation rows (default 0.01)",
    )
    takes_gin(calibrate)
    calibrate.set_defaults(run=subcommands.run_calibrate)

    report = commands.add_parser(
        "report", help="one page about a run: metrics beside baselines, curves, examples"
    )
    report.add_argument("folder", type=existing_path, metavar="RUN", help="MODEL_DIR of a run")
    report.add_argument(
        "--output", type=local_path, metavar="FILE", help="the page (default RUN/report.html)"
    )
    report.add_argument(
        "--split", default="test", help="part of the data that is evaluated (default test)"
    )
    report.add_argument(
        "--rows",
        type=int,
        default=0,
        help="evaluate so many rows of each task, drawn at random (default: all)",
    )
    takes_gin(report)
    report.set_defaults(run=subcommands.run_report)

    add_export(commands)
    add_edge(commands)

    infer = commands.add_parser(
        "infer",
        help="write a checkpoint's predictions to a file: for a task, or for a file of requests",
    )
    infer.add_argument(
        "--requests",
        type=path_or_address,
        metavar="FILE",
        help="answer these requests, .jsonl or .parquet: a file, a folder or a quoted pattern "
        "(default: the task that gin names); run the same command again to resume",
    )
    infer.add_argument(
        "--shard",
        metavar="INDEX/COUNT",
        help="answer this part of the requests only (from 0/COUNT on), beside other commands",
    )
    takes_engine(infer)
    # Of a task it may be in a bucket.
    infer.add_argument("--output", type=path_or_address, metavar="FILE", help="where results go")
    infer.add_argument(
        "--index", type=existing_path, metavar="FOLDER", help="of the catalogue, to retrieve"
    )
    takes_gin(infer)
    infer.set_defaults(run=subcommands.run_infer)

    chat = commands.add_parser(
        "chat", help="talk with a model that was trained on dialogues, in this terminal"
    )
    chat.add_argument(
        "--user",
        type=existing_path,
        metavar="FILE",
        help="what is known of the user: a request in JSON, as for m6rec infer",
    )
    takes_gin(chat)
    chat.set_defaults(run=subcommands.run_chat)

    _add_serve(commands)

    index = commands.add_parser("index", help="compute what serving needs of a catalogue")
    actions = index.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build", help="embed it for retrieval; run the same command again to resume"
    )
    segments = actions.add_parser(
        "segments",
        help="run its items through the early layers of a model with late interaction; run the "
        "same command again to resume",
    )
    for action, run in (
        (build, subcommands.run_index_build),
        (segments, subcommands.run_index_segments),
    ):
        action.add_argument(
            "--output",
            type=path_or_address,
            required=True,
            metavar="FOLDER",
            help="on a local disk",
        )
        takes_gin(action)
        action.set_defaults(run=run)
    takes_engine(build)

    convert = commands.add_parser(
        "convert", help="take weights from T5, mT5, UMT5 or t5x checkpoints, or give them back"
    )
    where = (
        "FORMAT:FOLDER, FORMAT one of m6rec (or none), huggingface, t5x, scalable_t5, t5x_bridge"
    )
    convert.add_argument("--from", dest="source", required=True, help=where)
    convert.add_argument("--to", dest="target", required=True, help="likewise; a new folder")
    convert.add_argument(
        "--vocabulary", type=local_path, help="SentencePiece file (default: the one in the source)"
    )
    convert.add_argument(
        "--model-type",
        choices=("t5", "mt5", "umt5"),
        help="what a Hugging Face target is (default: what the source was there, else t5 or umt5)",
    )
    convert.add_argument("--dry-run", action="store_true", help="only print the mapping")
    convert.set_defaults(run=subcommands.run_convert)

    _add_prompts(commands)
    add_compress(commands)
    _add_compile(commands)

    quickstart = commands.add_parser(
        "quickstart",
        help="a data set folder to a tuned scorer and retriever and a report about them; run the "
        "same command again to resume",
    )
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
    quickstart.set_defaults(run=subcommands.run_quickstart)

    demo = commands.add_parser(
        "demo",
        help="MovieLens-100k from nothing to an HTML report; --edge: films, at once",
    )
    demo.add_argument("--output", type=local_path, help="of the report (default runs/demo)")
    demo.add_argument("--seed", type=int, help="of training (default 0)")
    demo.add_argument(
        "--edge",
        action="store_true",
        help="recommend by the small model that comes with this package, without network",
    )
    for name, meaning in (("liked", "films that you like"), ("disliked", "and that you do not")):
        demo.add_argument(f"--{name}", nargs="+", metavar="TITLE", help=f"with --edge: {meaning}")
    demo.add_argument("--count", type=int, metavar="K", help="with --edge: of films (default 10)")
    demo.set_defaults(run=subcommands.run_demo)

    doctor = commands.add_parser("doctor", help="versions, devices and known version traps")
    doctor.set_defaults(run=subcommands.run_doctor)
    return parser


def _add_serve(commands: Any) -> None:
    command = commands.add_parser(
        "serve",
        help="answer over HTTP: score, retrieve, recommend, write, and what other clients speak",
        description="Serves a run, or the tasks of a bank on a run's backbone, until SIGTERM "
        "(pip install 'm6rec_jax[serve]'). Tokens may also stand in the environment, in "
        "M6REC_READ_TOKEN and M6REC_ADMIN_TOKEN.",
    )
    command.add_argument("folder", type=existing_path, metavar="RUN", help="MODEL_DIR of a run")
    command.add_argument(
        "--bank", type=existing_path, metavar="DIR", help="a bank, whose tasks are served"
    )
    command.add_argument(
        "--index",
        action="append",
        metavar="DIR",
        help="of the catalogue, to retrieve; TASK=DIR where several tasks do, given several times",
    )
    command.add_argument(
        "--engine",
        choices=("process", "ray"),
        default="process",
        help="what answers: this process (default), or replicas of Ray Serve "
        "(pip install 'm6rec_jax[serve,ray]')",
    )
    # Vertex AI names the port, and reaches the container from outside.
    port = os.environ.get("AIP_HTTP_PORT")
    command.add_argument(
        "--host",
        default="127.0.0.1" if port is None else "0.0.0.0",
        help="address to listen at (default 127.0.0.1: this machine alone)",
    )
    command.add_argument(
        "--port", type=int, default=int(port or 8080), help="0 takes a free one (default 8080)"
    )
    command.add_argument(
        "--read-token-file",
        type=local_path,
        metavar="FILE",
        help="holds the token that requests bring (default: none is needed)",
    )
    command.add_argument(
        "--admin-token-file",
        type=local_path,
        metavar="FILE",
        help="holds the token for changing what is served (default: nothing can be changed)",
    )
    takes_gin(command)
    command.set_defaults(run=subcommands.run_serve)


def _add_compile(commands: Any) -> None:
    command = commands.add_parser(
        "compile",
        help="what a run would take on TPUs that need not be there: memory, time, communication",
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
        "--model, where they say nothing: fully_sharded, with several slices multi_slice)",
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
    command.set_defaults(run=subcommands.run_compile)


def _add_prompts(commands: Any) -> None:
    prompts = commands.add_parser("prompts", help="a bank of tasks' prompts on one backbone")
    actions = prompts.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the tasks of a bank")
    listing.set_defaults(run=subcommands.run_prompts_list)
    add = actions.add_parser("add", help="take prompts of a run, or of another bank, into a bank")
    add.set_defaults(run=subcommands.run_prompts_add)
    remove = actions.add_parser("remove", help="delete a task's prompts")
    remove.set_defaults(run=subcommands.run_prompts_remove)
    inspect = actions.add_parser("inspect", help="what a task's prompts are, and whether intact")
    inspect.set_defaults(run=subcommands.run_prompts_inspect)
    for action in (listing, add, remove, inspect):
        # No Path: the bank itself says what is wrong with an address.
        action.add_argument("bank", metavar="BANK", help="folder of the bank, on a local disk")
    for action in (remove, inspect):
        action.add_argument("name", metavar="TASK", help="name of the task in the bank")
    for action in (listing, inspect):
        action.add_argument("--json", action="store_true", help="print manifests as JSON")
    add.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="FOLDER",
        help="MODEL_DIR of a run, or a task's folder in another bank",
    )
    add.add_argument(
        "--task",
        action="append",
        default=[],
        help="seqio task of the run; may be given several times (default: all)",
    )
    add.add_argument("--name", help="name in the bank, where one task is added (default: its own)")
    add.add_argument("--step", type=int, help="checkpoint of the run (default: the newest)")


if __name__ == "__main__":
    sys.exit(main())

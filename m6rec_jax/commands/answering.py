"""Answers of a trained model: `m6rec infer`, `chat`, `serve` and `index`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m6rec_jax.commands.arguments import (
    add_command,
    existing_path,
    path_or_address,
    takes_engine,
    takes_gin,
    takes_run,
)
from m6rec_jax.commands.settings import (
    check_there,
    configure,
    configure_together,
    look_at_run,
    look_first,
)
from m6rec_jax.errors import ConfigError


def add_commands(commands: Any) -> None:
    infer = add_command(commands, "infer", run_infer)
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

    chat = add_command(commands, "chat", run_chat)
    chat.add_argument(
        "--user",
        type=existing_path,
        metavar="FILE",
        help="JSON: user, history, time and statistics of a request, as far as they are known",
    )
    takes_gin(chat)

    _add_serve(commands)

    index = commands.add_parser("index", help="compute what serving needs of a catalogue")
    actions = index.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = add_command(actions, "build", run_index_build)
    segments = add_command(actions, "segments", run_index_segments)
    for action in (build, segments):
        action.add_argument(
            "--output",
            type=path_or_address,
            required=True,
            metavar="FOLDER",
            help="on a local disk",
        )
        takes_gin(action)


def _add_serve(commands: Any) -> None:
    command = add_command(
        commands,
        "serve",
        run_serve,
        description="Serves a run, or the tasks of a bank on a run's backbone, until SIGTERM "
        "(pip install 'm6rec_jax[serve]'). Tokens may also stand in the environment, in "
        "M6REC_READ_TOKEN and M6REC_ADMIN_TOKEN.",
    )
    takes_run(command)
    command.add_argument(
        "--bank", type=existing_path, metavar="DIR", help="a bank, whose tasks are served"
    )
    command.add_argument(
        "--index",
        action="append",
        metavar="DIR",
        help="of the catalogue, to retrieve; TASK=DIR where several tasks do, given several times",
    )
    takes_engine(
        command,
        "what answers: this process (default), or replicas of Ray Serve "
        "(pip install 'm6rec_jax[serve,ray]')",
    )
    # Vertex AI names the port, and reaches the container from outside.
    port = os.environ.get("AIP_HTTP_PORT")
    command.add_argument(
        "--host",
        default="0.0.0.0" if port else "127.0.0.1",
        help="address to listen at (default 127.0.0.1: this machine alone)",
    )
    command.add_argument(
        "--port", type=int, default=port or "8080", help="0 takes a free one (default 8080)"
    )
    command.add_argument(
        "--read-token-file",
        type=existing_path,
        metavar="FILE",
        help="holds the token that requests bring (default: none is needed)",
    )
    command.add_argument(
        "--admin-token-file",
        type=existing_path,
        metavar="FILE",
        help="holds the token for changing what is served (default: nothing can be changed)",
    )
    takes_gin(command)


def run_infer(args: argparse.Namespace) -> int | None:
    """write a checkpoint's predictions to a file: for a task, or for a file of requests"""
    if args.requests is not None:
        return _infer_requests(args)
    if args.index or args.shard or args.engine != "process":
        raise ConfigError("m6rec infer: --index, --shard and --engine go with --requests FILE")
    look_at_run(args)
    from m6rec_jax.evaluation.checkpoint_evaluation import infer
    from m6rec_jax.sharding.processes import print_once

    configure_together(args)
    paths = infer() if args.output is None else infer(output=args.output)
    print_once("\n".join(map(str, paths)))
    return None


def _infer_requests(args: argparse.Namespace) -> int:
    """Returns 1 where not one request was answered, and some were there."""
    if args.output is None:
        raise ConfigError("m6rec infer --requests FILE needs --output FILE, too")
    look_first(args, "gin_configs/commands/infer.gin")
    if not any(sign in args.requests for sign in "*?["):
        check_there(args.requests, f"--requests {args.requests}")
    from m6rec_jax.requests.files import Shard
    from m6rec_jax.serving.batch_inference import infer_requests

    shard = None if args.shard is None else Shard.parse(args.shard)
    # Resources and workers know nothing of each other.
    alone = shard is not None or args.engine == "ray"
    (configure if alone else configure_together)(args)
    index = {} if args.index is None else {"index": str(args.index)}
    reports = infer_requests(args.requests, args.output, shard=shard, engine=args.engine, **index)
    print("\n".join(map(str, reports)))
    return int(
        any(report.numbers("rejected") for report in reports)
        and not any(report.totals["answered"] for report in reports)
    )


def run_chat(args: argparse.Namespace) -> None:
    """talk with a model that was trained on dialogues, in this terminal"""
    look_first(args, "gin_configs/commands/chat.gin")
    from m6rec_jax.serving.chat import chat

    configure(args)
    chat(user=args.user)


def run_serve(args: argparse.Namespace) -> None:
    """answer over HTTP: score, retrieve, recommend, write, and what other clients speak"""
    look_first(args, "gin_configs/commands/serve.gin")
    index = _indexes(args.index or ())
    for folder in [index] if isinstance(index, str) else (index or {}).values():
        check_there(folder, f"--index {folder}")
    try:
        from m6rec_jax.server.access import Tokens
        from m6rec_jax.server.launch import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"m6rec serve needs the package {error.name}: pip install 'm6rec_jax[serve]'"
        ) from error

    configure(args)
    serve(
        args.folder,
        bank=args.bank,
        index=index,
        host=args.host,
        port=args.port,
        tokens=Tokens.find(args.read_token_file, args.admin_token_file),
        engine=args.engine,
    )


def _indexes(given: Sequence[str]) -> str | dict[str, str] | None:
    """One folder, or one for each task: DIR or TASK=DIR."""
    if not given:
        return None
    # The name of a folder may hold the sign, too.
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).expanduser().exists()):
        return str(Path(given[0]).expanduser())
    found: dict[str, str] = {}
    for one in given:
        task, equals, folder = one.partition("=")
        if not equals or task in found:
            raise ConfigError(f"--index {one}: of several indexes each is --index TASK=DIR")
        found[task] = str(Path(folder).expanduser())
    return found


def run_index_build(args: argparse.Namespace) -> None:
    """embed it for retrieval"""
    look_first(args, "gin_configs/commands/index.gin")
    from m6rec_jax.serving.build_index import build_index

    configure_together(args)
    manifest = build_index(args.output)
    print(f"{args.output}: {manifest.count:,} items, {manifest.shape[1]} numbers each")


def run_index_segments(args: argparse.Namespace) -> None:
    """run its items through the early layers of a model with late interaction"""
    look_first(args, "gin_configs/commands/index.gin")
    from m6rec_jax.serving.build_segments import build_segments

    configure(args)
    manifest = build_segments(args.output)
    print(
        f"{args.output}: {manifest.count:,} candidates, {manifest.shape[0]:,} tokens of "
        f"{manifest.shape[1]} numbers each, {manifest.dtype}"
    )

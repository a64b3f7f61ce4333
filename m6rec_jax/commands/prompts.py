"""`m6rec prompts`."""

import argparse
from typing import Any

from m6rec_jax.commands.arguments import add_command
from m6rec_jax.commands.settings import check_there
from m6rec_jax.errors import CheckpointError


def add_commands(commands: Any) -> None:
    prompts = commands.add_parser("prompts", help="a bank of tasks' prompts on one backbone")
    actions = prompts.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_command(actions, "list", run_prompts_list)
    add = add_command(actions, "add", run_prompts_add)
    remove = add_command(actions, "remove", run_prompts_remove)
    inspect = add_command(actions, "inspect", run_prompts_inspect)
    for action in (listing, add, remove, inspect):
        # No Path: the bank itself says what is wrong with an address.
        action.add_argument("bank", metavar="BANK", help="folder of the bank, on a local disk")
    for action in (remove, inspect):
        action.add_argument("name", metavar="TASK", help="name of the task in the bank")
    listing.add_argument("--json", action="store_true", help="print manifests as JSON")
    add.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="FOLDER",
        help="MODEL_DIR of a run, or a task's file in another bank",
    )
    add.add_argument(
        "--task",
        action="append",
        default=[],
        help="seqio task of the run; may be given several times (default: all)",
    )
    add.add_argument("--name", help="name in the bank, where one task is added (default: its own)")
    add.add_argument("--step", type=int, help="checkpoint of the run (default: the newest)")


def run_prompts_list(args: argparse.Namespace) -> int:
    """the tasks of a bank"""
    from m6rec_jax.bank.folder import BankFolder
    from m6rec_jax.bank.report import manifests_json, tasks_table

    manifests = BankFolder(args.bank).manifests()
    print(manifests_json(manifests) if args.json else tasks_table(manifests))
    damaged = any(isinstance(manifest, CheckpointError) for manifest in manifests.values())
    return 1 if damaged else 0


def run_prompts_add(args: argparse.Namespace) -> None:
    """take prompts of a run, or of another bank, into a bank"""
    check_there(args.source, f"--from {args.source}")
    from m6rec_jax.bank.export import add_prompts

    for folder in add_prompts(
        args.bank, args.source, tasks=args.task, name=args.name, step=args.step
    ):
        print(folder)


def run_prompts_remove(args: argparse.Namespace) -> None:
    """delete a task's prompts"""
    from m6rec_jax.bank.folder import BankFolder

    BankFolder(args.bank).remove(args.name)


def run_prompts_inspect(args: argparse.Namespace) -> None:
    """a task's manifest as JSON, once its prompts are proved intact"""
    from m6rec_jax.bank.folder import BankFolder
    from m6rec_jax.bank.report import manifests_json

    print(manifests_json({args.name: BankFolder(args.bank).read(args.name).manifest}))

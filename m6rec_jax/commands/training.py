"""Runs, from training to a report: `m6rec train`, `eval`, `params`, `calibrate` and `report`."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from m6rec_jax.commands.arguments import (
    add_command,
    existing_path,
    local_path,
    path_or_address,
    takes_gin,
    takes_names,
    takes_run,
)
from m6rec_jax.commands.settings import (
    check_there,
    configure,
    configure_together,
    look_at_named,
    look_at_own,
    look_at_run,
)
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.atomic import check_output
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.json_text import json_text
from m6rec_jax.named_configs import listing

EXIT_OF_SIGNALS = {"SIGINT": 130, "SIGTERM": 143}


def add_commands(commands: Any) -> None:
    train = add_command(commands, "train", run_train)
    takes_names(train)
    add_command(commands, "configs", run_configs)

    evaluate = add_command(commands, "eval", run_eval)
    evaluate.add_argument(
        "--against",
        type=path_or_address,
        metavar="RUN",
        help="compare with this run on the same examples, and say whether it was better by more "
        "than chance; the exit status is then 1",
    )
    takes_gin(evaluate)

    params = add_command(commands, "params", run_params)
    params.add_argument(
        "folder",
        nargs="?",
        type=existing_path,
        metavar="RUN",
        help="of a trained model: also how many parameters are not zero (default: of gin files)",
    )
    takes_names(params)

    calibrate = add_command(commands, "calibrate", run_calibrate)
    calibrate.add_argument(
        "--max_loss",
        type=float,
        metavar="SHARE",
        help="of the whole model's quality that may be lost on validation rows (default 0.01)",
    )
    takes_gin(calibrate)

    report = add_command(commands, "report", run_report)
    takes_run(report)
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
        help="evaluate so many rows of each task (default: all)",
    )
    takes_gin(report)


def run_train(args: argparse.Namespace) -> int:
    """train or tune a model; run the same command again to resume"""
    if look_at_named(args).parameter("train.model", None) is None:
        raise ConfigError(
            "nothing says what is trained: name it with --recipe (`m6rec configs` lists recipes), "
            "or include a file of gin_configs/recipes"
        )
    from m6rec_jax.configuration import macro, settle_measured
    from m6rec_jax.pipeline.run_vocabulary import own_vocabulary
    from m6rec_jax.training.loop import train

    configure_together(args, heed_preemption=True)
    with own_vocabulary(macro("MODEL_DIR", "")):
        settle_measured()
    with alone_in(macro("MODEL_DIR", "")):
        result = train()
    # Scripts must not take a run that a signal stopped for finished.
    return EXIT_OF_SIGNALS.get(result.stopped_by, 0)


def run_configs(args: argparse.Namespace) -> None:
    """list the gin files that `m6rec train` finds by name"""
    del args
    print("\n".join(listing()))


def alone_in(model_dir: str) -> contextlib.AbstractContextManager[None]:
    """Keeps a second run out of a folder: it would remove unfinished checkpoints.

    A bucket has no locks; there `tpu_scripts` start one run per host.
    """
    import jax

    from m6rec_jax.io.locks import locked_folder

    if not model_dir or in_bucket(model_dir) or jax.process_index() != 0:
        return contextlib.nullcontext()
    return locked_folder(Path(model_dir), f"training in {model_dir}")


def run_eval(args: argparse.Namespace) -> int:
    """evaluate a checkpoint on its task"""
    if args.against is not None:
        check_there(args.against, f"--against {args.against}")
    look_at_run(args)
    from m6rec_jax.evaluation.checkpoint_evaluation import evaluate
    from m6rec_jax.metrics.paired import PairedDifference
    from m6rec_jax.sharding.processes import print_once

    configure_together(args)
    metrics = evaluate() if args.against is None else evaluate(against=args.against)
    print_once(json_text(metrics, indent=2))
    gains = [name for name in metrics if name.split("/")[-1] == "gain"]
    lost = any(PairedDifference(metrics[n], metrics[f"{n}_error"]).is_loss for n in gains)
    return 1 if lost else 0


def run_params(args: argparse.Namespace) -> None:
    """print what a model has and what of it trains"""
    if args.folder is None:
        look_at_named(args)
        if not args.gin_file:
            raise ConfigError("m6rec params takes --model NAME, --gin_file FILE or RUN")
    elif args.gin_file or args.gin_bindings:
        raise ConfigError(
            f"m6rec params {args.folder} counts what this run has, whatever gin says: leave "
            "--gin_file and --gin.NAME=VALUE out"
        )
    from m6rec_jax.checkpoints.checkpoint import open_checkpoint
    from m6rec_jax.checkpoints.trees import flatten
    from m6rec_jax.configuration import bound, macro
    from m6rec_jax.engine.model_folder import load_model
    from m6rec_jax.training.parameter_table import count_parameters

    if args.folder is not None:
        found = load_model(args.folder)
        if args.folder.is_dir():
            manifest = open_checkpoint(args.folder).manifest
            trains = manifest.trainable or "all"
            stored = {
                f"{item}/{name}": spec.num_bytes
                for item, tensors in manifest.tensors.items()
                for name, spec in tensors.items()
            }
        else:  # a packed file, whose weights stay bytes
            trains = "all"
            stored = {name: leaf.nbytes for name, leaf in flatten(dict(found.variables)).items()}
        table = count_parameters(found.model.config, trains, values=found.variables, stored=stored)
    else:
        configure(args)
        config = macro("MODEL").config
        table = count_parameters(config, macro("TRAINABLE", "all"), bound("Step.frozen_dtype"))
    print(table.render())


def run_calibrate(args: argparse.Namespace) -> None:
    """on validation rows, learn how to order what a run retrieves and what makes probabilities of
    zero-shot scores, and choose where a run trained with losses at every exit leaves its decoder
    early; write it beside the model"""
    look_at_run(args, "gin_configs/commands/calibrate.gin")
    from m6rec_jax.evaluation.calibration import calibrate, report
    from m6rec_jax.sharding.processes import print_once

    configure_together(args)
    loss = {} if args.max_loss is None else {"max_loss": args.max_loss}
    print_once(report(calibrate(**loss)))


def run_report(args: argparse.Namespace) -> None:
    """one page about a run: metrics beside baselines, curves, examples"""
    look_at_own(args)
    from m6rec_jax.pipeline.run_vocabulary import own_vocabulary
    from m6rec_jax.run_report import report_on_run

    if args.output is not None:
        check_output(args.output)
    with own_vocabulary(args.folder):
        page = report_on_run(
            args.folder,
            args.output,
            gin_files=args.gin_file,
            bindings=args.gin_bindings,
            split=args.split,
            rows=args.rows,
        )
    print(page)

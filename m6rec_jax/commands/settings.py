"""Gin settings of a command: looked at before libraries are imported, then set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import in_bucket, kept_copy, path_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.named_configs import QUESTIONS, check_recipe, files_of

if TYPE_CHECKING:
    from m6rec_jax.configuration import ParsedConfig

# Macros that name what a command reads.
_READ = ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "BANK", "PREPARED", "ITEMS", "INDEX")


def look_first(
    args: argparse.Namespace, *defaults: str, reads: Sequence[str] = _READ
) -> ParsedConfig:
    """Says what is wrong with the settings before libraries are imported, which takes long.

    Args:
      args: of a command that takes gin.
      defaults: gin files that are read before the user's.
      reads: macros that name files or folders, which must be there.
    """
    from m6rec_jax import configuration

    args.gin_file = [*defaults, *args.gin_file]
    parsed = configuration.check_config(args.gin_file, args.gin_bindings)
    for name in reads:
        value = parsed.macros.get(name)
        if isinstance(value, str) and value:
            check_there(value, f"{parsed.places[name]}: {name} = {value!r}")
    return parsed


def look_at_named(args: argparse.Namespace) -> ParsedConfig:
    """`look_first` for a command that takes names, whose files come before those of `--gin_file`.

    Raises:
      ConfigError: no file has such a name, or an option is missing.
    """
    files, bindings = files_of({option: getattr(args, option) for option in QUESTIONS})
    args.gin_bindings = [*bindings, *args.gin_bindings]
    check_recipe([*files, *args.gin_file])
    return look_first(args, *files, reads=())


def look_at_run(args: argparse.Namespace, default: str = "gin_configs/commands/eval.gin") -> None:
    """`look_first` for a task on a run: where no gin file names one, that which it was trained on.

    Args:
      args: of a command that takes gin.
      default: what is then read before the run's own configuration and the files that are given.
    """
    from m6rec_jax.config_file import CONFIG_FILE, EVALUATED_ROWS
    from m6rec_jax.configuration import check_config, read_config

    if "MIXTURE_OR_TASK_NAME" in read_config(args.gin_file).macros:
        # Right behind the first of training, whose validations may read some rows alone.
        of_training = ("TRAIN_STEPS" in read_config([file]).macros for file in args.gin_file)
        if first := next((n for n, is_it in enumerate(of_training, 1) if is_it), 0):
            args.gin_file.insert(first, EVALUATED_ROWS)
        look_first(args, default)
        return
    of_run = [binding for binding in args.gin_bindings if binding.startswith("MODEL_DIR =")]
    run = check_config((), of_run).macros.get("MODEL_DIR")
    if run is None:
        raise ConfigError(
            f"m6rec {args.command} takes --gin.MODEL_DIR=RUN, whose task it knows; a --gin_file "
            "FILE may name another one"
        )
    config = kept_copy(path_of(run) / CONFIG_FILE)
    check_there(run, f"--gin.MODEL_DIR={run}")
    if not config.is_file():
        raise ConfigError(
            f"{run} has no {CONFIG_FILE}, which says what a run was trained on: name its task with "
            f"--gin_file FILE ({default} says what stands there)"
        )
    look_first(args, default, str(config), EVALUATED_ROWS, reads=())


def look_at_own(args: argparse.Namespace) -> None:
    """`look_first` for a command whose settings change those of the run that is its argument.

    Raises:
      ConfigError: the run has none.
    """
    from m6rec_jax.config_file import CONFIG_FILE
    from m6rec_jax.configuration import check_config

    config = args.folder / CONFIG_FILE
    if not config.is_file():
        raise ConfigError(
            f"{args.folder} has no {CONFIG_FILE}, which says what a run was trained on: name the "
            "MODEL_DIR of `m6rec train`"
        )
    check_config([config, *args.gin_file], args.gin_bindings)


def check_there(given: str | Path, what: str) -> None:
    """Raises ConfigError where nothing is at a local path; `what` is the setting that names it."""
    path = Path(given).expanduser()
    if not in_bucket(given) and not path.exists():
        near = [own.name for own in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"{what}: nothing is there{did_you_mean(path.name, near)}")


def configure(args: argparse.Namespace) -> None:
    """Sets what gin files and the command line say."""
    from m6rec_jax import configuration

    configuration.parse_config(args.gin_file, args.gin_bindings)


def configure_together(args: argparse.Namespace, *, heed_preemption: bool = False) -> None:
    """`configure`, and joins the other processes of the run if there are any."""
    from m6rec_jax.sharding.processes import join_processes

    configure(args)
    join_processes(heed_preemption=heed_preemption)

"""t5x's programs with what several hosts need.

`python -m t5x.train` joins no other process on a TPU, and `t5x.eval` and `t5x.infer` join none
anywhere, without which Orbax neither writes nor reads a checkpoint of several hosts. They also do
not look for gin files where an installed package has them.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import gin
import t5x
from t5x import trainer

from m6rec_jax.configuration import shipped_root, with_quotes
from m6rec_jax.errors import ConfigError
from m6rec_jax.sharding.processes import join_processes

_JOINING = "join_processes."


def run_program(program: str, gin_files: Sequence[str], bindings: Sequence[str]) -> None:
    """Joins the other processes of the run, then runs `python -m PROGRAM` in this one.

    Args:
      program: 't5x.train', 't5x.eval', 't5x.infer' or 't5x.export'.
      gin_files: looked for in the current folder, among the shipped ones, then in t5x's.
      bindings: 'NAME = VALUE'; those of `join_processes` are used here.

    Raises:
      ConfigError: gin files or bindings that t5x refuses, or processes that do not fit.
      UnreachableError: the other processes do not answer.
      KeyboardInterrupt: a signal stopped `t5x.train` ('SIGTERM'); a checkpoint was written.
    """
    bindings = [with_quotes(binding) for binding in bindings]
    gin.parse_config([binding for binding in bindings if binding.startswith(_JOINING)])
    join_processes(heed_preemption=program == "t5x.train")
    folders = (".", shipped_root(), Path(t5x.__path__[0]).parent)
    sys.argv = [
        program,
        "--verbosity=0",  # t5x writes its metrics at this level
        f"--gin_search_paths={','.join(map(str, folders))}",
        *(f"--gin_file={name}" for name in gin_files),
        *(f"--gin_bindings={text}" for text in bindings if not text.startswith(_JOINING)),
    ]
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:  # of absl, which ends every program so
        if end.code:
            raise
    except trainer.PreemptionError as stop:
        raise KeyboardInterrupt("SIGTERM") from stop
    except Exception as error:
        if not _is_refused_by_gin(error):
            raise
        raise ConfigError(f"{program}: {error}") from error


def _is_refused_by_gin(error: Exception) -> bool:
    """Whether gin files were at fault: no such file or name, or a setting that is missing."""
    frames = traceback.walk_tb(error.__traceback__)
    return str(error).startswith("Required bindings for") or any(
        frame.f_code.co_name == "parse_gin_flags" for frame, _ in frames
    )

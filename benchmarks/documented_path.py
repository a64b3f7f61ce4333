"""Runs the commands of a page of the documentation as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.provenance import ROOT
from m6rec_jax.errors import DataError


def commands_of(page: str, section: str) -> list[list[str]]:
    """The first commands of a section of a page, as words.

    Raises:
      DataError: the page has no such section, or no commands there.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"\n## {re.escape(section)}\n.*?```sh\n(.*?)```", text, re.DOTALL)
    if found is None:
        raise DataError(f"{page} has no commands in its section {section!r}")
    lines = found.group(1).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def run(command: Sequence[str], output: Path) -> None:
    """Runs a command of `m6rec` in a folder, unless it was finished there; `m6rec` first.

    Raises:
      DataError: it failed; what it printed says why.
    """
    done = output / "done" / re.sub(r"[^\w.=-]+", "_", "_".join(command[1:]))[-200:]
    if done.exists():
        return
    print("$", shlex.join(command), flush=True)
    begin = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "m6rec_jax.cli", *command[1:]],
        cwd=output,
        env={**os.environ, "M6REC_DATA_DIR": str(output / "data"), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if ended.returncode:
        raise DataError(f"`{shlex.join(command)}` ended with status {ended.returncode}")
    done.parent.mkdir(exist_ok=True)
    done.write_text(f"{time.monotonic() - begin:.1f}\n")

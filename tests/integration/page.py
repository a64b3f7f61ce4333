"""A page of docs/ followed as a reader would: its files are written, its commands run and compared.

    ```gin
    # NAME.gin        a file of that name, in the reader's folder
    ```
    ```console
    $ COMMAND         goes on in the next line after a \\
    what it prints    in this order, further lines may stand between; ... stands for anything
    ```
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.commands import ROOT, m6rec_each

_BLOCK = re.compile(r"^```(gin|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\w+\.gin)\b")
_PARTS = re.compile(r"(\.\.\.|-?\d+\.\d+(?:e-?\d+)?)")
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
# Processors round sums differently, and training takes that further. Whole numbers are exact.
_TOLERANCE = 2e-3


@dataclass
class Command:
    """A command, and lines that the page shows of what it prints."""

    text: str
    shows: list[str] = field(default_factory=list)

    @property
    def needs_t5x(self) -> bool:
        return self.text.startswith(("python -m t5x", "m6rec t5x"))


def gin_files(page: str) -> dict[str, str]:
    """Files of a page by name."""
    found = {}
    for kind, text in _BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        if kind == "gin" and (name := _FILE.match(text)):
            found[name[1]] = text
    return found


def commands(page: str) -> list[Command]:
    """All commands of a page, in order."""
    found: list[Command] = []
    for kind, text in _BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", "", text).splitlines() if kind == "console" else ():
            if line.startswith("$ "):
                found.append(Command(line[2:]))
            elif line:
                found[-1].shows.append(line)
    return found


def follow(listed: list[Command], folder: Path) -> None:
    """Runs commands in a folder, and compares what each prints with what is shown."""
    for batch in _batches(listed):
        for command, printed in zip(batch, _printed(batch, folder), strict=True):
            lines = iter(printed.splitlines())
            for shown in command.shows:
                assert any(agrees(shown, line) for line in lines), (
                    f"$ {command.text}\nshows\n{shown}\nand prints\n{printed[-3000:]}"
                )


def agrees(shown: str, printed: str) -> bool:
    """Whether a line is what the page shows; decimals within `_TOLERANCE`."""
    parts = _PARTS.split(shown)
    pattern = "".join(
        ".*?" if part == "..." else _NUMBER if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    )
    match = re.fullmatch(pattern, printed)
    numbers = [float(part) for part in parts[1::2] if part != "..."]
    return match is not None and all(
        abs(float(found) - number) <= _TOLERANCE
        for found, number in zip(match.groups(), numbers, strict=True)
    )


def _batches(listed: list[Command]) -> Iterator[list[Command]]:
    """Commands of m6rec that follow each other run in one process: importing takes most time."""
    batch: list[Command] = []
    for command in listed:
        if command.text.startswith("export "):  # of `_environment`
            continue
        if not _is_of_m6rec(command) or (batch and not _is_of_m6rec(batch[-1])):
            if batch:
                yield batch
            batch = []
        batch.append(command)
    if batch:
        yield batch


def _is_of_m6rec(command: Command) -> bool:
    return command.text.startswith("m6rec ") and not command.needs_t5x


def _printed(batch: list[Command], folder: Path) -> list[str]:
    if _is_of_m6rec(batch[0]):
        runs = m6rec_each(folder, *(shlex.split(command.text)[1:] for command in batch))
    else:
        (command,) = batch
        program = f"{shlex.quote(sys.executable)} -m m6rec_jax.cli"
        script = f'm6rec() {{ {program} "$@"; }}; python() {{ {sys.executable} "$@"; }}\n'
        runs = [
            subprocess.run(
                ["bash", "-c", script + command.text],
                cwd=folder,
                env=os.environ
                | {
                    "M6REC_DATA_DIR": str(folder / "cache"),
                    "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
                },
                capture_output=True,
                text=True,
                timeout=900,
            )
        ]
    for run in runs:
        assert run.returncode == 0, f"{run.args}\n{run.stdout}\n{run.stderr[-5000:]}"
    return [run.stdout + run.stderr for run in runs]

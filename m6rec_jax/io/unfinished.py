"""Folders that take long to write: what a killed run left is gone on with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.locks import LOCK_FILE, locked_folder

_PROGRESS = "progress.json"


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A folder that is being written.

    Attributes:
      path: of the files, until all are there.
      made_of: what they are made of, for JSON.
    """

    path: Path
    made_of: list[Any]

    def done(self) -> int:
        """How much an earlier run has done; 0 where that was made of something else."""
        if not (file := self.path / _PROGRESS).exists():
            return 0
        earlier = json.loads(file.read_text("utf-8"))
        return int(earlier["done"]) if earlier["made_of"] == self.made_of else 0

    def record(self, done: int) -> None:
        """Keeps how much is done, for a later run."""
        write_atomically(self.path / _PROGRESS, json.dumps({"made_of": self.made_of, "done": done}))


@contextlib.contextmanager
def unfinished_folder(folder: Path, doing: str, made_of: list[Any]) -> Iterator[Unfinished]:
    """Yields what becomes `folder`, of which there is none yet, when the block ends.

    Raises:
      DataError: another process is writing it.
    """
    unfinished = Unfinished(folder.with_name(f"{folder.name}.unfinished"), made_of)
    with locked_folder(unfinished.path, doing):
        yield unfinished
        (unfinished.path / _PROGRESS).unlink()
        unfinished.path.rename(folder)
        (folder / LOCK_FILE).unlink()

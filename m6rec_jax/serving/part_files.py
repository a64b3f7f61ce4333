"""Output that survives being killed: numbered parts, committed one by one, joined at the end.

    scores.jsonl.parts/
      000000.jsonl ...       rows with results
      000000.json ...        of the same part: what it belongs to, what became of its rows
    scores.jsonl             once all parts are there, with
    scores.rejected.jsonl
    scores.summary.json      the same job again finds it and does nothing

A part counts when its `.json` is there, which is written after its rows are safely on disk. Killed
before that, the part is made again and overwrites what there is of it.
"""

from __future__ import annotations

import collections
import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file, to_disk, write_atomically
from m6rec_jax.io.locks import locked_folder

# Of pathlib or epath.
AnyPath = TypeVar("AnyPath", bound=Path)
# How many rows have something in common, by its name.
Totals = collections.Counter[str]


def side_files(output: AnyPath) -> tuple[AnyPath, AnyPath]:
    """Where rejected rows and the summary of an output go; its ending makes no difference."""
    rejected, summary = (f"{output.stem}.{name}" for name in ("rejected.jsonl", "summary.json"))
    return output.with_name(rejected), output.with_name(summary)


class PartFiles:
    """The parts of one output; use it as a context manager.

    Args:
      output: the file that is to be.
      job: what the output depends on, as JSON has it: committed parts of another job are not gone
        on with.
      start: the row with which the first part begins.

    Attributes:
      rejected: the side file.
      start: the row with which the next part begins.
      totals: of the committed parts.
      finished: whether the output is complete already.

    Raises:
      DataError: the output or its parts are there and belong to another job, or another process is
        writing them.
    """

    def __init__(self, output: Path, job: Mapping[str, Any], start: int = 0) -> None:
        self._output = output
        self._job = json.loads(json.dumps({"output": output.name, **job}))
        self.rejected, self._summary = side_files(output)
        self._folder = output.with_name(f"{output.name}.parts")
        self._lock = contextlib.ExitStack()
        self._number, self.start, self.totals = 0, start, Totals()
        self.finished = output.exists()

    def __enter__(self) -> Self:
        # Also of another output, such as one in the other format, or of a run that died at its end.
        if self.finished or self._summary.exists():
            totals = self._read(self._summary)["totals"]
        if self.finished:
            self.totals = Totals(totals)
            shutil.rmtree(self._folder, ignore_errors=True)
            return self
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked_folder(self._folder, f"writing {self._output}"))
            while (path := self._path(".json")).exists():
                record = self._read(path)
                self._number, self.start = self._number + 1, record["end"]
                self.totals.update(record["totals"])
            self._lock = lock.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def part(self) -> Path:
        """Where the next part's rows with results go."""
        return self._path(self._output.suffix)

    def commit(self, end: int, totals: Totals, rejected: Sequence[Mapping[str, Any]]) -> None:
        """Makes the next part count, once its rows are written to `part`.

        Args:
          end: the row with which the part after it begins.
          totals: of this part.
          rejected: lines of the side file.
        """
        to_disk(self.part)
        record = {"job": self._job, "end": end, "totals": totals, "rejected": rejected}
        write_atomically(self._path(".json"), json.dumps(record))
        self._number, self.start = self._number + 1, end
        self.totals.update(totals)

    def finish(self, join: Callable[[Iterable[Path], Path], None]) -> None:
        """Joins the parts, at least one, by a function that writes the rows of several to one file,
        and removes them.
        """
        numbers = range(self._number)
        whole = self._output.with_name(f"{self._output.name}.partial")
        join([self._path(self._output.suffix, number) for number in numbers], whole)
        to_disk(whole)
        with atomic_file(self.rejected) as path, path.open("w", encoding="utf-8") as side:
            for number in numbers:
                for row in self._read(self._path(".json", number))["rejected"]:
                    side.write(json.dumps(row, ensure_ascii=False) + "\n")
        summary = {"job": self._job, "totals": self.totals}
        write_atomically(self._summary, json.dumps(summary, indent=2) + "\n")
        whole.replace(self._output)  # last: when it is there, everything is
        to_disk(self._output.parent)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, suffix: str, number: int | None = None) -> Path:
        return self._folder / f"{self._number if number is None else number:06d}{suffix}"

    def _read(self, path: Path) -> dict[str, Any]:
        """A part's record, or the summary; raises DataError where it is of another job."""
        try:
            record: dict[str, Any] = json.loads(path.read_text("utf-8"))
            job = record["job"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{self._output} exists already, and was not written by this command ({error}); "
                "remove it, or name another output"
            ) from error
        differing = [
            f"{name} ({job.get(name)} there)"
            for name in sorted(job.keys() | self._job.keys())
            if job.get(name) != self._job.get(name)
        ]
        if differing:
            raise DataError(
                f"{path} belongs to results of another job, which differs in: "
                f"{', '.join(differing)}; remove them, or name another output"
            )
        return record

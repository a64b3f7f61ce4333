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
import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file, to_disk, write_atomically
from m6rec_jax.io.locks import locked_folder

# Names of ignored fields to keep: requests may have any number of them.
_MOST_NAMES = 50

# Of pathlib or epath.
AnyPath = TypeVar("AnyPath", bound=Path)
Join = Callable[[Iterable[Path], Path], None]


@dataclasses.dataclass
class Totals:
    """What became of rows.

    Attributes:
      answered: rows with results.
      rejected: rows without, by the kind of reason.
      ignored: fields that the data set does not have, and how many rows had them.
      gaps: what answers had to do without (`requests.request.Request.gaps`), and in how many rows.
    """

    answered: int = 0
    rejected: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    gaps: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Totals) -> None:
        """Adds those of further rows."""
        self.answered += other.answered
        self.rejected.update(other.rejected)
        self.gaps.update(other.gaps)
        for name, count in other.ignored.items():
            if name in self.ignored or len(self.ignored) < _MOST_NAMES:
                self.ignored[name] += count

    def count_ignored(self, names: Iterable[str]) -> None:
        """Counts the ignored fields of one row."""
        self.add(Totals(ignored=collections.Counter(names)))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Totals:
        """Reads a JSON object of the attributes."""
        counters = (collections.Counter(raw[name]) for name in ("rejected", "ignored", "gaps"))
        return cls(raw["answered"], *counters)


def side_files(output: AnyPath) -> tuple[AnyPath, AnyPath]:
    """Where rejected rows and the summary of an output go; its ending makes no difference."""
    rejected, summary = (f"{output.stem}.{name}" for name in ("rejected.jsonl", "summary.json"))
    return output.with_name(rejected), output.with_name(summary)


class PartFiles:
    """The parts of one output; use it as a context manager.

    Args:
      output: the file that is to be.
      suffix: of its parts.
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
        writing them; or the summary that is there is another output's.
    """

    def __init__(self, output: Path, suffix: str, job: Mapping[str, Any], start: int = 0) -> None:
        self._output, self._suffix = output, suffix
        self._job = json.loads(json.dumps(job))
        self.rejected, self._summary = side_files(output)
        self._folder = output.with_name(f"{output.name}.parts")
        self._lock = contextlib.ExitStack()
        self._number = 0
        self.start, self.totals = start, Totals()
        self.finished = output.exists()

    def __enter__(self) -> Self:
        self._check_summary()
        if self.finished:
            self._open_finished()
            return self
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked_folder(self._folder, f"writing {self._output}"))
            self._open_parts()
            self._lock = lock.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def part(self) -> Path:
        """Where the next part's rows with results go."""
        return self._path(self._number, self._suffix)

    def commit(self, end: int, totals: Totals, rejected: Sequence[Mapping[str, Any]]) -> None:
        """Makes the next part count, once its rows are written to `part`.

        Args:
          end: the row with which the part after it begins.
          totals: of this part.
          rejected: lines of the side file.
        """
        to_disk(self.part)
        record = {"job": self._job, "end": end, "totals": vars(totals)}
        text = json.dumps(record | {"rejected": rejected})
        write_atomically(self._path(self._number, ".json"), text)
        self._number, self.start = self._number + 1, end
        self.totals.add(totals)

    def finish(self, join: Join) -> None:
        """Joins the parts, at least one, and removes them.

        Args:
          join: writes the rows of several parts to one file.
        """
        whole = self._output.with_name(f"{self._output.name}.partial")
        join([self._path(number, self._suffix) for number in range(self._number)], whole)
        to_disk(whole)
        with (
            atomic_file(self.rejected) as path,
            path.open("w", encoding="utf-8") as side,
        ):
            for number in range(self._number):
                for row in self._record(number)["rejected"]:
                    side.write(json.dumps(row, ensure_ascii=False) + "\n")
        summary = {
            "output": self._output.name,
            "job": self._job,
            "totals": vars(self.totals),
        }
        write_atomically(self._summary, json.dumps(summary, indent=2) + "\n")
        whole.replace(self._output)  # last: when it is there, everything is
        to_disk(self._output.parent)
        self._remove_parts()
        self.finished = True

    def _path(self, number: int, suffix: str) -> Path:
        return self._folder / f"{number:06d}{suffix}"

    def _record(self, number: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._path(number, ".json").read_text("utf-8"))
        return record

    def _open_parts(self) -> None:
        for number in itertools.count():
            if not self._path(number, ".json").exists():
                break
            record = self._record(number)
            self._check_job(record["job"], self._folder)
            self._number, self.start = number + 1, record["end"]
            self.totals.add(Totals.from_json(record["totals"]))

    def _check_summary(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            owner = json.loads(self._summary.read_text("utf-8"))["output"]
            if owner != self._output.name:
                raise DataError(
                    f"{self._summary} is that of {owner}, whose rejected rows {self._output} would "
                    "overwrite; remove it, or name another output"
                )

    def _open_finished(self) -> None:
        try:
            summary = json.loads(self._summary.read_text("utf-8"))
            job, totals = summary["job"], Totals.from_json(summary["totals"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self._output} exists already, and was not written by this command; remove it, "
                "or name another output"
            ) from error
        self._check_job(job, self._output)
        self.totals = totals
        self._remove_parts()

    def _remove_parts(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check_job(self, job: Mapping[str, Any], where: Path) -> None:
        if job != self._job:
            names = sorted(job.keys() | self._job.keys())
            differs = ", ".join(
                f"{name} ({job.get(name)} there)"
                for name in names
                if job.get(name) != self._job.get(name)
            )
            raise DataError(
                f"{where} holds results of another job, which differs in: {differs}; remove it, or "
                "name another output"
            )

"""Output that survives being killed: numbered parts, committed one by one, joined at the end.

    scores.jsonl.parts/
      job.json               what the parts are made of
      progress.jsonl         one line per committed part
      000000.jsonl ...       rows with results
      000000.rejected ...    rows without, and why
    scores.jsonl             once all parts are there, with
    scores.rejected.jsonl
    scores.summary.json      the same job again finds it and does nothing

A part counts when its line stands in `progress.jsonl`, which is written after its files are safely
on disk. Killed before that, the part is made again and overwrites what there is of it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import to_disk, write_atomically
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.requests.files import Position

_JOB, _PROGRESS = "job.json", "progress.jsonl"
_REJECTED = ".rejected"
# Names of ignored fields to keep: requests may have any number of them.
_MOST_NAMES = 50
_BEGIN = Position()

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

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which `from_json` reads."""
        return {
            "answered": self.answered,
            "rejected": dict(self.rejected),
            "ignored": dict(self.ignored),
            "gaps": dict(self.gaps),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Totals:
        """Reads what `to_json` gave."""
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
      start: where the first part begins.

    Attributes:
      rejected: the side file.
      start: where the next part begins.
      totals: of the committed parts.
      finished: whether the output is complete already.

    Raises:
      DataError: the output or its parts are there and belong to another job, another process is
        writing them, or they are damaged; or the summary that is there is another output's.
    """

    def __init__(
        self, output: Path, suffix: str, job: Mapping[str, Any], start: Position = _BEGIN
    ) -> None:
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
        return self._folder / f"{self._number:06d}{self._suffix}"

    def commit(self, end: Position, totals: Totals, rejected: Sequence[Mapping[str, Any]]) -> None:
        """Makes the next part count, once its rows are written to `part`.

        Args:
          end: where the part after it begins.
          totals: of this part.
          rejected: lines of the side file.
        """
        side = self.part.with_suffix(_REJECTED)
        with side.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
        for path in (self.part, side, self._folder):
            to_disk(path)
        entry = {"part": self._number, "end": list(end), **totals.to_json()}
        with (self._folder / _PROGRESS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._number, self.start = self._number + 1, end
        self.totals.add(totals)

    def finish(self, join: Join) -> None:
        """Joins the parts, at least one, and removes them.

        Args:
          join: writes the rows of several parts to one file.

        Raises:
          DataError: an output of which only the ending differs has taken the side files.
        """
        self._check_summary()
        parts = [self._folder / f"{n:06d}{self._suffix}" for n in range(self._number)]
        whole = self._output.with_name(f"{self._output.name}.partial")
        side = self.rejected.with_name(f"{self.rejected.name}.partial")
        join(parts, whole)
        with side.open("wb") as target:
            for part in parts:
                with part.with_suffix(_REJECTED).open("rb") as source:
                    shutil.copyfileobj(source, target)
        to_disk(whole)
        to_disk(side)
        summary = {"output": self._output.name, "job": self._job, "totals": self.totals.to_json()}
        write_atomically(self._summary, json.dumps(summary, indent=2) + "\n", durable=True)
        side.replace(self.rejected)
        whole.replace(self._output)  # last: when it is there, everything is
        to_disk(self._output.parent)
        self._remove_parts()
        self.finished = True

    def _open_parts(self) -> None:
        path = self._folder / _JOB
        self._read_progress()
        if not self._number:  # an earlier attempt that got nowhere stands in nobody's way
            write_atomically(path, json.dumps(self._job, indent=2), durable=True)
            return
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(path, error) from error
        self._check_job(found, self._folder)

    def _check_summary(self) -> None:
        try:
            owner = json.loads(self._summary.read_text("utf-8"))["output"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if owner != self._output.name:
            raise DataError(
                f"{self._summary} is that of {owner}, whose rejected rows {self._output} would "
                "overwrite; remove it, or name another output"
            )

    def _open_finished(self) -> None:
        try:
            found = json.loads(self._summary.read_text("utf-8"))
            job, totals = found["job"], Totals.from_json(found["totals"])
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

    def _check_job(self, found: Mapping[str, Any], where: Path) -> None:
        names = [name for name in self._job if found.get(name) != self._job[name]]
        if names or set(found) != set(self._job):
            differs = ", ".join(f"{name} ({found.get(name)} there)" for name in names)
            raise DataError(
                f"{where} holds results of another job, which differs in: "
                f"{differs or 'its settings'}; remove it, or name another output"
            )

    def _read_progress(self) -> None:
        path = self._folder / _PROGRESS
        if not path.exists():
            return
        content = path.read_bytes()
        # Killed while it was written, the last line is not whole, and its part does not count.
        whole = content[: content.rfind(b"\n") + 1]
        try:
            for line in whole.splitlines():
                entry = json.loads(line)
                if entry["part"] != self._number:
                    raise ValueError(f"part {entry['part']} instead of {self._number}")
                self.start = Position(*entry["end"])
                self.totals.add(Totals.from_json(entry))
                self._number += 1
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, error) from error
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def _damaged(self, path: Path, error: Exception) -> DataError:
        return DataError(f"{path} is damaged ({error}); remove {self._folder} to start anew")

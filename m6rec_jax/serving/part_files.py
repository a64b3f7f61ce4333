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
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file, to_disk, write_atomically
from m6rec_jax.io.locks import locked_folder

log = logging.getLogger(__name__)

# Of pathlib or epath.
AnyPath = TypeVar("AnyPath", bound=Path)
# How many rows have something in common, by its name.
Totals = collections.Counter[str]


class Part(NamedTuple):
    """Consecutive rows.

    Attributes:
      write: writes those with results to a new file.
      end: the row with which the next part begins.
      totals: of its rows.
      rejected: lines of the side file.
    """

    write: Callable[[Path], None]
    end: int
    totals: Totals
    rejected: Sequence[Mapping[str, Any]]


def side_files(output: AnyPath) -> tuple[AnyPath, AnyPath]:
    """Where rejected rows and the summary of an output go; its ending makes no difference."""
    rejected, summary = (f"{output.stem}.{name}" for name in ("rejected.jsonl", "summary.json"))
    return output.with_name(rejected), output.with_name(summary)


def write_in_parts(
    output: Path,
    job: Mapping[str, Any],
    parts: Callable[[int], Iterator[Part]],
    join: Callable[[Iterable[Path], Path], None],
    start: int = 0,
) -> Totals:
    """Writes the parts that are not there yet, and joins all of them.

    Args:
      output: the file that is to be.
      job: what the output depends on, as JSON has it: committed parts of another job are not gone
        on with.
      parts: given the row that the next part begins with, makes this part and those after it, at
        least one.
      join: writes the rows of several files to one.
      start: the row that the first part begins with.

    Returns:
      The totals of all parts.

    Raises:
      DataError: the output or its parts are there and belong to another job, or another process is
        writing them.
    """
    job = json.loads(json.dumps({"output": output.name, **job}))
    rejected, summary = side_files(output)
    folder = output.with_name(f"{output.name}.parts")
    totals = Totals()
    # Also of another output, such as one in the other format, or of a run that died at its end.
    if output.exists() or summary.exists():
        totals.update(_record(summary, output, job)["totals"])
    if output.exists():
        log.info("%s is complete already", output.name)
        shutil.rmtree(folder, ignore_errors=True)
        return totals
    with locked_folder(folder, f"writing {output}"):
        number, totals = 0, Totals()
        while (path := folder / f"{number:06}.json").exists():
            record = _record(path, output, job)
            number, start = number + 1, record["end"]
            totals.update(record["totals"])
        if number:
            log.info("going on at row %s", f"{start:,}")
        for part in parts(start):
            rows = folder / f"{number:06}{output.suffix}"
            part.write(rows)
            to_disk(rows)
            record = {"end": part.end, "totals": part.totals, "rejected": part.rejected}
            write_atomically(rows.with_suffix(".json"), json.dumps({"job": job, **record}))
            totals.update(part.totals)
            number += 1
        all_rows = [folder / f"{n:06}{output.suffix}" for n in range(number)]
        whole = output.with_name(f"{output.name}.partial")
        join(all_rows, whole)
        to_disk(whole)
        with atomic_file(rejected) as path, path.open("w", encoding="utf-8") as side:
            for rows in all_rows:
                for row in _record(rows.with_suffix(".json"), output, job)["rejected"]:
                    side.write(json.dumps(row, ensure_ascii=False) + "\n")
        write_atomically(summary, json.dumps({"job": job, "totals": totals}, indent=2) + "\n")
        whole.replace(output)  # last: when it is there, everything is
        to_disk(output.parent)
        shutil.rmtree(folder, ignore_errors=True)
    return totals


def _record(path: Path, output: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Of a part, or the summary; raises DataError where it is of another job."""
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        there = record["job"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{output} exists already, and was not written by this command ({error}); remove it, "
            "or name another output"
        ) from error
    names = sorted(name for name in there.keys() | job if there.get(name) != job.get(name))
    if names:
        differing = ", ".join(f"{name} ({there.get(name)} there)" for name in names)
        raise DataError(
            f"{path} belongs to results of another job, which differs in: {differing}; remove "
            "them, or name another output"
        )
    return record

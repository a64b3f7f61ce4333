"""Parts of an output: whatever moment a run dies at, going on gives every row once."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.io import atomic
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.serving import part_files
from m6rec_jax.serving.part_files import Part, Totals, side_files, write_in_parts

JOB = {"requests": "a", "k": 10}
ROWS = 17


def join(parts: Iterable[Path], path: Path) -> None:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


def parts(start: int) -> Iterator[Part]:
    """Rows 0 to 16, five a part; every row but each seventh has a result."""
    while start < ROWS:
        rows = range(start, min(start + 5, ROWS))
        good = [row for row in rows if row % 7]
        text = "".join(f"{row}\n" for row in good)
        bad = [{"row": row} for row in rows if not row % 7]
        start = rows[-1] + 1
        totals = Totals(answered=len(good), bad=len(bad), x=1)
        yield Part(lambda path, text=text: path.write_text(text), start, totals, bad)  # type: ignore


def write(output: Path, job: dict[str, Any] = JOB, parts: Any = parts) -> Totals:
    return write_in_parts(output, job, parts, join)


def check(output: Path, totals: Totals) -> None:
    assert output.read_text().split() == [str(row) for row in range(ROWS) if row % 7]
    rejected = [json.loads(line)["row"] for line in side_files(output)[0].open()]
    assert rejected == [0, 7, 14]
    assert totals == Totals(answered=14, bad=3, x=4)
    names = sorted(path.name for path in output.parent.iterdir())
    assert names == ["out.jsonl", "out.rejected.jsonl", "out.summary.json"]


class Killed(BaseException):
    """As SIGKILL: nothing is cleaned up."""


class Life:
    """How many operations on files are left until a run is killed; None: it is not."""

    left: int | None = None

    def limited(self, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left is not None:
                if not self.left:
                    raise Killed
                self.left -= 1
            return original(*args, **kwargs)

        return call


def test_killed_at_any_moment_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before every single operation in turn, and once more while going on."""
    life = Life()
    for module in (part_files, atomic):
        monkeypatch.setattr(module, "to_disk", life.limited(module.to_disk))
    monkeypatch.setattr(Path, "replace", life.limited(Path.replace))
    monkeypatch.setattr(part_files, "write_atomically", life.limited(write_atomically))
    monkeypatch.setattr(part_files.shutil, "rmtree", life.limited(shutil.rmtree))
    operations, died = 0, True
    while died:
        output = tmp_path / str(operations) / "out.jsonl"
        output.parent.mkdir()
        died = False
        for life.left in (operations, operations // 2, None):
            try:
                totals = write(output)
            except Killed:
                died = True
        check(output, totals)
        operations += 1
    assert operations > 20


def test_a_finished_output_is_not_made_again(tmp_path: Path) -> None:
    write(tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").stat().st_mtime_ns
    check(tmp_path / "out.jsonl", write(tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == before


def test_other_jobs_and_other_processes(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"

    def meanwhile(start: int) -> Iterator[Part]:
        yield next(parts(start))
        with pytest.raises(DataError, match=r"another process is writing .*out\.jsonl; wait for"):
            write(output)
        raise Killed

    with pytest.raises(Killed):
        write(output, parts=meanwhile)
    with pytest.raises(DataError, match=r"out\.jsonl\.parts.* differs in: k \(10 there\)"):
        write(output, JOB | {"k": 11})
    write(output)
    with pytest.raises(DataError, match="of another job"):
        write(output, JOB | {"requests": "b"})
    # The files beside both would have the same names.
    with pytest.raises(DataError, match=r"output \(out\.jsonl there\)"):
        write(output.with_suffix(".parquet"))
    (tmp_path / "out.summary.json").unlink()
    with pytest.raises(DataError, match=r"exists already, and was not written by this command"):
        write(output)


def test_an_attempt_that_committed_nothing_blocks_nobody(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"

    def dies(path: Path) -> None:
        path.write_text("half a r")
        raise Killed

    with pytest.raises(Killed):
        write(output, JOB | {"requests": "other"}, lambda _: iter([Part(dies, 5, Totals(), [])]))
    check(output, write(output))

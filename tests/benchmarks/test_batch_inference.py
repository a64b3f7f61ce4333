"""What the study asks, and that it would notice if something went wrong."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.batch_inference import (
    DATASET,
    Sample,
    _a_worker,
    check_output,
    memory_growth,
    watch,
    write_requests,
)
from m6rec_jax.data.schema import DatasetSpec
from m6rec_jax.errors import DataError
from m6rec_jax.requests.files import Position, open_requests
from m6rec_jax.requests.request import RejectedRow, RequestParser
from m6rec_jax.text.records import Item

ITEMS = {f"f{n}": Item(f"f{n}", {"title": f"Film {n}"}) for n in range(9)}


def test_malformed_rows_have_the_reasons_that_are_expected(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    expected = write_requests(path, 60, 20, len(ITEMS), 3, 2)
    assert len(expected) == 20
    assert len(set(expected.values())) == 9
    parser = RequestParser(DatasetSpec.from_dict(DATASET), ITEMS)
    found = {}
    for chunk in open_requests(path, {}).chunks(Position(), 100):
        for row in chunk.rows:
            try:
                if row.problem is not None:
                    raise row.problem
                request = parser.parse(row.values or {})
                # Only a template can tell that a field it needs is missing.
                if "age" not in request.user.attributes:
                    raise RejectedRow("no_text", "")
            except RejectedRow as problem:
                found[row.number] = problem.kind
    assert found == expected


def write_output(folder: Path, rows: list[int], rejected: list[tuple[int, str]]) -> Path:
    output = folder / "out.jsonl"
    output.write_text("".join(json.dumps({"request": n, "scores": [1]}) + "\n" for n in rows))
    lines = [json.dumps({"row": row, "kind": kind}) + "\n" for row, kind in rejected]
    (folder / "out.rejected.jsonl").write_text("".join(lines))
    return output


@pytest.mark.parametrize(
    ("rows", "rejected", "lost", "wrong"),
    [
        ([0, 1, 3], [(2, "nan")], 0, 0),
        ([0, 3], [(2, "nan")], 1, 0),
        ([0, 1, 1, 3], [(2, "nan")], 1, 0),
        ([0, 1, 2, 3], [], 1, 1),
        ([0, 1, 3], [(2, "wrong_type")], 0, 2),
        ([0, 1, 3], [(2, "nan"), (2, "nan")], 0, 1),
    ],
)
def test_what_is_lost_or_twice_is_counted(
    tmp_path: Path, rows: list[int], rejected: Any, lost: int, wrong: int
) -> None:
    figures = check_output(write_output(tmp_path, rows, rejected), 4, {2: "nan"}, ["scores"])
    assert (figures["answered"], figures["reasons"]) == (len(rows), len(rejected))
    assert (figures["rows_lost_or_twice"], figures["wrong_reasons"]) == (lost, wrong)


def test_memory_that_grows_shows() -> None:
    flat = [Sample(100 + n, 500.0 + n % 3) for n in range(101)]
    assert memory_growth(flat) == 0
    assert memory_growth([Sample(n, 500.0 + n) for n in range(101)]) == 50
    with pytest.raises(DataError, match="too short"):
        memory_growth([Sample(0, 1.0), Sample(100, 1.0)])


def test_a_process_is_killed_when_half_is_done(tmp_path: Path) -> None:
    progress = tmp_path / "progress.jsonl"
    program = (
        "import time, pathlib\n"
        "for n in range(1000):\n"
        f"    pathlib.Path({str(progress)!r}).open('a').write('{{\"end\": [%d, 0]}}\\n' % n)\n"
        "    time.sleep(0.01)\n"
    )
    samples, seconds = watch([sys.executable, "-c", program], progress, kill_at=20)
    assert 20 <= samples[-1].committed < 1000
    assert samples[-1].memory > 1
    assert seconds > 0
    fails = "import sys; print('oh no', file=sys.stderr); sys.exit(3)"
    with pytest.raises(DataError, match=r"exit status 3 [^\x00]*: oh no"):
        watch([sys.executable, "-c", fails], progress)
    with pytest.raises(DataError, match="exit status 0"):
        watch([sys.executable, "-c", ""], tmp_path / "none", kill_at=5)


def test_only_a_worker_of_the_command_itself_is_killed() -> None:
    command = subprocess.Popen(["bash", "-c", "(exec -a ray::_Worker sleep 30) & wait"])
    others = subprocess.Popen(["bash", "-c", "exec -a ray::_Worker sleep 30"])
    until, found = time.monotonic() + 10, 0
    while not found and time.monotonic() < until:
        time.sleep(0.05)
        with contextlib.suppress(DataError):  # it has not begun yet
            found = _a_worker(command.pid)
    try:
        assert found not in (0, others.pid)
        os.kill(found, signal.SIGKILL)
        command.wait(10)
    finally:
        for process in (command, others):
            process.kill()
            process.wait()

"""Processes that start anew with another malloc."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, sys
from m6rec_jax.huge_pages import start_with_huge_pages

start_with_huge_pages()
print(sys.argv[1:], os.environ["GLIBC_TUNABLES"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
@pytest.mark.parametrize("own", [None, "glibc.malloc.arena_max=1"])
def test_a_process_starts_anew_once(own: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    if own is not None:
        environment["GLIBC_TUNABLES"] = own
    done = subprocess.run(
        [sys.executable, "-c", CODE, "--a=b c", "d"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,  # not again and again
    )
    assert done.stdout == f"['--a=b c', 'd'] {own or 'glibc.malloc.hugetlb=1'}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")
@pytest.mark.parametrize(("command", "starts"), [("train", 2), ("params", 1)])
def test_commands_that_compute_start_anew(tmp_path: Path, command: str, starts: int) -> None:
    seen = tmp_path / "seen.txt"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        f"with open({str(seen)!r}, 'a') as file:\n"
        "    print(os.environ.get('GLIBC_TUNABLES'), file=file)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-m", "m6rec_jax.cli", command, "--gin_file", "none.gin"],
        cwd=Path(__file__).parents[1],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert "no gin file 'none.gin'" in done.stderr
    assert seen.read_text().split() == ["None", "glibc.malloc.hugetlb=1"][:starts]

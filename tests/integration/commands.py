"""The command `m6rec` as a user runs it: in a process of its own, from the user's folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHOP = ROOT / "tests" / "data" / "shop"

Finished = subprocess.CompletedProcess[str]

MARK = "==== next command\n"
# As the console script: the current directory is not on the path.
ONE = "import sys; from m6rec_jax.cli import main; sys.path.pop(0); sys.exit(main())"
SEVERAL = f"""
import json, sys
import gin
from m6rec_jax.cli import main
sys.path.pop(0)
statuses = []
for arguments in json.loads(sys.argv[1]):
    for stream in (sys.stdout, sys.stderr):
        stream.write({MARK!r})
        stream.flush()
    gin.clear_config()  # of the command before, which also locked it
    statuses.append(main(arguments))
with open("statuses.json", "w") as file:
    json.dump(statuses, file)
"""


def _environment(folder: Path) -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return environment | {"M6REC_DATA_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}


def python(
    folder: Path, code: str, *arguments: str, stdin: str = "", timeout: float = 600
) -> Finished:
    """Runs Python code in `folder`, for so many seconds at most."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=_environment(folder),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def m6rec(folder: Path, *arguments: object, timeout: float = 600) -> Finished:
    """Runs one command, as `python` does."""
    return python(folder, ONE, *map(str, arguments), timeout=timeout)


def started(folder: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts Python code, whose standard error can be read as it comes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=_environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def m6rec_each(folder: Path, *commands: list[str], stdin: str = "") -> list[Finished]:
    """Runs commands in one process, since importing takes most of a command's time."""
    run = python(folder, SEVERAL, json.dumps(commands), stdin=stdin)
    assert run.returncode == 0, run.stdout + run.stderr
    statuses = json.loads((folder / "statuses.json").read_text())
    parts = (stream.split(MARK)[1:] for stream in (run.stdout, run.stderr))
    return [
        subprocess.CompletedProcess(command, *result)
        for command, *result in zip(commands, statuses, *parts, strict=True)
    ]


def succeeded(run: Finished) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def failed(run: Finished) -> str:
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run.stderr

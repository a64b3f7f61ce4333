"""What is held back while tensorflow loads, and what is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from m6rec_jax.quiet_start import has_tpu

NOTES = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1.2   32 port.cc:153] oneDNN custom operations are on. To turn them off, ...
I0000 00:00:1.2   32 cudart_stub.cc:31] Could not find cuda drivers on your machine
"""
FAKE = f"""
import os
os.write(2, {NOTES.encode()!r} + b"E0000 00:00:1.2 32 a.cc:1] something is broken\\n")
"""
# Some libraries ask whether tensorflow is there before they import it.
START = """
import importlib.util
from m6rec_jax.quiet_start import keep_quiet
keep_quiet()
assert importlib.util.find_spec("tensorflow")
import tensorflow
"""


def stderr_of(folder: Path, tensorflow: str, **environment: str) -> subprocess.CompletedProcess:
    (folder / "tensorflow.py").write_text(tensorflow)
    path = os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[1])])
    base = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", START + "import os; os.write(2, b'afterwards: oneDNN\\n')"],
        env=base | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_notes_are_held_back_and_errors_are_not(tmp_path: Path) -> None:
    shown = "E0000 00:00:1.2 32 a.cc:1] something is broken\n"
    run = stderr_of(tmp_path, FAKE)
    assert (run.returncode, run.stderr) == (0, shown + "afterwards: oneDNN\n")
    run = stderr_of(tmp_path, FAKE, TF_CPP_MIN_LOG_LEVEL="0")
    assert run.stderr == NOTES + shown + "afterwards: oneDNN\n"


@pytest.mark.parametrize(
    ("end", "message"),
    [("os.abort()", "something is broken"), ("import not_there", "No module named 'not_there'")],
)
def test_nothing_is_lost_when_loading_fails(end: str, message: str, tmp_path: Path) -> None:
    run = stderr_of(tmp_path, FAKE + end)
    assert run.returncode != 0
    assert message in run.stderr
    assert "oneDNN" not in run.stderr


def test_a_tpu_is_no_disk_and_no_network_card(tmp_path: Path) -> None:
    def plug_in(name: str, vendor: str, kind: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")

    assert not has_tpu(tmp_path)
    plug_in("0000:00:04.0", "0x1ae0", "0x020000")  # a virtual network card of Google's
    plug_in("0000:00:05.0", "0x1ae0", "0x010802")  # a disk
    plug_in("0000:00:06.0", "0x10de", "0x030200")  # a GPU
    assert not has_tpu(tmp_path)
    plug_in("0000:00:07.0", "0x1ae0", "0x088000")
    assert has_tpu(tmp_path)

"""tpu_scripts/ against a `gcloud` that notes its calls, and runs what is sent by ssh in bash."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.commands import succeeded

SCRIPTS = Path(__file__).resolve().parents[1] / "tpu_scripts"
NAMES = ("create", "launch", "serve", "logs", "delete")
WHERE = ["--project=shop", "--zone=us-east5-a"]
V5E = "--accelerator-type=v5litepod-16"
TRAIN = ("--", "train", "--recipe", "scoring", "--gin.MODEL_DIR=gs://bucket/run")
NOTE = f"""#!{sys.executable} -IS
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
"""
# What `describe` answers stands in a file, a line for each time; without one, there is none.
GCLOUD = """
import subprocess
if "describe" in sys.argv:
    first, *rest = open("states").read().splitlines() if os.path.exists("states") else [""]
    if rest:
        open("states", "w").write("\\n".join(rest))
    sys.exit(first and print(first) or not first)
if sys.argv[4] == "create":
    open("states", "w").write("PROVISIONING\\nACTIVE")
if sys.argv[4] == "ssh":
    sys.exit(subprocess.run(["bash", "-c", sys.argv[-1].removeprefix("--command=")]).returncode)
"""


class World:
    """A user's machine, which is its own host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("gcloud", "systemd-run", "systemctl", "journalctl", "tar", "python3"):
            self._program(f"bin/{name}", NOTE + (GCLOUD if name == "gcloud" else ""))
        self._program("bin/sudo", '#!/bin/sh\nexec "$@"\n')
        self._program("bin/sleep", "#!/bin/sh\n")
        self._program("m6rec-env/bin/m6rec", "#!/bin/sh\n")

    def _program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        own = {
            "M6REC_TPU_PROJECT": "shop",
            "M6REC_TPU_ZONE": "us-east5-a",
            "M6REC_TPU_NAME": "pod",
            "CALLS": str(self.folder / "calls"),
            "HOME": str(self.folder),
            "USER": "me",
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
        }
        command = ["bash", str(SCRIPTS / f"{script}.sh"), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=own | environment, capture_output=True, text=True
        )

    def calls(self, program: str) -> list[list[str]]:
        """What a program was given since the last time."""
        path = self.folder / "calls"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [line[1:] for line in lines if Path(line[0]).name == program]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_shellcheck() -> None:
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[dev]'")
    checked = subprocess.run(
        [program, *map(str, SCRIPTS.glob("*.sh"))], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", NAMES)
def test_help_names_all_options(world: World, script: str) -> None:
    out = succeeded(world.run(script, "--help"))
    text = (SCRIPTS / f"{script}.sh").read_text() + (SCRIPTS / "common.sh").read_text()
    for option in re.findall(r"\[(--[a-z-]+)\]=", text):
        assert option in out
    assert not (world.folder / "calls").exists()


def test_create_waits_and_installs(world: World) -> None:
    (world.folder / "my.gin").write_text("X = 1")
    succeeded(world.run("create", V5E, "--spot", "--include", "my.gin", "--t5x"))
    created, copied, installed = [call for call in world.calls("gcloud") if "describe" not in call]
    assert created == [
        *("compute", "tpus", "queued-resources", "create", "pod", *WHERE, V5E),
        *("--runtime-version=v2-alpha-tpuv5-lite", "--node-id=pod", "--spot"),
    ]
    assert copied[:4] == ["compute", "tpus", "tpu-vm", "scp"]
    assert "--worker=all" in copied
    assert "--worker=all" in installed
    (packed, _) = world.calls("tar")
    assert packed[-1] == "./my.gin"
    pip = [call for call in world.calls("python3") if "pip" in call and "uv" in call[:2]]
    assert [call[-1] for call in pip] == [".[tpu]", "requirements-t5x.txt"]


def test_create_keeps_a_slice_that_is_there_and_refuses_a_dead_one(world: World) -> None:
    (world.folder / "states").write_text("ACTIVE")
    succeeded(world.run("create", V5E))
    assert not any("create" in call for call in world.calls("gcloud"))
    (world.folder / "states").write_text("SUSPENDED")
    refused = world.run("create", V5E)
    assert refused.returncode == 2
    assert "delete.sh" in refused.stderr


# A shell here and one there read each word. No command line holds a NUL.
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_arguments_arrive_as_they_were_given(world: World, word: str) -> None:
    succeeded(world.run("launch", f"--env=A={word}", *TRAIN, word))
    (*_, given_to_systemd) = world.calls("systemd-run")
    assert f"--setenv=A={word}" in given_to_systemd
    program = given_to_systemd.index(f"{world.folder}/m6rec-env/bin/m6rec")
    cluster = "--gin.join_processes.cluster=tpu"
    assert given_to_systemd[program + 1 :] == ["train", cluster, *TRAIN[2:], word]


def test_serve_stop_logs_delete(world: World) -> None:
    succeeded(world.run("serve", "--model=gs://b/m", "--chips=2,4,1", "--", "run", "--bank", "b"))
    (unit,) = world.calls("systemd-run")
    assert "--setenv=TPU_CHIPS_PER_PROCESS_BOUNDS=2,4,1" in unit
    assert unit[-5:] == ["run", "--bank", "b", "--host", "0.0.0.0"]
    succeeded(world.run("launch", "--stop", "--run=serve"))
    assert ["stop", "m6rec-serve"] in world.calls("systemctl")
    succeeded(world.run("logs", "--run=serve"))
    assert world.calls("journalctl") == [["--follow", "--lines=1000", "--unit=m6rec-serve"]]
    succeeded(world.run("delete", "--node-count=2"))
    deleted = ["compute", "tpus", "queued-resources", "delete", "pod", *WHERE, "--force", "--quiet"]
    assert world.calls("gcloud")[-1] == deleted


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "word"),
    [
        ("create", (V5E,), {"M6REC_TPU_PROJECT": ""}, "M6REC_TPU_PROJECT"),
        ("delete", ("--zone=us-east5",), {}, "us-east5-a"),
        ("create", ("--accelerator-type=v9-8",), {}, "v5litepod-N"),
        ("create", (V5E, "--include=nowhere"), {}, "nowhere"),
        ("create", (V5E, "--sopt"), {}, "--sopt"),
        ("create", ("--accelerator-type",), {}, "needs a value"),
        ("launch", ("--", "serve"), {}, "t5x.infer"),
        ("launch", ("--run=../x", *TRAIN), {}, "../x"),
        ("serve", ("--model=x", "--", "run"), {}, "gs://BUCKET/FOLDER"),
    ],
)
def test_errors_name_the_value_and_the_cure(
    world: World, script: str, arguments: tuple[str, ...], environment: dict[str, str], word: str
) -> None:
    run = world.run(script, *arguments, **environment)
    assert run.returncode == 2
    assert word in run.stderr
    assert not (world.folder / "calls").exists()

"""All scripts of tpu_scripts/: style, help, what ships them, dry runs, errors."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.tpu_scripts.calls import (
    COMMANDS,
    TRAIN,
    V5E,
    refused,
    stub_m6rec,
    succeeded,
)
from tests.tpu_scripts.world import SCRIPTS, World

ROOT = SCRIPTS.parent


def test_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=str(Path(sys.executable).parent)
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[dev]'")
    done = subprocess.run(
        [shellcheck, "--external-sources", *map(str, sorted(SCRIPTS.glob("*.sh")))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_help_tells_options_variables_and_defaults(world: World, script: str) -> None:
    out = succeeded(world.run(script, "--help"))
    assert f"Usage: {script}.sh" in out
    text = (SCRIPTS / f"{script}.sh").read_text()
    options = set(_cases(text, r"^    (--[^)*]*)\)(?! unknown)"))
    for option in options | {"--dry-run", "--project"}:
        assert option in out, option
    for variable in set(_cases(text, r"\$\{(M6REC[A-Z_]*)")):
        assert f"${variable}" in out
    assert "$M6REC_TPU_PROJECT" in out
    assert all(len(line) <= 110 for line in out.splitlines())
    assert os.access(SCRIPTS / f"{script}.sh", os.X_OK)
    assert world.calls() == []


def _cases(text: str, pattern: str) -> list[str]:
    """What `pattern` finds, alternatives of a `case` apart."""
    found = re.findall(pattern, text, re.MULTILINE)
    return [part.strip() for match in found for part in match.split("|") if part.strip() != "--"]


def test_only_the_sdist_ships_them(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path)]
    subprocess.run([*build, "--target", "sdist"], cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        assert any(name.endswith("/mkdocs.yml") for name in archive.getnames())  # of `make docs`
        shipped = {
            Path(member.name).name: bool(member.mode & 0o100)
            for member in archive
            if Path(member.name).parent.name == "tpu_scripts"
            and Path(member.name).parent.parent.name != "tests"
        }
    assert set(shipped) == {file.name for file in SCRIPTS.iterdir() if file.is_file()}
    assert all(shipped[f"{script}.sh"] for script in COMMANDS)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "tpu_scripts" not in str(wheel["targets"]["wheel"])


@pytest.mark.parametrize(
    ("script", "arguments", "states"),
    [
        ("create", (V5E, "--spot"), ["NONE"]),
        ("create", (V5E, "--no-wait", "--node-count=3"), ["NONE"]),
        ("install", ("--ssh-option=--internal-ip",), ["ACTIVE"]),
        ("launch", ("--data=gs://bucket/d", "--env=A=it's", *TRAIN, "--gin.X='a b'"), ["ACTIVE"]),
        ("launch", ("--stop",), ["ACTIVE"]),
        ("serve", ("--model=gs://bucket/d", "--env=A=it's", "--", "~/m6rec-model/x"), ["ACTIVE"]),
        ("launch", ("--status",), ["ACTIVE"]),
        ("logs", ("--worker=all",), ["ACTIVE"]),
        ("delete", (), ["ACTIVE"]),
        ("stage_data", ("--data-set=sh op", "--data=gs://bucket/d", "--", "--gin.X=$Y"), []),
    ],
)
def test_dry_run_prints_what_would_run(
    world: World, script: str, arguments: tuple[str, ...], states: list[str]
) -> None:
    """And runs nothing: a shell that is given the printed lines makes the very same calls."""
    noted = stub_m6rec(world)
    (world.home / "sh op").mkdir()
    (world.folder / "buckets/bucket/d").mkdir()
    printed = succeeded(world.run(script, "--dry-run", *arguments))
    assert world.calls() == []
    assert not noted.exists()
    assert not (world.home / ".cache").exists()

    def made(run: subprocess.CompletedProcess[str]) -> tuple[list[list[str]], str]:
        calls = world.calls()
        (world.folder / "calls.jsonl").unlink()
        text = noted.read_text() if noted.exists() else ""
        noted.unlink(missing_ok=True)
        return calls, text

    world.write("states.json", states)
    really = made(world.run(script, *arguments))
    world.write("states.json", states)
    pasted = made(
        subprocess.run(["bash"], input=printed, text=True, cwd=world.home, env=world.environment())
    )
    assert pasted == really


def test_dry_run_of_watch(world: World) -> None:
    printed = succeeded(world.run("watch", "--dry-run", V5E, "--spot", *TRAIN))
    lines = [shlex.split(line) for line in printed.splitlines()]
    verbs = [line[4] for line in lines if line[:3] == ["gcloud", "compute", "tpus"]]
    assert verbs == ["describe", "create", "ssh", "scp", "ssh", "ssh", "describe", "ssh"]
    assert world.calls() == []


@pytest.mark.parametrize(
    ("script", "arguments", "environment", "words"),
    [
        ("create", (V5E,), {"M6REC_TPU_PROJECT": ""}, ("no project", "M6REC_TPU_PROJECT")),
        ("delete", (), {"M6REC_TPU_ZONE": ""}, ("no zone", "--zone")),
        ("delete", ("--zone=us-east5",), {}, ("us-east5", "us-east5-a")),
        ("delete", ("--name", "My_Pod"), {}, ("My_Pod", "lower-case")),
        ("create", (), {}, ("no accelerator type", "M6REC_TPU_ACCELERATOR_TYPE")),
        ("create", ("--accelerator-type=v9-8",), {}, ("v9-8", "v5litepod-N")),
        ("create", ("--accelerator-type=v5e-16",), {}, ("v5e-16", "v5litepod-16")),
        ("create", ("--accelerator-type=tpu7x-8",), {}, ("tpu7x-8", "Kubernetes")),
        ("create", (V5E, "--node-count=two"), {}, ("--node-count", "two")),
        ("create", (V5E, "--node-count=0"), {}, ("--node-count 0", "at least 1")),
        ("create", (V5E, "--sopt"), {}, ("--sopt", "create.sh --help")),
        ("create", ("--accelerator-type",), {}, ("--accelerator-type needs a value",)),
        ("stage_data", ("--data-set=x",), {}, ("no bucket", "M6REC_TPU_DATA")),
        ("stage_data", ("--data-set=x", "--data=bucket/x"), {}, ("bucket/x", "gs://BUCKET")),
        ("stage_data", ("--data-set=none", "--data=gs://bucket"), {}, ("none", "--fetch")),
        ("launch", (), {}, ("nothing to run", "-- train")),
        ("launch", ("--", "serve"), {}, ("serve", "train, eval and infer")),
        ("launch", ("--", "train"), {}, ("train needs --recipe",)),
        ("launch", ("--", "t5x.eval"), {}, ("t5x.eval needs --recipe",)),
        ("launch", ("--", "t5x.export"), {}, ("t5x.export", "t5x.infer")),
        ("launch", ("--data=x", *TRAIN), {}, ("--data x", "gs://BUCKET/FOLDER")),
        ("launch", ("--env=1X=2", *TRAIN), {}, ("1X=2", "NAME=VALUE")),
        ("launch", ("--run=../x", *TRAIN), {}, ("../x", "letters")),
        ("launch", ("train", "--gin_file", "x"), {}, ("unknown argument train",)),
        ("serve", (), {}, ("nothing to serve", "-- '~/m6rec-model/RUN'")),
        ("serve", ("--model=x", "--", "run"), {}, ("--model x", "gs://BUCKET/FOLDER")),
        ("serve", ("--chips=4", "--", "run"), {}, ("--chips 4", "2,2,1")),
        ("logs", ("--worker=first",), {}, ("first", "all")),
        ("logs", ("--node=1",), {}, ("--node 1", "1 slices")),
        ("install", ("--include=nowhere",), {}, ("nowhere", "no such file")),
        ("install", ("--include=../x",), {}, ("../x", "relative")),
        ("install", ("--python-version=3.10",), {}, ("3.10", "3.11 to 3.13")),
        ("install", ("--python-version=3.14",), {}, ("3.14", "3.11 to 3.13")),
        ("install", ("--extra=tpu;x",), {}, ("tpu;x", "extras")),
        ("watch", TRAIN, {}, ("no accelerator type",)),
        ("watch", ("--accelerator-type=v9-8", *TRAIN), {}, ("v9-8", "v5litepod-N")),
        ("watch", (V5E, "--include=nowhere", *TRAIN), {}, ("nowhere",)),
        ("watch", (V5E, "--", "train"), {}, ("--gin_file",)),
    ],
)
def test_errors_name_the_value_and_the_cure(
    world: World,
    script: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    words: tuple[str, ...],
) -> None:
    message = refused(world.run(script, *arguments, cwd=None, **environment))
    for word in words:
        assert word in message
    assert world.calls() == []

"""The scripts of tpu_scripts/ against a stubbed gcloud: calls, dry runs, errors, quoting, recovery.

Commands that the scripts send by ssh really run, in bash, on hosts that are folders.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tpu_scripts.conftest import SCRIPTS, World, program

ROOT = SCRIPTS.parent
COMMANDS = (
    *("compile_check", "create", "install", "stage_data", "launch", "logs", "watch", "delete"),
)
WHERE = ["--project=shop", "--zone=us-east5-a"]
QUEUED = ["compute", "tpus", "queued-resources"]
DESCRIBE = [*QUEUED, "describe", "pod", *WHERE, "--format=value(state.state)"]
TRAIN = ("--", "train", "--gin_file", "run.gin", "--gin.MODEL_DIR=gs://bucket/run")
V5E = "--accelerator-type=v5litepod-16"


def succeeded(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """A user's error: status 2, one line, nothing else."""
    assert run.returncode == 2, run.stdout + run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    return run.stderr


def ssh(command: str, node: str = "pod", worker: str = "all") -> list[str]:
    where = [*WHERE, f"--worker={worker}", "--quiet"]
    return ["compute", "tpus", "tpu-vm", "ssh", node, *where, f"--command={command}"]


@pytest.fixture
def pod(world: World) -> World:
    """A slice of two hosts that is there, with the package installed."""
    world.write("workers", 2)
    world.write("states.json", ["ACTIVE"])
    succeeded(world.run("install"))
    (world.folder / "calls.jsonl").unlink()
    return world


# Style, help


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


# Exact calls


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_create(world: World, accelerator: str, runtime: str) -> None:
    world.write("creations.json", [["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
    run = world.run("create", "--accelerator-type", accelerator, "--poll", "7")
    succeeded(run)
    flags = [f"--accelerator-type={accelerator}", f"--runtime-version={runtime}", "--node-id=pod"]
    assert world.calls() == [
        DESCRIBE,
        [*QUEUED, "create", "pod", *WHERE, *flags],
        *[DESCRIBE] * 3,
    ]
    assert world.sleeps() == ["7", "7"]
    assert "pod is PROVISIONING" in run.stderr


def test_create_several_spot_slices_with_flags_of_gcloud(world: World) -> None:
    options = ("--spot", "--node-count=2", "--no-wait", "--runtime-version=own")
    gcloud = ("--create-option=--labels=team=shop", "--create-option", "--internal-ips")
    succeeded(world.run("create", V5E, *options, *gcloud))
    assert world.calls()[1] == [
        *(*QUEUED, "create", "pod", *WHERE, V5E, "--runtime-version=own"),
        *("--node-count=2", "--node-prefix=pod", "--spot"),
        *("--labels=team=shop", "--internal-ips"),
    ]
    assert len(world.calls()) == 2


def test_create_when_it_exists(world: World) -> None:
    world.write("states.json", ["PROVISIONING", "ACTIVE"])
    run = world.run("create", V5E)
    succeeded(run)
    assert world.verbs() == ["describe", "describe"]
    assert "nothing was created" in run.stderr


def test_create_when_a_dead_one_exists(world: World) -> None:
    world.write("states.json", ["SUSPENDED"])
    message = refused(world.run("create", V5E))
    assert "SUSPENDED" in message
    assert "delete.sh" in message


def test_create_that_fails_while_waiting(world: World) -> None:
    world.write("creations.json", [["PROVISIONING", "FAILED"]])
    run = world.run("create", V5E)
    assert run.returncode == 1
    assert "pod became FAILED" in run.stderr


def test_create_gives_up_waiting(world: World) -> None:
    world.write("creations.json", [["WAITING_FOR_RESOURCES"]])
    run = world.run("create", V5E, "--timeout", "1")
    assert run.returncode == 1
    assert "still WAITING_FOR_RESOURCES" in run.stderr


def test_errors_of_gcloud_come_through(world: World) -> None:
    """An error that is not "there is none" must not be taken for it."""
    denied = {"words": ["describe"], "times": 9, "stderr": "ERROR: PERMISSION_DENIED on shop"}
    world.write("failures.json", [denied])
    for script, arguments in (("create", (V5E,)), ("delete", ())):
        run = world.run(script, *arguments)
        assert run.returncode == 1
        assert "PERMISSION_DENIED" in run.stderr
    assert world.verbs() == ["describe", "describe"]


def test_delete(world: World) -> None:
    world.write("states.json", ["ACTIVE"])
    succeeded(world.run("delete"))
    assert world.calls() == [DESCRIBE, [*QUEUED, "delete", "pod", *WHERE, "--force", "--quiet"]]


def test_delete_when_there_is_none(world: World) -> None:
    run = world.run("delete")
    succeeded(run)
    assert world.calls() == [DESCRIBE]
    assert "nothing was deleted" in run.stderr


def test_install(world: World) -> None:
    world.write("workers", 2)
    own = world.home / "own"
    (own / "tasks").mkdir(parents=True)
    (own / "tasks" / "corner_shop.py").write_text("")
    (own / "my run.gin").write_text("X = 1")
    include = ("--include", "tasks", "--include=my run.gin")
    out = succeeded(world.run("install", *include, "--ssh-option=--internal-ip", cwd=own))
    archive = str(world.home / ".cache/m6rec-tpu/pod.tar.gz")
    scp, sent = world.calls()
    where = [*WHERE, "--worker=all", "--quiet", "--internal-ip"]
    assert scp == ["compute", "tpus", "tpu-vm", "scp", archive, "pod:m6rec.tar.gz", *where]
    assert sent[:-1] == ["compute", "tpus", "tpu-vm", "ssh", "pod", *where]
    for index in (0, 1):
        home = world.folder / "hosts" / f"pod-{index}"
        assert f"m6rec-host pod-{index} installed m6rec_jax 0.0" in out
        for path in ("tasks/corner_shop.py", "tasks/movielens.py", "my run.gin", "pyproject.toml"):
            assert (home / "m6rec" / path).is_file()
        assert (home / "m6rec-env/bin/python").is_file()
    (pip, _) = world.lines("pip.jsonl")
    assert pip["argv"][-4:] == ["-c", "constraints.txt", "-e", ".[tpu]"]


def test_install_fetches_a_python_that_hosts_lack(world: World) -> None:
    """Whatever Python this machine has: here `python3.11` fails, and `python3` can do uv."""
    world.write("workers", 1)
    folder = world.folder / "host_bin"
    (folder / "python3.11").rename(folder / "python3")
    program(folder / "python3.11", "#!/bin/sh\nexit 127\n")
    succeeded(world.run("install"))
    uv, package = world.lines("pip.jsonl")
    assert uv["argv"] == ["-m", "pip", "install", "--quiet", "--user", "uv"]
    assert package["argv"][-1] == ".[tpu]"


def test_install_again_replaces_the_code(pod: World) -> None:
    stale = pod.folder / "hosts/pod-0/m6rec/stale.py"
    stale.write_text("")
    succeeded(pod.run("install"))
    assert not stale.exists()


def test_install_refuses_during_a_run(pod: World) -> None:
    succeeded(pod.run("launch", *TRAIN))
    run = pod.run("install")
    assert run.returncode == 1
    assert "the run m6rec is going on" in run.stderr


def test_launch_status_logs_stop(pod: World) -> None:
    (pod.folder / "buckets/bucket/data").mkdir()
    (pod.folder / "buckets/bucket/data/vocabulary.model").write_text("pieces")
    options = ("--run", "first", "--data", "gs://bucket/data/", "--env", "EXTRA=two  words")
    succeeded(pod.run("launch", *options, *TRAIN))
    host = "bash m6rec/tpu_scripts/on_host.sh"
    words = "train --gin_file run.gin --gin.MODEL_DIR=gs://bucket/run"
    assert pod.calls() == [
        ssh(f"{host} data gs://bucket/data"),
        ssh(f"{host} start first 'EXTRA=two  words' -- {words}"),
    ]
    _until(lambda: len(pod.received()) == 2)
    for received in pod.received():
        home = pod.folder / "hosts" / received["host"]
        assert received["argv"] == list(TRAIN[1:])
        assert received["environment"] == {
            "M6REC_DATA_DIR": str(home / "m6rec-data"),
            "EXTRA": "two  words",
        }
        assert (home / "m6rec-data/vocabulary.model").read_text() == "pieces"

    out = succeeded(pod.run("launch", "--run=first", "--status"))
    assert out.count("running") == 2
    again = pod.run("launch", "--run=first", *TRAIN)
    assert again.returncode == 1
    assert "already going on" in again.stderr
    assert len(pod.received()) == 2

    out = succeeded(pod.run("logs", "--run=first", "--worker=all", "--no-follow"))
    assert "[pod-0] step 1" in out
    assert "[pod-1] step 1" in out

    succeeded(pod.run("launch", "--run=first", "--stop"))
    assert succeeded(pod.run("launch", "--run=first", "--status")).count("stopped") == 2
    # Nothing to stop is no error, and the same command starts it again.
    succeeded(pod.run("launch", "--run=first", "--stop"))
    succeeded(pod.run("launch", "--run=first", *TRAIN))
    assert succeeded(pod.run("launch", "--run=first", "--status")).count("running") == 2


def test_a_run_that_hears_no_signal_is_killed_by_force(pod: World) -> None:
    pod.write("behaviours.json", {"*": ["hang"]})
    succeeded(pod.run("launch", *TRAIN))
    stop = pod.run("launch", "--stop", "--grace=0")
    assert stop.returncode == 1
    assert "add --force" in stop.stderr
    succeeded(pod.run("launch", "--stop", "--grace=0", "--force"))
    _until(lambda: "running" not in pod.run("launch", "--status").stdout)


@pytest.mark.parametrize(
    ("behaviour", "status"), [("exit 0", "finished"), ("exit 2", "failed 2"), ("wait", "lost")]
)
def test_status_tells_how_a_run_ended(pod: World, behaviour: str, status: str) -> None:
    pod.write("behaviours.json", {"*": [behaviour]})
    assert pod.run("launch", "--status").stdout.count("absent") == 2
    succeeded(pod.run("launch", *TRAIN))
    if behaviour == "wait":
        pod.kill_runs()
    _until(lambda: pod.run("launch", "--status").stdout.count(f" {status}\n") == 2)


def test_several_slices(world: World) -> None:
    succeeded(world.run("launch", "--node-count=2", *TRAIN))
    assert sorted(call[4] for call in world.calls()) == ["pod-0", "pod-1"]
    succeeded(world.run("logs", "--node-count=2", "--node=1"))
    assert world.calls()[-1] == ssh(
        "bash m6rec/tpu_scripts/on_host.sh logs m6rec 100 1", node="pod-1", worker="0"
    )


def test_one_slice_that_fails_is_an_error(world: World) -> None:
    failure = {"words": ["pod-0"], "times": 1, "stderr": "ERROR: Connection refused"}
    world.write("failures.json", [failure])
    run = world.run("launch", "--node-count=2", *TRAIN)
    assert run.returncode == 1
    assert "Connection refused" in run.stderr


def stub_m6rec(world: World) -> Path:
    """An m6rec that notes its arguments and data folder, and prepares a file."""
    program(
        world.bin / "m6rec",
        "#!/bin/bash\n"
        f'printf "%q " "$M6REC_DATA_DIR" "$@" >>{world.folder}/m6rec; '
        f"echo >>{world.folder}/m6rec\n"
        '[[ $1 == data && $2 == fetch ]] || echo "$1" >"$M6REC_DATA_DIR/$1"\n',
    )
    return world.folder / "m6rec"


def test_compile_check_is_m6rec_compile_for_the_slice(world: World) -> None:
    """Without the cloud: no call of gcloud, and none needed."""
    (world.bin / "gcloud").unlink()
    noted = world.folder / "m6rec"
    program(world.bin / "m6rec", f'#!/bin/bash\nprintf "%s\\n" "$@" >{noted}\nexit 1\n')
    arguments = (V5E, "--node-count=2", "--", "--model", "xl", "--gin.X='a b'")
    printed = succeeded(world.run("compile_check", "--dry-run", *arguments))
    assert not noted.exists()
    done = world.run("compile_check", *arguments)
    assert done.returncode == 1, "the status of m6rec compile: does not fit"
    words = ["compile", "--topology", "v5litepod-16", "--slices", "2", "--model", "xl"]
    assert noted.read_text().splitlines() == [*words, "--gin.X='a b'"]
    assert shlex.split(printed) == ["m6rec", *words, "--gin.X='a b'"]


def test_stage_data(world: World) -> None:
    noted = stub_m6rec(world)
    staging = world.home / ".cache/m6rec-tpu/data"
    gin = ("--gin_file", "prepare.gin", "--gin.SPLIT='leave_one_out'")
    options = ("--fetch", "--data-set=movielens-100k", "--data=gs://bucket/data/")
    succeeded(world.run("stage_data", *options, "--", *gin))
    assert [shlex.split(line) for line in noted.read_text().splitlines()] == [
        ["", "data", "fetch", "movielens-100k"],
        [str(staging), "data", "prepare", f"{world.home}/.cache/m6rec/movielens-100k", *gin],
        [str(staging), "vocab", "train", *gin],
    ]
    assert world.calls() == [
        ["storage", "buckets", "describe", "gs://bucket", "--project=shop", "--format=value(name)"],
        ["storage", "rsync", "--recursive", str(staging), "gs://bucket/data", "--project=shop"],
    ]
    assert (world.folder / "buckets/bucket/data/vocab").is_file()


def test_stage_data_needs_the_bucket_before_the_work(world: World) -> None:
    noted = stub_m6rec(world)
    (world.home / "shop").mkdir()
    run = world.run("stage_data", "--data-set=shop", "--data=gs://elsewhere/data")
    assert run.returncode == 2
    assert "gcloud storage buckets create gs://elsewhere" in run.stderr
    assert not noted.exists()


# Dry runs


@pytest.mark.parametrize(
    ("script", "arguments", "states"),
    [
        ("create", (V5E, "--spot"), ["NONE"]),
        ("create", (V5E, "--no-wait", "--node-count=3"), ["NONE"]),
        ("install", ("--ssh-option=--internal-ip",), ["ACTIVE"]),
        ("launch", ("--data=gs://bucket/d", "--env=A=it's", *TRAIN, "--gin.X='a b'"), ["ACTIVE"]),
        ("launch", ("--stop",), ["ACTIVE"]),
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


# Errors


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
        ("launch", ("--", "train"), {}, ("train needs --gin_file",)),
        ("launch", ("--data=x", *TRAIN), {}, ("--data x", "gs://BUCKET/FOLDER")),
        ("launch", ("--env=1X=2", *TRAIN), {}, ("1X=2", "NAME=VALUE")),
        ("launch", ("--run=../x", *TRAIN), {}, ("../x", "letters")),
        ("launch", ("train", "--gin_file", "x"), {}, ("unknown argument train",)),
        ("logs", ("--worker=first",), {}, ("first", "all")),
        ("logs", ("--node=1",), {}, ("--node 1", "1 slices")),
        ("install", ("--include=nowhere",), {}, ("nowhere", "no such file")),
        ("install", ("--include=../x",), {}, ("../x", "relative")),
        ("install", ("--python-version=3.10",), {}, ("3.10", "3.11")),
        ("compile_check", ("--", "--model", "xl"), {}, ("no accelerator type",)),
        ("compile_check", (V5E,), {}, ("nothing to compile", "-- --model xl")),
        ("compile_check", (V5E, "--m6rec=none", "--", "--model=xl"), {}, ("none", "--m6rec")),
        ("compile_check", (V5E, "--zone=a", "--", "--model=xl"), {}, ("unknown argument --zone",)),
        ("compile_check", (V5E, "--node-count=x", "--", "--model=xl"), {}, ("--node-count", "x")),
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


def test_missing_gcloud(world: World) -> None:
    (world.bin / "gcloud").unlink()
    assert "Google Cloud CLI" in refused(world.run("delete"))


def test_a_folder_of_its_own_for_each_host_is_warned_of(world: World) -> None:
    arguments = ("--", "train", "--gin_file=x", "--gin.MODEL_DIR='runs/x'")
    assert "share no disk" in world.run("launch", *arguments).stderr
    assert "warning" not in world.run("launch", *TRAIN).stderr


# Quoting

NASTY = [
    "two words",
    "it's",
    'say "no"',
    "$HOME `id` $(id) ${x}",
    "a\\b\\\\c\\",
    "*?[a-z]{1,2}~",
    "; rm -rf x & | > y < z #",
    "line\nbreak\ttab",
    "!history^",
    "日本語 ü 🛒",
    "{'inputs': 96, 'targets': 96}",
    "--",
    "-n",
    "",
    " ",
    "'",
    "''\"'",
]


def test_nasty_words_reach_m6rec_unchanged(pod: World) -> None:
    pod.write("behaviours.json", {"*": ["exit 0"]})
    words = ["train", "--gin_file", "x", *NASTY, *(f"--gin.X={word}" for word in NASTY)]
    succeeded(pod.run("launch", f"--env=EXTRA={NASTY[2]}\n{NASTY[3]}", "--", *words))
    _until(lambda: len(pod.received()) == 2)
    for received in pod.received():
        assert received["argv"] == words
        assert received["environment"]["EXTRA"] == f"{NASTY[2]}\n{NASTY[3]}"


@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=8)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_quoted_words_are_read_back_by_any_shell(words: list[str]) -> None:
    """dash is the strictest: it knows no $'...'."""
    quote = f'source {shlex.quote(str(SCRIPTS / "common.sh"))}; quote_all "$@"'
    line = subprocess.run(
        ["bash", "-c", quote, "x", *words], capture_output=True, check=True
    ).stdout
    for shell in ("bash", "sh"):
        back = subprocess.run(
            [shell, "-c", b"[ $# = 0 ] && printf '%s\\0' " + line], capture_output=True, check=True
        ).stdout
        assert back.split(b"\0")[:-1] == [word.encode() for word in words or [""]]


# Recovery

QUICK = ("--poll=0", "--backoff=4", "--max-backoff=10", V5E)


def watched(world: World, *options: str) -> subprocess.CompletedProcess[str]:
    world.write("workers", 2)
    return world.run("watch", *QUICK, *options, *TRAIN)


def test_watch_from_nothing_to_the_end(world: World) -> None:
    world.write("creations.json", [["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
    world.write("behaviours.json", {"*": ["exit 0"]})
    run = watched(world, "--spot", "--run=a")
    succeeded(run)
    assert "has finished" in run.stderr
    assert world.verbs().count("create") == 1
    assert "--spot" in world.calls()[2]
    assert [received["argv"] for received in world.received()] == [list(TRAIN[1:])] * 2
    assert "retry" not in run.stderr


def test_watch_makes_a_preempted_slice_again(world: World) -> None:
    world.write("creations.json", [["ACTIVE"] * 4 + ["SUSPENDING", "SUSPENDED"], ["ACTIVE"]])
    world.write("behaviours.json", {"*": ["wait", "exit 0"]})
    run = watched(world)
    succeeded(run)
    changes = [verb for verb in world.verbs() if verb in ("create", "delete")]
    assert changes == ["create", "delete", "create"]
    assert len(world.received()) == 4
    assert run.stderr.count("retry") == 1
    assert "pod is SUSPENDED; retry 1 of 20 in 4 s" in run.stderr


def test_watch_starts_a_run_again_after_maintenance(pod: World) -> None:
    """The hosts rebooted: the slice is ACTIVE all the time, the processes are gone."""
    pod.write("behaviours.json", {"*": ["wait", "exit 0"]})
    succeeded(pod.run("launch", *TRAIN))
    _until(lambda: len(pod.received()) == 2)
    pod.kill_runs()
    run = watched(pod)
    succeeded(run)
    assert "the run m6rec lost; retry 1" in run.stderr
    assert not {"create", "delete"} & set(pod.verbs())
    assert len(pod.received()) == 4


def test_watch_stops_the_other_hosts_when_one_failed(pod: World) -> None:
    pod.write("behaviours.json", {"pod-0": ["exit 1", "exit 0"], "pod-1": ["wait", "exit 0"]})
    run = watched(pod)
    succeeded(run)
    assert "the run m6rec failed; retry 1" in run.stderr
    assert len(pod.received()) == 4


def test_watch_only_looks_at_a_run_that_goes_on(pod: World) -> None:
    succeeded(pod.run("launch", *TRAIN))
    watch = subprocess.Popen(
        ["bash", str(SCRIPTS / "watch.sh"), *QUICK, *TRAIN],
        env=pod.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    _until(lambda: pod.verbs().count("describe") >= 2)
    succeeded(pod.run("launch", "--stop"))
    _, errors = watch.communicate(timeout=60)
    assert watch.returncode == 0
    assert "stopped by a user" in errors
    assert len(pod.received()) == 2


def test_watch_gives_up(world: World) -> None:
    world.write("creations.json", [["FAILED"]] * 9)
    run = watched(world, "--max-retries=3")
    assert run.returncode == 1
    assert "giving up after 3 retries" in run.stderr
    assert world.verbs().count("create") == 4
    assert [seconds for seconds in world.sleeps() if seconds != "0"] == ["4", "8", "10"]


def test_watch_does_not_repeat_what_m6rec_refuses(world: World) -> None:
    world.write("behaviours.json", {"*": ["exit 2"]})
    run = watched(world)
    assert run.returncode == 2
    assert "logs.sh" in run.stderr
    assert len(world.received()) == 2


@pytest.mark.parametrize("before", ["refused", "stopped"])
def test_watch_starts_what_ended_before_it_began(pod: World, before: str) -> None:
    """A user mended the settings, or wants to go on."""
    first = "exit 2" if before == "refused" else "wait"
    pod.write("behaviours.json", {"*": [first, "exit 0"]})
    succeeded(pod.run("launch", *TRAIN))
    if before == "stopped":
        succeeded(pod.run("launch", "--stop"))
    ended = "stopped" if before == "stopped" else "failed 2"
    _until(lambda: pod.run("launch", "--status").stdout.count(ended) == 2)
    run = watched(pod)
    succeeded(run)
    assert "has finished" in run.stderr
    assert len(pod.received()) == 4
    assert "retry" not in run.stderr


def test_watch_retries_an_installation_that_fails(world: World) -> None:
    world.write("behaviours.json", {"*": ["exit 0"]})
    failure = {"words": ["scp"], "times": 2, "stderr": "ERROR: Connection reset"}
    world.write("failures.json", [failure])
    run = watched(world)
    succeeded(run)
    assert run.stderr.count("could not be started; retry") == 2


def test_watch_replaces_hosts_that_do_not_answer(world: World) -> None:
    world.write("behaviours.json", {"*": ["exit 0"]})
    failure = {"words": ["ssh"], "times": 3, "stderr": "ERROR: Connection timed out"}
    world.write("failures.json", [failure])
    run = watched(world, "--unreachable-polls=3")
    succeeded(run)
    assert "do not answer; retry 1" in run.stderr
    assert world.verbs().count("delete") == 1


def test_watch_counts_from_0_after_a_healthy_run(world: World) -> None:
    world.write("creations.json", [[*["ACTIVE"] * 4, "SUSPENDED"]] * 3 + [["ACTIVE"]])
    world.write("behaviours.json", {"*": ["wait", "wait", "wait", "exit 0"]})
    run = watched(world, "--max-retries=1", "--healthy-after=0")
    succeeded(run)
    assert run.stderr.count("retry 1 of 1 in 4 s") == 3


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)

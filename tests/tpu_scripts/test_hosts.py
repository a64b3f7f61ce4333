"""install.sh, launch.sh, logs.sh against a stubbed gcloud: calls, signals, several slices, quoting.

Commands that the scripts send by ssh really run, in bash, on hosts that are folders.
"""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tpu_scripts.calls import (
    PATIENCE,
    TRAIN,
    WHERE,
    ssh,
    succeeded,
    until,
)
from tests.tpu_scripts.world import SCRIPTS, World, program


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
    where = [*WHERE, "--worker=all", "--quiet"]
    flags = ["--internal-ip", *(f"--scp-flag={flag}" for flag in PATIENCE)]
    assert scp == ["compute", "tpus", "tpu-vm", "scp", archive, "pod:m6rec.tar.gz", *where, *flags]
    flags = ["--internal-ip", *(f"--ssh-flag={flag}" for flag in PATIENCE)]
    assert sent[:-1] == ["compute", "tpus", "tpu-vm", "ssh", "pod", *where, *flags]
    for index in (0, 1):
        home = world.folder / "hosts" / f"pod-{index}"
        assert f"m6rec-host pod-{index} installed m6rec_jax 0.0" in out
        for path in (
            "tasks/corner_shop.py",
            "tasks/movielens/__init__.py",
            "my run.gin",
            "pyproject.toml",
        ):
            assert (home / "m6rec" / path).is_file()
        assert (home / "m6rec-env/bin/python").is_file()
    (pip, _) = world.lines("pip.jsonl")
    assert pip["argv"][-4:] == ["-c", "constraints.txt", "-e", ".[tpu]"]


def test_t5x_runs_as_m6rec_does(world: World) -> None:
    world.write("workers", 2)
    succeeded(world.run("install", "--t5x"))
    assert [call["argv"][-3:] for call in world.lines("pip.jsonl") if "-r" in call["argv"]] == [
        ["--no-deps", "-r", "requirements-t5x.txt"]
    ] * 2
    assert (world.folder / "hosts/pod-1/m6rec/requirements-t5x.txt").is_file()
    command = ("t5x.train", *TRAIN[2:])
    run = world.run("launch", "--", *command)
    succeeded(run)
    assert "warning" not in run.stderr
    until(lambda: len(world.received()) == 2)
    assert [received["argv"] for received in world.received()] == [list(command)] * 2
    succeeded(world.run("launch", "--stop"))
    assert succeeded(world.run("launch", "--status")).count("stopped") == 2
    outside = world.run("launch", "--", "t5x.infer", *TRAIN[2:4], "--gin.INFER_OUTPUT_DIR='/out'")
    succeeded(outside)
    assert "INFER_OUTPUT_DIR" in outside.stderr


def test_stop_tells_hosts_whose_run_has_ended_already(pod: World) -> None:
    """One host that is told to stop stops all: the others' word may come after their end."""
    pod.write("behaviours.json", {"pod-0": ["exit 143"], "pod-1": ["exit 0"]})
    succeeded(pod.run("launch", *TRAIN))
    until(lambda: "running" not in pod.run("launch", "--status").stdout)
    succeeded(pod.run("launch", "--stop"))
    told = succeeded(pod.run("launch", "--status"))
    assert "pod-0 stopped" in told
    assert "pod-1 finished" in told


@pytest.mark.parametrize(
    ("keys", "own", "without"),
    [
        ("exit 2", "", False),  # no agent
        ("exit 1", "", False),  # an empty one
        ('echo "256 SHA256:other me (ED25519)"', "", True),  # gcloud has yet to make its key
        ('echo "256 SHA256:other me (ED25519)"', "256 SHA256:gcloud me (RSA)", True),
        ('echo "256 SHA256:gcloud me (RSA)"', "256 SHA256:gcloud me (RSA)", False),
    ],
)
def test_install_does_without_an_agent_that_lacks_gclouds_key(
    world: World, keys: str, own: str, without: bool
) -> None:
    program(world.bin / "ssh-add", f"#!/bin/bash\n{keys}\n")
    program(world.bin / "ssh-keygen", f"#!/bin/bash\n[[ -n '{own}' ]] && echo '{own}'\n")
    out = succeeded(world.run("install", "--dry-run"))
    (copy,) = [line for line in out.splitlines() if " scp " in line]
    assert copy.startswith("env -u SSH_AUTH_SOCK gcloud " if without else "gcloud ")


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


def test_install_refuses_during_a_run(pod: World) -> None:
    succeeded(pod.run("launch", *TRAIN))
    run = pod.run("install")
    assert run.returncode == 1
    assert "the run m6rec is going on" in run.stderr


def test_launch_status_logs_stop(pod: World) -> None:
    (pod.folder / "buckets/bucket/data").mkdir()
    (pod.folder / "buckets/bucket/data/vocabulary.model").write_text("pieces")
    extra = 'it\'s $HOME\n"two"  words'
    options = ("--run", "first", "--data", "gs://bucket/data/", "--env", f"EXTRA={extra}")
    succeeded(pod.run("launch", *options, *TRAIN))
    host = "bash m6rec/tpu_scripts/on_host.sh"
    words = "train --gin_file run.gin --gin.MODEL_DIR=gs://bucket/run"
    quoted = "'EXTRA=" + extra.replace("'", "'\\''") + "'"
    assert pod.calls() == [
        ssh(f"{host} data gs://bucket/data"),
        ssh(f"{host} start first {quoted} -- {words}"),
    ]
    until(lambda: len(pod.received()) == 2)
    for received in pod.received():
        home = pod.folder / "hosts" / received["host"]
        assert received["argv"] == list(TRAIN[1:])
        assert received["environment"] == {
            "M6REC_DATA_DIR": str(home / "m6rec-data"),
            "EXTRA": extra,
            "TPU_PROCESS_BOUNDS": None,
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


def test_every_host_serves_by_itself(pod: World) -> None:
    (pod.folder / "buckets/bucket/model/run").mkdir(parents=True)
    (pod.folder / "buckets/bucket/model/run/config.gin").write_text("")
    words = ("~/m6rec-model/run", "--bank", "a bank")
    succeeded(pod.run("serve", "--model=gs://bucket/model", "--env=EXTRA=1", "--", *words))
    until(lambda: len(pod.received()) == 2)
    for received in pod.received():
        assert received["argv"] == ["serve", *words, "--host", "0.0.0.0"]
        assert received["environment"]["TPU_PROCESS_BOUNDS"] == "1,1,1"
        assert received["environment"]["EXTRA"] == "1"
        home = pod.folder / "hosts" / received["host"]
        assert (home / "m6rec-model/run/config.gin").is_file()
    again = pod.run("serve", "--", *words)
    assert again.returncode == 1
    assert "already going on" in again.stderr
    (pod.folder / "buckets/bucket/model/run/config.gin").unlink()
    other = pod.run("serve", "--model=gs://bucket/model", "--", *words)
    assert other.returncode == 1
    assert "the run serve is going on" in other.stderr
    assert (home / "m6rec-model/run/config.gin").is_file()  # of the model that is served
    succeeded(pod.run("launch", "--run=serve", "--stop"))
    assert succeeded(pod.run("launch", "--run=serve", "--status")).count("stopped") == 2
    succeeded(pod.run("serve", "--", "run", "--host=::1"))
    until(lambda: len(pod.received()) == 4)
    assert pod.received()[-1]["argv"] == ["serve", "run", "--host=::1"]


def test_a_run_that_hears_no_signal_is_killed_by_force(pod: World) -> None:
    pod.write("behaviours.json", {"*": ["hang"]})
    succeeded(pod.run("launch", *TRAIN))
    stop = pod.run("launch", "--stop", "--grace=0")
    assert stop.returncode == 1
    assert "add --force" in stop.stderr
    succeeded(pod.run("launch", "--stop", "--grace=0", "--force"))
    until(lambda: "running" not in pod.run("launch", "--status").stdout)


def test_status_tells_of_a_run_that_was_killed(pod: World) -> None:
    pod.write("behaviours.json", {"*": ["wait"]})
    assert pod.run("launch", "--status").stdout.count("absent") == 2
    succeeded(pod.run("launch", *TRAIN))
    pod.kill_runs()
    until(lambda: pod.run("launch", "--status").stdout.count(" lost\n") == 2)


def test_several_slices(world: World) -> None:
    succeeded(world.run("launch", "--node-count=2", *TRAIN))
    assert sorted(call[4] for call in world.calls()) == ["pod-0", "pod-1"]
    succeeded(world.run("logs", "--node-count=2", "--node=1"))
    assert world.calls()[-1] == ssh(
        "bash m6rec/tpu_scripts/on_host.sh logs m6rec 100 1", node="pod-1", worker="0"
    )


@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=8)
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
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

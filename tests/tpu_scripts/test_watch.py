"""watch.sh against a stubbed gcloud: preemptions, maintenance, hosts that fail, giving up."""

from __future__ import annotations

import subprocess

import pytest

from tests.tpu_scripts.calls import (
    TRAIN,
    V5E,
    succeeded,
    until,
)
from tests.tpu_scripts.world import SCRIPTS, World

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
    until(lambda: len(pod.received()) == 2)
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
    until(lambda: pod.verbs().count("describe") >= 2)
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


@pytest.mark.parametrize("before", ["refused", "stopped"])
def test_watch_starts_what_ended_before_it_began(pod: World, before: str) -> None:
    """A user mended the settings, or wants to go on."""
    first = "exit 2" if before == "refused" else "wait"
    pod.write("behaviours.json", {"*": [first, "exit 0"]})
    succeeded(pod.run("launch", *TRAIN))
    until(lambda: len(pod.received()) == 2)
    if before == "stopped":
        succeeded(pod.run("launch", "--stop"))
    ended = "stopped" if before == "stopped" else "failed 2"
    until(lambda: pod.run("launch", "--status").stdout.count(ended) == 2)
    run = watched(pod)
    succeeded(run)
    assert "has finished" in run.stderr
    assert len(pod.received()) == 4
    assert "retry" not in run.stderr


def test_watch_replaces_hosts_that_do_not_answer(world: World) -> None:
    world.write("behaviours.json", {"*": ["exit 0"]})
    failure = {"words": ["ssh"], "times": 3, "stderr": "ERROR: Connection timed out"}
    world.write("failures.json", [failure])
    run = watched(world, "--unreachable-polls=3")
    succeeded(run)
    assert "do not answer; retry 1" in run.stderr
    assert world.verbs().count("delete") == 1


def test_watch_is_slower_to_replace_hosts_that_are_said_to_be_healthy(world: World) -> None:
    """It may be the watching machine that does not reach them."""
    world.write("behaviours.json", {"*": ["exit 0"]})
    world.write("health.json", "HEALTHY")
    failure = {"words": ["ssh"], "times": 12, "stderr": "ERROR: Connection timed out"}
    world.write("failures.json", [failure])
    run = watched(world, "--unreachable-polls=1")
    succeeded(run)
    assert run.stderr.count("does this machine reach them?") == 11
    assert world.verbs().count("delete") == 1


def test_watch_does_not_repeat_what_m6rec_refuses(world: World) -> None:
    world.write("behaviours.json", {"*": ["exit 2"]})
    run = watched(world)
    assert run.returncode == 2
    assert "logs.sh" in run.stderr
    assert len(world.received()) == 2

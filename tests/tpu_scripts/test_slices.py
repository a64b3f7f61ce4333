"""create.sh and delete.sh against a stubbed gcloud: calls, waiting, slices that exist or died."""

from __future__ import annotations

import pytest

from tests.tpu_scripts.calls import (
    DESCRIBE,
    QUEUED,
    V5E,
    WHERE,
    refused,
    succeeded,
)
from tests.tpu_scripts.world import World


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


def test_create_that_fails_while_waiting(world: World) -> None:
    world.write("creations.json", [["PROVISIONING", "FAILED"]])
    run = world.run("create", V5E)
    assert run.returncode == 1
    assert "pod became FAILED" in run.stderr


@pytest.mark.parametrize(("times", "status"), [(9, 0), (10, 1)])
def test_create_looks_again_where_gcloud_fails(world: World, times: int, status: int) -> None:
    world.write("creations.json", [["PROVISIONING", "ACTIVE"]])
    world.write("states.json", ["NONE"])
    blip = {"words": ["describe"], "times": times, "stderr": "ERROR: token", "skip": 1}
    world.write("failures.json", [blip])
    run = world.run("create", V5E, "--poll=0")
    assert run.returncode == status, run.stderr
    assert ("cannot tell; the request stays" in run.stderr) == bool(status)


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

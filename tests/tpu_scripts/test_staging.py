"""stage_data.sh: what m6rec and gcloud are given."""

from __future__ import annotations

import shlex

import pytest

from tests.tpu_scripts.calls import (
    stub_m6rec,
    succeeded,
)
from tests.tpu_scripts.world import World


@pytest.mark.parametrize(
    ("own", "cache"), [("", ".cache/m6rec"), ("gs://bucket/data", ".cache/m6rec"), ("/d", "/d")]
)
def test_stage_data(world: World, own: str, cache: str) -> None:
    noted = stub_m6rec(world)
    staging = world.home / ".cache/m6rec-tpu/data"
    gin = ("--gin_file", "prepare.gin", "--gin.SPLIT='leave_one_out'")
    options = ("--fetch", "--data-set=movielens-100k", "--data=gs://bucket/data/")
    succeeded(world.run("stage_data", *options, "--", *gin, M6REC_DATA_DIR=own))
    assert [shlex.split(line) for line in noted.read_text().splitlines()] == [
        [own, "data", "fetch", "movielens-100k"],
        [str(staging), "data", "prepare", str(world.home / cache / "movielens-100k"), *gin],
        [str(staging), "vocab", "train", *gin],
    ]
    assert world.calls() == [
        ["storage", "buckets", "describe", "gs://bucket", "--project=shop", "--format=value(name)"],
        ["storage", "rsync", "--recursive", str(staging), "gs://bucket/data", "--project=shop"],
    ]
    assert (world.folder / "buckets/bucket/data/vocab").is_file()


def test_stage_data_needs_what_the_vocabulary_is_trained_on(world: World) -> None:
    noted = stub_m6rec(world)
    (world.home / "shop").mkdir()
    options = ("--data-set=shop", "--data=gs://bucket/data")
    run = world.run("stage_data", *options)
    assert run.returncode == 2
    assert "give -- --gin_file FILE that names what the vocabulary is trained on" in run.stderr
    assert not noted.exists()
    succeeded(world.run("stage_data", *options, "--no-vocabulary"))
    assert "vocab" not in noted.read_text()


def test_stage_data_needs_the_bucket_before_the_work(world: World) -> None:
    noted = stub_m6rec(world)
    (world.home / "shop").mkdir()
    run = world.run(
        "stage_data", "--data-set=shop", "--data=gs://elsewhere/data", "--no-vocabulary"
    )
    assert run.returncode == 2
    assert "gcloud storage buckets create gs://elsewhere" in run.stderr
    assert not noted.exists()

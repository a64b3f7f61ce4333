"""Saving and restoring runs, and every way in which a checkpoint can be wrong."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from m6rec_jax import doctor
from m6rec_jax.checkpoints.bytes_item import read_bytes_item
from m6rec_jax.checkpoints.checkpoint import (
    DATA,
    OPTIMIZER,
    PARAMS,
    PROMPTS,
    list_steps,
    open_checkpoint,
)
from m6rec_jax.checkpoints.fingerprint import fingerprint
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.errors import CheckpointError, M6RecError, UnreachableError
from m6rec_jax.io.buckets import check_bucket
from m6rec_jax.model.config import ModelConfig, PromptConfig
from tests import several_devices

CONFIG = ModelConfig(vocab_size=64, embed_dim=16, prompts=PromptConfig(num_prompts=2))
RUN = RunDescription(
    model_config=CONFIG, vocabulary_fingerprint="a" * 64, trainable="prompts", num_data_shards=2
)
STATES = {"shard-00000-of-00002": b"\x00state", "shard-00001-of-00002": b"", "settings": b"{}"}


def make_trees(step: int = 0) -> dict[str, Any]:
    params = {"kernel": jax.random.normal(jax.random.key(0), (64, 32)), "scale": jnp.ones(32)}
    prompts = {"soft": jnp.full((2, 8), float(step)), "half": jnp.ones(3, jnp.bfloat16)}
    opt_state = optax.adamw(1e-3).init({"prompts": prompts})
    return {"params": params, "prompts": prompts, "optimizer": opt_state}


def save(folder: Path, *steps: int, frozen: tuple[str, ...] = (), **settings: Any) -> Path:
    with CheckpointStore(folder / "checkpoints", **settings) as store:
        for step in steps:
            store.save(step, make_trees(step), data=STATES, run=RUN, frozen=frozen)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a frozen backbone and two steps."""
    return save(tmp_path_factory.mktemp("run"), 10, 20, frozen=("params",))


@pytest.fixture
def damaged(run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def restore_one(folder: Path, item: str, target: Any, config: ModelConfig | None = None) -> Any:
    return open_checkpoint(folder).restore(item, target, config)


def restore(folder: Path, step: int | None = None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """All that `save` saved: the trees by item, and the states of the data."""
    checkpoint = open_checkpoint(folder, step)
    targets = jax.eval_shape(make_trees)
    trees = {name: checkpoint.restore(name, targets[name]) for name in targets}
    return trees, read_bytes_item(checkpoint.item_folder(DATA))


def assert_equal(one: Any, two: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path, 7)
    trees, states = restore(tmp_path)
    assert_equal(trees, make_trees(7))
    assert states == STATES
    manifest = open_checkpoint(tmp_path).manifest
    assert manifest.step == 7
    assert manifest.build_model_config() == CONFIG
    assert manifest.tensors["params"]["kernel"].shape == (64, 32)


def test_a_frozen_item_is_written_once_and_outlives_old_steps(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, frozen=("params",), keep=1)
    save(tmp_path, 4, frozen=("params",), keep=1)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    digest = fingerprint(make_trees()["params"])
    assert names == ["4", f"params-{digest[:16]}"]
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "checkpoints", moved)
    assert_equal(
        restore_one(moved, PARAMS, jax.eval_shape(make_trees)["params"]), make_trees()["params"]
    )


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    for steps, keep, kept in (
        ({1: None, 2: 2, 3: 2, 4: 2}, 2, [2, 3, 4]),
        ({5: 2, 6: 2}, 1, [2, 6]),
        ({7: 7, 8: 7}, 1, [7, 8]),
    ):
        with CheckpointStore(tmp_path, keep=keep) as store:
            for step, best in steps.items():
                store.save(step, make_trees(step), data=STATES, run=RUN, best=best)
            store.wait()
            assert list_steps(store.folder) == kept


def test_saved_values_are_those_of_the_call(tmp_path: Path) -> None:
    """The next step overwrites the buffers while the checkpoint is still being written."""
    state = {"w": jnp.arange(500_000, dtype=jnp.float32)}
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"params": state}, data={}, run=RUN)
        for _ in range(20):
            state = add(state)
    target = {"w": jax.ShapeDtypeStruct((500_000,), jnp.float32)}
    assert_equal(
        restore_one(tmp_path, PARAMS, target), {"w": jnp.arange(500_000, dtype=jnp.float32)}
    )


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/20"])
def test_paths_that_mean_a_checkpoint(place: str, run: Path) -> None:
    assert open_checkpoint(run / place).step == 20
    prompts = restore_one(run / place, PROMPTS, jax.eval_shape(make_trees)["prompts"])
    assert_equal(prompts, make_trees(20)["prompts"])


# --- errors -----------------------------------------------------------------------------------


def test_no_checkpoint_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15 in .*; there are: 10, 20"):
        open_checkpoint(run, 15)
    with pytest.raises(CheckpointError, match="is step 20, not step 10"):
        open_checkpoint(run / "checkpoints" / "20", 10)
    with pytest.raises(CheckpointError, match="no such folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="expected MODEL_DIR"):
        open_checkpoint(tmp_path)


def test_a_bucket_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax would import it only when the steps are listed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for use in (CheckpointStore, open_checkpoint):
        with pytest.raises(CheckpointError, match=r"gs://bucket/run.*google-cloud-storage.*\[tpu"):
            use("gs://bucket/run")
    assert "google-cloud-storage" in "".join(doctor._buckets_can_be_used())
    check_bucket(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_bucket("gs://bucket/run")
    assert doctor._buckets_can_be_used() == []


def test_another_shape_is_named_with_its_cause(run: Path) -> None:
    target = {**make_trees()["params"], "kernel": jnp.zeros((64, 48))}
    with pytest.raises(CheckpointError) as caught:
        restore_one(run, PARAMS, target, CONFIG.replace(embed_dim=24))
    message = str(caught.value)
    assert "'params/kernel' is float32[64,32] in the checkpoint and float32[64,48]" in message
    assert "embed_dim: 16 -> 24" in message
    with pytest.raises(CheckpointError, match="another model size"):
        restore_one(run, PARAMS, target)


def test_other_tensors_are_named(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'params/scale' is float32\[32\] in .* and missing"):
        restore_one(run, PARAMS, {"kernel": make_trees()["params"]["kernel"]})
    target = jax.eval_shape(optax.sgd(0.1, momentum=0.9).init, {"prompts": {}})
    with pytest.raises(CheckpointError, match=r"'optimizer/.*another optimizer"):
        restore_one(run, OPTIMIZER, target)


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_truncated_array_files(damaged: Path) -> None:
    for path in (damaged / "checkpoints" / "20" / "prompts").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="prompts could not be read"):
        restore(damaged)
    restore(damaged, 10)


def test_flipped_bits_are_noticed(damaged: Path) -> None:
    """Orbax reads them without complaint."""
    path = largest_file(next((damaged / "checkpoints").glob("params-*")))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"is damaged|could not be read"):
        restore(damaged)


def test_damaged_manifest(damaged: Path) -> None:
    path = damaged / "checkpoints" / "20" / "manifest" / "metadata"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"manifest/metadata is damaged"):
        restore(damaged)


def test_missing_items(damaged: Path) -> None:
    backbone = next((damaged / "checkpoints").glob("params-*"))
    shutil.rmtree(damaged / "checkpoints" / "20" / "prompts")
    with pytest.raises(CheckpointError, match=r"\(item 'prompts' of step 20\) is missing"):
        restore(damaged)
    shutil.rmtree(backbone)
    with pytest.raises(CheckpointError, match=f"{backbone.name}.* copy it too"):
        restore(damaged)


def test_an_interrupted_save_is_no_checkpoint(damaged: Path) -> None:
    """What a killed process leaves behind is not offered, and the next launch removes it."""
    root = damaged / "checkpoints"
    for path in (root / "20", next(root.glob("params-*"))):
        (path / "commit_success.txt").unlink(missing_ok=True)
        shutil.copytree(path, root / f"{path.name}.orbax-checkpoint-tmp")
    shutil.rmtree(root / "20")
    assert list_steps(root) == [10]
    with CheckpointStore(root) as store:
        assert store.latest_step() == 10
    assert not list(root.glob("*tmp*"))


def test_any_mesh_to_any_mesh(tmp_path: Path) -> None:
    """Checkpoints know nothing of the mesh they were saved from: 8 → 1, 1 → 8, other axes."""
    script = Path(__file__).with_name("eight_devices.py")
    assert several_devices.result(several_devices.start(script, str(tmp_path), devices=8))


def test_types_are_converted(run: Path) -> None:
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), make_trees()["params"]
    )
    restored = restore_one(run, PARAMS, target)
    assert_equal(restored, jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_trees()["params"]))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ABORTED: CURL error: Could not connect to server", UnreachableError),
        ("UNAVAILABLE: Timeout was reached", UnreachableError),
        ("RESOURCE_EXHAUSTED: 9 GiB", CheckpointError),
        ("No space left on device", CheckpointError),
    ],
)
def test_a_place_that_does_not_answer_may_do_so_later(
    text: str, kind: type[M6RecError], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the texts of TensorStore, which are causes of what Orbax raises."""

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("Error in a local file") from ValueError(text)

    with CheckpointStore(tmp_path) as store, monkeypatch.context() as patched:
        patched.setattr(ocp.CheckpointManager, "save", fail)
        patched.setattr(ocp.Checkpointer, "restore", fail)
        with pytest.raises(kind, match=f"step 3 could not be saved to {tmp_path}"):
            store.save(3, make_trees(), data={}, run=RUN)
        with pytest.raises(kind, match="prompts could not be read"):
            restore_one(run, PROMPTS, make_trees()["prompts"])

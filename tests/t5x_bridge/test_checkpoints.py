"""Runs under t5x to runs of ours and back; needs no t5x, whose files are written here by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.t5x_files import write_t5x_files
from m6rec_jax.checkpoints.trees import flatten, nested, unflatten
from m6rec_jax.convert import convert
from m6rec_jax.engine.model_folder import (
    InferenceSettings,
    load_model,
    restore_model,
    save_assets,
    variable_targets,
)
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.t5x_bridge.checkpoints import DESCRIPTION_FILE, from_t5x, to_t5x, write_description
from m6rec_jax.text.vocabulary import Vocabulary
from tests.training.toy_run import toy_config

Leaves = dict[str, np.ndarray]


def random_leaves(config: ModelConfig, seed: int = 0) -> Leaves:
    rng = np.random.default_rng(seed)
    shapes = flatten(variable_targets(M6Rec(config)))
    return {
        name: rng.standard_normal(leaf.shape).astype(np.float32) for name, leaf in shapes.items()
    }


def under_t5x(leaves: Leaves) -> dict[str, np.ndarray]:
    """t5x's names: prompts are a branch of the one tree."""
    return {
        "target." + name.removeprefix("params/").replace("/", "."): leaf
        for name, leaf in leaves.items()
    }


def write_orbax(leaves: Leaves, folder: Path, step: int) -> None:
    """As t5x lays it out: parameters, and what its optimizer has of some of them."""
    named = {name.replace(".", "/"): leaf for name, leaf in under_t5x(leaves).items()}
    moments = {
        f"state/param_states/{name.removeprefix('target/')}/v": leaf
        for name, leaf in named.items()
        if name.startswith("target/prompts/")
    }
    state = nested({**named, **moments, "state/step": np.int32(step)})
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
        checkpointer.save(
            folder.absolute() / f"checkpoint_{step}" / "state", args=ocp.args.PyTreeSave(state)
        )


def described(folder: Path, config: ModelConfig, fingerprint: str | None = None) -> None:
    write_description(folder, RunDescription(config, fingerprint, "prompts"))


def our_run(folder: Path, config: ModelConfig, leaves: Leaves, step: int, **run: object) -> None:
    trees = unflatten(leaves, variable_targets(M6Rec(config)))
    with CheckpointStore(folder / "checkpoints", asynchronous=False) as store:
        store.save(
            step,
            {name: jax.tree.map(jax.numpy.asarray, tree) for name, tree in trees.items()},
            data={},
            run=RunDescription(config, **run),
        )


def assert_same(found: Leaves, expected: Leaves) -> None:
    assert set(found) == set(expected)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def read_ours(folder: Path) -> Leaves:
    restored = restore_model(folder)
    return {name: np.asarray(leaf) for name, leaf in flatten(dict(restored.variables)).items()}


def test_there_and_back_is_bit_exact(shop_vocabulary: Vocabulary, tmp_path: Path) -> None:
    config = toy_config(vocab_size=shop_vocabulary.size)
    leaves = random_leaves(config)
    our_run(
        tmp_path / "ours",
        config,
        leaves,
        step=70,
        vocabulary_fingerprint=shop_vocabulary.fingerprint,
        trainable="prompts",
    )
    save_assets(
        tmp_path / "ours", shop_vocabulary, InferenceSettings(16, 8), {"shop": {"name": "shop"}}
    )
    report = convert(str(tmp_path / "ours"), f"t5x_bridge:{tmp_path / 'theirs'}")
    assert "of step 70, prompts included" in report
    assert (tmp_path / "theirs" / "checkpoint_70" / "checkpoint").is_file()
    # Converted anew, the tasks are those of now.
    shutil.rmtree(tmp_path / "theirs" / "checkpoint_70")
    old = tmp_path / "theirs" / "inference" / "datasets" / "old.json"
    old.write_text("{}")
    convert(str(tmp_path / "ours"), f"t5x_bridge:{tmp_path / 'theirs'}")
    assert not old.exists()
    convert(f"t5x_bridge:{tmp_path / 'theirs'}", str(tmp_path / "back"))
    assert_same(read_ours(tmp_path / "back"), leaves)
    manifest = open_checkpoint(tmp_path / "back").manifest
    assert (manifest.step, manifest.trainable) == (70, "prompts")
    # Vocabulary, lengths and templates came along.
    assert (tmp_path / "back" / "inference" / "datasets" / "shop.json").is_file()
    loaded = load_model(tmp_path / "back")
    assert loaded.model.config == config
    assert loaded.settings.source_length == 16
    # Those of another run would be taken for its own.
    save_assets(tmp_path / "stale", shop_vocabulary, InferenceSettings(32, 8))
    with pytest.raises(CheckpointError, match=r"stale is a run already.*it has inference; name a"):
        convert(f"t5x_bridge:{tmp_path / 'theirs'}", str(tmp_path / "stale"))
    convert(f"t5x_bridge:{tmp_path / 'theirs' / 'checkpoint_70'}", str(tmp_path / "theirs"))
    assert_same(read_ours(tmp_path / "theirs"), leaves)
    # A run that t5x has begun goes on with what is there.
    description = tmp_path / "theirs" / "m6rec.json"
    told = json.loads(description.read_text())
    description.write_text(json.dumps(told | {"extra": {"trained_by": "t5x"}}))
    shutil.rmtree(tmp_path / "theirs" / "checkpoint_70")
    with pytest.raises(CheckpointError, match="is a run under t5x, which goes on"):
        convert(str(tmp_path / "ours"), f"t5x_bridge:{tmp_path / 'theirs'}")
    assert (tmp_path / "theirs" / "inference").is_dir()


def test_what_t5x_writes_through_orbax(tmp_path: Path) -> None:
    config = toy_config()
    for step in (20, 100):
        write_orbax(random_leaves(config, seed=step), tmp_path, step)
    described(tmp_path, config)
    assert from_t5x(tmp_path, epath.Path(tmp_path / "newest"))[0] == 100
    assert_same(read_ours(tmp_path / "newest"), random_leaves(config, seed=100))
    from_t5x(tmp_path / "checkpoint_20", epath.Path(tmp_path / "other"))
    assert_same(read_ours(tmp_path / "other"), random_leaves(config, seed=20))


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    config = toy_config()
    leaves = under_t5x(random_leaves(config))
    del leaves["target.prompts.bank.soft_prompts"]
    leaves["target.encoder.extra"] = np.ones(3, np.float32)
    leaves["target.token_embedder.embedding"] = np.ones((5, 2), np.float32)
    write_t5x_files(leaves, tmp_path, 3)
    described(tmp_path, config)
    with pytest.raises(CheckpointError) as caught:
        from_t5x(tmp_path, epath.Path(tmp_path / "ours"))
    for part in (
        "no tensor 'target.prompts.bank.soft_prompts'",
        "'target.encoder.extra' [3] has no place",
        "'target.token_embedder.embedding' is [5, 2], wanted [32, 16]",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_errors(tmp_path: Path) -> None:
    config = toy_config()
    write_orbax(random_leaves(config), tmp_path, 1)
    ours = epath.Path(tmp_path / "ours")
    with pytest.raises(CheckpointError, match=f"a file {DESCRIPTION_FILE}"):
        from_t5x(tmp_path, ours)
    described(tmp_path, config)
    from_t5x(tmp_path, ours)
    with pytest.raises(CheckpointError, match="has a checkpoint already"):
        from_t5x(tmp_path, ours)
    to_t5x(ours, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="exists already"):
        to_t5x(ours, tmp_path / "theirs")
    with pytest.raises(ConfigError, match="convert to m6rec first"):
        convert(f"t5x_bridge:{tmp_path}", f"huggingface:{tmp_path / 'hf'}")
    next((tmp_path / "checkpoint_1" / "state").glob("manifest.ocdbt")).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        from_t5x(tmp_path, epath.Path(tmp_path / "again"))

"""A model folder is loaded as it was saved."""

import dataclasses

import jax
import numpy as np
import pytest

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.model_folder import InferenceSettings, load_model, save_assets
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.sharding import data_parallel, make_mesh
from tests.pipeline import shop_rows

EXAMPLE = shop_rows.rows_of("test")["groups"][0]
TEMPLATE = {
    "event": "{outcome} {title}",
    "candidate": "{title}",
    "item": "{title}",
    "outcomes": [{"text": "liked"}],
}
SHOP, SPEC = "shop.by_time", {"name": "shop", "template": TEMPLATE}


@pytest.fixture(scope="module")
def model_dir(tiny, tmp_path_factory):
    model, variables, vocabulary = tiny
    folder = tmp_path_factory.mktemp("model")
    run = RunDescription(model.config, vocabulary.fingerprint, "prompts", 4)
    with CheckpointStore(folder / "checkpoints") as store:
        store.save(7, dict(variables), data={}, run=run, frozen=("params",))
    task = TaskSettings(1, positive_classes=(1, 2), prepared=SHOP)
    settings = InferenceSettings(96, 64, {"shop_ctr": task})
    save_assets(folder, vocabulary, settings, {SHOP: SPEC})
    return folder


@pytest.mark.parametrize("meshed", [False, True])
def test_loaded_model_scores_as_before(tiny, model_dir, meshed):
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1]) if meshed else None
    loaded = load_model(model_dir, mesh=mesh, rules=data_parallel())
    assert loaded.step == 7
    assert loaded.model.config == tiny[0].config
    assert loaded.vocabulary == tiny[2]
    template = loaded.template()
    assert template is not None
    assert template.outcome(1.0) == "liked"
    task = TaskSettings(1, positive_classes=(1, 2))
    direct = Scorer(*tiny, EngineOptions(96, 64, tasks={"": task}))
    for a, b in zip(jax.tree.leaves(loaded.variables), jax.tree.leaves(tiny[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    history, texts = [EXAMPLE["history"]], [EXAMPLE["candidates"]]
    np.testing.assert_allclose(
        loaded.scorer("shop_ctr").score_requests(history, texts)[0],
        direct.score_requests(history, texts)[0],
        atol=1e-6,
    )
    assert loaded.retriever().embed_users(history).shape == (1, 16)
    with pytest.raises(ConfigError, match="knows no task 'shop_cvr': shop_ctr"):
        loaded.scorer("shop_cvr")


def test_a_fingerprint_tells_models_apart_and_not_meshes(model_dir):
    loaded = load_model(model_dir)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    on_mesh = load_model(model_dir, mesh=mesh, rules=data_parallel())
    assert loaded.fingerprint() == on_mesh.fingerprint("shop_ctr")
    flat, tree = jax.tree.flatten(loaded.variables)
    flat[-1] = flat[-1].at[(0,) * flat[-1].ndim].add(1e-3)
    settings = dataclasses.replace(loaded.settings, tasks={"": TaskSettings()})
    others = [
        dataclasses.replace(loaded, **change)
        for change in (
            {"variables": jax.tree.unflatten(tree, flat)},
            {"settings": settings},
            {"dataset_specs": {}},
        )
    ]
    assert len({loaded.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_clear_errors(model_dir, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(tmp_path / "nothing")
    (tmp_path / "checkpoints").symlink_to(model_dir / "checkpoints")
    with pytest.raises(CheckpointError, match=r"vocabulary\.model is missing"):
        load_model(tmp_path)
    other = shop_rows.make_vocabulary(tmp_path, size=320)
    save_assets(tmp_path, other, InferenceSettings(96, 64))
    with pytest.raises(CheckpointError, match="another vocabulary"):
        load_model(tmp_path)
    (tmp_path / "inference" / "settings.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"settings\.json is damaged"):
        load_model(tmp_path)

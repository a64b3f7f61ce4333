"""Seven tasks of unlike methods and sizes on one tiny backbone, and what each computes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import linen as nn

from m6rec_jax.bank.capacity import BankCapacity
from m6rec_jax.bank.folder import BankFolder, PromptManifest, TaskPrompts, method_of
from m6rec_jax.checkpoints.fingerprint import backbone_fingerprint, fingerprint
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.trees import nested
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.model_folder import InferenceSettings, save_assets
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.layout import prompt_leaves
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.text.vocabulary import Vocabulary
from tests.random_variables import filled

S, T = 48, 24
# One shape, so that whatever is asked for together is one batch.
OPTIONS = EngineOptions(S, T, batch_sizes=(8,))
# For any of the tasks.
ROOM = BankCapacity(
    num_tasks=6,
    num_prompts=18,
    num_options=18,
    adapter_rank=3,
    lora_rank=3,
    embedding_rank=2,
    pooling_rank=2,
    lora_targets=("query", "value", "out"),
    ia3_targets=("key", "value", "hidden"),
    retrieval_dim=8,
    num_segment_embeddings=4,
    adapters_late_only=False,
)


class Backbone(NamedTuple):
    config: ModelConfig
    params: Any
    vocabulary: Vocabulary


def backbone_config(vocabulary: Vocabulary) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary.size,
        embed_dim=16,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=8,
        mlp_dim=16,
        logits_via_embedding=True,
        # Late interaction: one early and one late layer in each tower.
        late_layers_start=1,
        dropout_rate=0.1,
    )


def random_params(config: ModelConfig, seed: int) -> Any:
    shapes = jax.eval_shape(M6Rec(config).init, jax.random.key(0), initial_features())
    return filled(nn.meta.unbox(shapes)["params"], seed)


@pytest.fixture(scope="session")
def backbone(shop_vocabulary: Vocabulary) -> Backbone:
    config = backbone_config(shop_vocabulary)
    return Backbone(config, random_params(config, 0), shop_vocabulary)


def tasks_of(vocabulary: Vocabulary) -> dict[str, tuple[PromptConfig, TaskSettings]]:
    """Scoring with 2, 5, 18 and 2 classes, two retrievals, a language task."""
    special = tuple(vocabulary.special_ids)
    scoring = TaskSettings(kind="scoring", sampling_rate=0.5)
    return {
        "ctr": (
            PromptConfig(
                num_prompts=5,
                num_options=2,
                head="option",
                adapter_rank=2,
                special_token_ids=special[2:],
                num_segment_embeddings=2,
            ),
            scoring,
        ),
        "stars": (
            PromptConfig(
                num_prompts=7,
                num_options=5,
                head="option",
                lora_rank=2,
                lora_scale=0.5,
                lora_targets=("query", "out"),
                embedding_rank=1,
                pooling_rank=2,
                special_token_ids=special[:2],
            ),
            TaskSettings(kind="scoring", positive_classes=(3, 4)),
        ),
        "genres": (
            PromptConfig(
                num_prompts=3,
                num_options=18,
                head="linear",
                num_segment_embeddings=4,
                embedding_rank=2,
                ia3_targets=("key", "value", "hidden"),  # type: ignore[call-arg]
            ),
            TaskSettings(kind="scoring", positive_classes=(7, 17)),
        ),
        "probe": (PromptConfig(num_options=2, head="linear"), scoring),
        "next": (
            PromptConfig(num_prompts=4, adapter_rank=3, retrieval_dim=8, adapters_late_only=True),
            TaskSettings(kind="retrieval"),
        ),
        "near": (
            PromptConfig(
                lora_rank=3,
                lora_targets=("value",),
                retrieval_dim=5,
                embedding_rank=2,
                pooling_rank=1,
            ),
            TaskSettings(kind="retrieval"),
        ),
        "titles": (
            PromptConfig(
                num_prompts=2,
                adapter_rank=1,
                lora_rank=1,
                ia3_targets=("hidden",),  # type: ignore[call-arg]
                adapters_late_only=True,
            ),
            TaskSettings(kind="language", target_length=12),
        ),
    }


def make_prompts(
    backbone: Backbone, name: str, prompts: PromptConfig, settings: TaskSettings, seed: int
) -> TaskPrompts:
    """Random tensors, none of them zero, as if trained on the backbone."""
    config = backbone.config.replace(prompts=prompts)
    rng = np.random.default_rng(seed)
    tensors = {
        tensor: (0.5 * rng.normal(size=leaf.of_task().shape)).astype(np.float32)
        for tensor, leaf in prompt_leaves(config).items()
    }
    spec = {"name": "shop", "template": shop_rows_template()}
    manifest = PromptManifest(
        task=name,
        method=method_of(prompts, "prompts"),
        date="2025-01-02T03:04:05+00:00",
        backbone_fingerprint=backbone_fingerprint(backbone.params),
        backbone_size=sum(leaf.size for leaf in jax.tree.leaves(backbone.params)),
        vocabulary_fingerprint=backbone.vocabulary.fingerprint,
        prompts_fingerprint=fingerprint(tensors),
        model_config=config,
        settings=dataclasses.replace(
            settings,
            num_options=prompts.num_options,
            retrieval_dim=prompts.retrieval_dim,
            source_length=S,
            target_length=settings.target_length or T,
        ),
        metrics={"validation/auc": 0.75},
        source={"run": "runs/made-up", "task": f"shop_{name}", "step": 7},
        size=sum(tensor.size for tensor in tensors.values()),
        dataset_spec=spec,
    )
    return TaskPrompts(manifest, tensors)


def shop_rows_template() -> dict[str, Any]:
    return {
        "event": "{outcome} {title}",
        "candidate": "{title}",
        "item": "{title}",
        "outcomes": [{"text": "liked"}],
    }


@pytest.fixture(scope="session")
def all_prompts(backbone: Backbone) -> dict[str, TaskPrompts]:
    return {
        name: make_prompts(backbone, name, prompts, settings, seed)
        for seed, (name, (prompts, settings)) in enumerate(tasks_of(backbone.vocabulary).items())
    }


@pytest.fixture(scope="session")
def bank_path(
    all_prompts: dict[str, TaskPrompts], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """All seven on disk. Not to be changed: copy it."""
    bank = BankFolder(tmp_path_factory.mktemp("banks") / "bank")
    for prompts in all_prompts.values():
        bank.add(prompts)
    return bank.path


def save_backbone(folder: Path, backbone: Backbone) -> Path:
    """A run's folder, without prompts of its own."""
    run = RunDescription(backbone.config, backbone.vocabulary.fingerprint, "all", 4)
    with CheckpointStore(folder / "checkpoints") as store:
        store.save(3, {"params": backbone.params, "prompts": {}}, data={}, run=run)
    save_assets(folder, backbone.vocabulary, InferenceSettings(S, T))
    return folder


@pytest.fixture(scope="session")
def backbone_dir(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("foundation"), backbone)


Alone = Callable[[str], tuple[M6Rec, dict[str, Any]]]


@pytest.fixture(scope="session")
def alone(backbone: Backbone, all_prompts: dict[str, TaskPrompts]) -> Alone:
    """A model of one task: built from the task's own configuration, nothing of a bank in it."""

    def make(name: str) -> tuple[M6Rec, dict[str, Any]]:
        prompts = all_prompts[name]
        config = prompts.manifest.model_config
        leaves = prompt_leaves(config)
        tensors = {
            tensor: np.expand_dims(values, leaves[tensor].task_axis)
            for tensor, values in prompts.tensors.items()
        }
        return M6Rec(config), {"params": backbone.params, "prompts": nested(tensors)}

    return make

"""(IA)³: scaled kernels, nothing at the start, the task's own rows, and a bank's beside others."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import pytest

from m6rec_jax import configuration
from m6rec_jax.bank.capacity import BankCapacity
from m6rec_jax.bank.folder import BankFolder
from m6rec_jax.bank.loading import load_bank
from m6rec_jax.bank.manifest import method_of
from m6rec_jax.engine.scoring import Scorer
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.training.parameter_table import count_parameters
from tests.bank import conftest as banks
from tests.model.test_numpy_reference import Reference
from tests.pipeline import shop_rows

Make = Callable[..., dict[str, Any]]
Features = dict[str, np.ndarray]
SETTINGS: dict[str, Any] = {"ia3_targets": ("key", "value", "hidden")}


def with_ia3(config: ModelConfig, **changes: Any) -> ModelConfig:
    prompts = dataclasses.replace(config.prompts, **SETTINGS, **changes)
    return config.replace(prompts=prompts)


def hidden(config: ModelConfig, variables: Any, features: Features) -> np.ndarray:
    return np.asarray(jax.jit(M6Rec(config).apply)(variables, features).hidden)


def merged(variables: Any) -> dict[str, Any]:
    """The backbone with scaled kernels: columns of keys and values, rows of the second matrix."""
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float64), variables["params"])
    for tower, kinds in (("encoder", ("self",)), ("decoder", ("self", "cross"))):
        layers, own = params[tower]["layers"], variables["prompts"][tower]["layers"]
        for kind in kinds:
            for name in ("key", "value"):
                factors = own[f"{kind}_attention"][f"ia3_{name}"]["factors"][:, 0]
                layers[f"{kind}_attention"][name]["kernel"] *= factors[:, None]
        layers["mlp"]["wo"]["kernel"] *= own["mlp"]["ia3_hidden"]["factors"][:, 0, :, None]
    return {"params": params, "prompts": variables["prompts"]}


def test_equals_the_numpy_reference(
    config: ModelConfig, make_variables: Make, features: Features
) -> None:
    variables = make_variables(with_ia3(config))
    reference = Reference(config, merged(variables))
    actual = hidden(with_ia3(config), variables, features)
    for row in range(3):
        source, present = reference.encode(
            features["encoder_input_tokens"][row], features["encoder_block_ids"][row]
        )
        expected = reference.decode(
            source,
            present,
            features["decoder_input_tokens"][row],
            features["decoder_block_ids"][row],
            features["retrieval"][row, 0] == 0,
            first_cross=1,
        )
        real = features["decoder_block_ids"][row] > 0
        np.testing.assert_allclose(actual[row][real], expected[real], rtol=3e-5, atol=3e-5)


def test_served_from_a_bank_beside_option_adapter_tasks(tmp_path: Path) -> None:
    """Added to a loaded bank and scored in one batch: each task as by itself."""
    vocabulary = shop_rows.make_vocabulary(tmp_path)
    config = banks.backbone_config(vocabulary)
    backbone = banks.Backbone(config, banks.random_params(config, 0), vocabulary)
    tasks = {
        "ctr": PromptConfig(num_prompts=3, num_options=2, head="option", adapter_rank=2),
        "late": PromptConfig(num_options=2, head="linear", adapters_late_only=True, **SETTINGS),
        "scaled": PromptConfig(num_options=2, head="linear", **SETTINGS),
    }
    kind = TaskSettings(kind="scoring", sampling_rate=0.5)
    folder = BankFolder(tmp_path / "bank")
    for seed, (name, own) in enumerate(tasks.items()):
        folder.add(banks.make_prompts(backbone, name, own, kind, seed))
    foundation = banks.save_backbone(tmp_path / "foundation", backbone)
    with pytest.raises(ConfigError, match=r"\['hidden', .* BankCapacity.ia3_targets"):
        load_bank(folder.path, foundation, tasks=["ctr"]).add("scaled")

    room = BankCapacity(num_options=2, **SETTINGS)
    bank = load_bank(folder.path, foundation, tasks=["ctr"], capacity=room)
    bank.add("late")
    bank.add("scaled")
    assert [bank.manifests[name].method for name in tasks] == ["option_adapter", "ia3", "ia3"]
    examples = shop_rows.rows_of("test")["groups"][:3]
    histories = [example["history"] for example in examples]
    candidates = [example["candidates"][:2] for example in examples]
    mixed = bank.scorer(batch_sizes=(4,)).score_requests(histories, candidates, list(tasks))
    for row, (name, own) in enumerate(tasks.items()):
        tensors = bank.folder.read(name).tensors
        variables = {"params": backbone.params, "prompts": stacked(tensors)}
        model = M6Rec(config.replace(prompts=own))
        task = TaskSettings(sampling_rate=0.5)
        options = dataclasses.replace(banks.OPTIONS, tasks={"": task})
        scorer = Scorer(model, variables, vocabulary, options)
        (expected,) = scorer.score_requests([histories[row]], [candidates[row]])
        np.testing.assert_allclose(mixed[row], expected, rtol=2e-4, atol=2e-5)
    others = bank.scorer("ctr", batch_sizes=(4,)).score_requests(histories, candidates)
    assert all(np.abs(mixed[row] - others[row]).max() > 1e-3 for row in (1, 2))


def stacked(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """A tree of one task's tensors, with the axis of tasks."""
    tree: dict[str, Any] = {}
    for name, values in tensors.items():
        *folders, last = name.split("/")
        node = tree
        for part in folders:
            node = node.setdefault(part, {})
        node[last] = np.expand_dims(values, 0 if name.startswith("bank/") else 1)
    return tree


def test_gin_file() -> None:
    with gin.unlock_config():
        configuration.parse_config(
            ["gin_configs/models/mini.gin", "gin_configs/tuning/ia3.gin"], ["NUM_OPTIONS = 3"]
        )
        config, trainable = configuration.macro("MODEL").config, configuration.macro("TRAINABLE")
        gin.clear_config()
    assert method_of(config.prompts, trainable) == "ia3"
    table = count_parameters(config, trainable)
    of_attention, of_mlp, head = 2 * 128, 256, 3 * 128 + 3
    vectors = 2 * (of_attention + of_mlp) + 2 * (2 * of_attention + of_mlp)
    assert table.count("prompts") == vectors + head
    assert ("(IA)³ vectors", vectors) in {(group.name, group.count) for group in table.groups}


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="ia3_targets has unknown 'keys'; known: key, value"):
        PromptConfig(ia3_targets=("keys",))  # type: ignore[call-arg]

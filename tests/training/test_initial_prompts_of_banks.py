"""Where the prompts of several tasks start that are tuned in one run."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.layout import prompt_leaves, take_task
from m6rec_jax.sharding import data_parallel, make_mesh
from m6rec_jax.training.initial_prompts import with_options_of_words
from m6rec_jax.training.initialization import variables_from_checkpoint
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.train_state import TrainSetup
from tests.training.test_initial_options import CONFIG, WORDS, variables_of


def saved(variables: Any, config: ModelConfig, folder: Path) -> None:
    run = RunDescription(config, "words", "prompts", 1)
    with CheckpointStore(folder / "checkpoints") as store:
        store.save(1, variables, data={}, run=run)


def started_from(folder: Path, config: ModelConfig, prompts: str = "matching") -> tuple[Any, Any]:
    """The variables of a run at its start, and their shapes."""
    setup = TrainSetup(M6Rec(config), adamw(1e-3), make_mesh(), data_parallel(), "prompts", seed=1)
    run = RunDescription(config, "words")
    taken = variables_from_checkpoint(setup, str(folder), run, prompts)
    return taken, setup.abstract_state.variables


def test_prompts_that_would_mean_something_else_are_not_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tensors have equal shapes, but are of other tokens, another scale, another activation."""
    prompts = PromptConfig(
        num_prompts=4, head="none", adapter_rank=2, lora_rank=2, special_token_ids=(1, 2)
    )
    config = dataclasses.replace(CONFIG, prompts=prompts)
    _, variables = variables_of(config)
    marked = {**variables, "prompts": jax.tree.map(lambda leaf: leaf + 7.0, variables["prompts"])}
    saved(marked, config, tmp_path)

    def taken(**changed: Any) -> set[str]:
        other = dataclasses.replace(config, prompts=dataclasses.replace(prompts, **changed))
        found, _ = started_from(tmp_path, other)
        before = flatten(marked["prompts"])
        return {
            name
            for name, leaf in flatten(found["prompts"]).items()
            if np.array_equal(leaf, before[name])
        }

    everything = set(flatten(marked["prompts"]))
    assert taken() == everything
    assert "mean something else" not in caplog.text
    for changed, part in (
        ({"special_token_ids": (1, 3)}, "special_token"),
        ({"lora_scale": 8.0}, "lora_"),
        ({"adapter_activation": "relu"}, "adapter"),
    ):
        assert taken(**changed) == {name for name in everything if part not in name}
        name = next(iter(changed))
        assert f"PromptConfig.{name}: " in caplog.text
        other = dataclasses.replace(config, prompts=dataclasses.replace(prompts, **changed))
        with pytest.raises(CheckpointError, match=rf"mean something else here .*{name}: "):
            started_from(tmp_path, other, "all")


def test_words_of_one_task_of_a_bank() -> None:
    sizes = {"num_tasks": 2, "task_num_options": (3, 2)}
    config = dataclasses.replace(CONFIG, prompts=dataclasses.replace(CONFIG.prompts, **sizes))
    model, variables = variables_of(config)
    with pytest.raises(ConfigError, match=r"the model has 2 or 3 \(.*\); give words by the task"):
        with_options_of_words(variables, model.config, WORDS)
    with pytest.raises(ConfigError, match=r"names 3 classes, but task 1 has 2 \(Pr"):
        with_options_of_words(variables, model.config, WORDS, 1)
    changed = with_options_of_words(variables, model.config, WORDS[:2], 1)
    before, after = (np.asarray(s["prompts"]["bank"]["soft_prompts"]) for s in (variables, changed))
    table = np.asarray(
        model.apply({"params": variables["params"]}, jnp.eye(16)[None], method=model.token_logits)[
            0
        ]
    )
    np.testing.assert_allclose(after[1, 2:], table[:, [5, 7]].T * 4.0, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after[1, :2], before[1, :2])
    np.testing.assert_array_equal(after[0], before[0])


def test_one_tasks_prompts_go_to_every_task_of_a_bank(tmp_path: Path) -> None:
    """A foundation's projections are where every retrieval task of a mixture starts."""
    prompts = PromptConfig(num_prompts=2, adapter_rank=2, retrieval_dim=4)
    foundation = dataclasses.replace(CONFIG, prompts=prompts)
    _, variables = variables_of(foundation)
    saved(variables, foundation, tmp_path)
    bank = dataclasses.replace(prompts, num_tasks=3, num_prompts=5)
    config = dataclasses.replace(CONFIG, prompts=bank)
    taken, abstract = started_from(tmp_path, config)
    own, found = flatten(variables["prompts"]), flatten(taken["prompts"])
    for name, axis in (
        ("bank/user_projection", 0),
        ("bank/item_projection", 0),
        ("decoder/layers/mlp/adapter/wi", 1),
    ):
        for task in range(3):
            np.testing.assert_array_equal(
                np.take(np.asarray(found[name]), task, axis),
                np.take(np.asarray(own[name]), 0, axis),
            )
    assert found["bank/soft_prompts"].shape == (3, 5, 16)
    for name, leaf in flatten(abstract["prompts"]).items():
        assert found[name].sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def with_values(variables: Any) -> Any:
    """As after training: second matrices are no zeros any more."""
    return {**variables, "prompts": jax.tree.map(lambda leaf: leaf + 1.0, variables["prompts"])}


def test_a_task_of_a_smaller_size_starts_anew(tmp_path: Path) -> None:
    """Ranks beyond its own would take part in what it computes, and be left out when saved."""
    prompts = PromptConfig(num_prompts=2, adapter_rank=3, lora_rank=2, retrieval_dim=4)
    foundation = dataclasses.replace(CONFIG, prompts=prompts)
    _, variables = variables_of(foundation)
    variables = with_values(variables)
    saved(variables, foundation, tmp_path)
    bank = dataclasses.replace(
        prompts, num_tasks=2, task_adapter_ranks=(3, 1), task_lora_ranks=(1, 2)
    )
    config = dataclasses.replace(CONFIG, prompts=bank)
    taken, _ = started_from(tmp_path, config)
    found, own = flatten(taken["prompts"]), flatten(variables["prompts"])
    for task in range(2):
        alone = prompt_leaves(dataclasses.replace(CONFIG, prompts=bank.of_task(task)))
        for name, leaf in prompt_leaves(config).items():
            values = np.take(np.asarray(found[name]), task, leaf.task_axis)
            theirs = np.take(np.asarray(own[name]), 0, leaf.task_axis)
            if alone[name].of_task() == leaf.of_task():
                np.testing.assert_array_equal(values, theirs, err_msg=name)
                continue
            # Padded anew, what is exported is what there is.
            exported = take_task(found, config, task, bank.of_task(task))[name]
            assert (np.count_nonzero(values)) == np.count_nonzero(exported), name
            assert not np.isin(values[values != 0], theirs).any(), name


def test_a_banks_tasks_keep_their_sizes(tmp_path: Path) -> None:
    """Shapes are those of the largest task, so they do not tell."""
    prompts = PromptConfig(
        num_tasks=2, num_prompts=2, adapter_rank=3, retrieval_dim=4, task_adapter_ranks=(3, 1)
    )
    bank = dataclasses.replace(CONFIG, prompts=prompts)
    _, variables = variables_of(bank)
    variables = with_values(variables)
    saved(variables, bank, tmp_path)
    swapped = dataclasses.replace(
        CONFIG, prompts=dataclasses.replace(prompts, task_adapter_ranks=(1, 3))
    )
    with pytest.raises(CheckpointError, match=r"other sizes .*task_adapter_ranks: \[3, 1\] -> \[1"):
        started_from(tmp_path, swapped, "all")
    taken, _ = started_from(tmp_path, swapped)
    found, own = flatten(taken["prompts"]), flatten(variables["prompts"])
    np.testing.assert_array_equal(found["bank/user_projection"], own["bank/user_projection"])
    name = "decoder/layers/mlp/adapter/wi"
    assert not np.asarray(found[name])[0, 0, :, 1:].any()
    same, _ = started_from(tmp_path, bank, "all")
    np.testing.assert_array_equal(flatten(same["prompts"])[name], own[name])

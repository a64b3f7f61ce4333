"""The model under t5x's own trainer, against the built-in one: losses and what is frozen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.candidates.scoring import class_log_probabilities
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import window_means
from m6rec_jax.sharding import data_parallel, make_mesh, place_batch
from m6rec_jax.text.rows import generation_row
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.train_state import TrainSetup, TrainState
from m6rec_jax.training.train_step import make_train_step
from tests.t5x_bridge.needs_t5x import REASON
from tests.training.toy_run import ROWS, toy_batch, toy_config

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)

from t5x import adafactor, partitioning, utils

from m6rec_jax.t5x_bridge import variables
from m6rec_jax.t5x_bridge.model import M6RecModel
from m6rec_jax.t5x_bridge.trainer import M6RecTrainer


def built_in(config: Any, trainable: str) -> tuple[M6Rec, TrainState, Any, Any]:
    """The built-in trainer's model, first state, next state and scalars for one batch."""
    mesh = make_mesh(devices=jax.devices()[:1])
    setup = TrainSetup(M6Rec(config), adamw(1e-2), mesh, data_parallel(), trainable)
    state, step = initial_state(setup), jax.jit(make_train_step(setup))
    with jax.set_mesh(mesh):
        after, scalars = step(state, place_batch(batch(), mesh))
    return setup.model, state, after, scalars


def batch() -> dict[str, np.ndarray]:
    return toy_batch(np.random.default_rng(3), ROWS)


def under_t5x(
    model: M6RecModel, first: TrainState | None, num_microbatches: int | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """t5x's state before and after one step, and its metrics."""
    partitioner = partitioning.PjitPartitioner(
        num_partitions=1, logical_axis_rules=variables.logical_axis_rules()
    )
    features = batch()
    initializer = utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={name: x.shape for name, x in features.items()},
        partitioner=partitioner,
    )
    state = initializer.from_scratch(jax.random.PRNGKey(0))
    if first is not None:
        params = variables.joined(jax.tree.map(jnp.array, first.variables))
        state = state.replace_params(type(state.params)(params))
    before = jax.tree.map(np.asarray, dict(state.params))
    trainer = M6RecTrainer(
        model=model,
        train_state=state,
        partitioner=partitioner,
        eval_names=[],
        summary_dir=None,
        train_state_axes=initializer.train_state_axes,
        rng=jax.random.PRNGKey(0),
        learning_rate_fn=lambda step: 1e-2,
        num_microbatches=num_microbatches,
    )
    after, metrics = trainer._partitioned_train_step(state, features)
    trainer.close()
    return before, after, metrics


def roomy(vocabulary: Vocabulary, **changes: Any) -> ModelConfig:
    """A model with a row for each of the task's ids."""
    return toy_config(**{"vocab_size": vocabulary.size, "dropout_rate": 0.0} | changes)


def bridged(config: Any, task: str, trainable: str) -> M6RecModel:
    optimizer = adafactor.Adafactor(
        decay_rate=0.8, logical_factor_rules=variables.logical_factor_rules(), epsilon2=0.1
    )
    return M6RecModel(M6Rec(config), task, optimizer, trainable=trainable)


@pytest.mark.parametrize("trainable", ["prompts", "all"])
def test_first_step_is_the_built_in_trainers(
    trainable: str, task: str, shop_vocabulary: Vocabulary
) -> None:
    config = roomy(shop_vocabulary)
    _, first, _, metrics_of_ours = built_in(config, trainable)
    scalars = window_means([metrics_of_ours], ())
    before, after, metrics = under_t5x(bridged(config, task, trainable), first)
    assert float(metrics["loss"].total) == pytest.approx(float(scalars["loss"]), abs=1e-5)
    for name in ("classification/accuracy", "language_modelling/loss"):
        value = metrics[name]
        assert float(value.total / value.count) == pytest.approx(float(scalars[name]), abs=1e-5)
    assert int(after.step) == 1
    changed = {
        name
        for name, value in flatten(dict(after.params)).items()
        if not np.array_equal(value, flatten(before)[name])
    }
    prompts = {name for name in flatten(before) if name.startswith("prompts/")}
    assert changed & prompts
    # Bit by bit the same, and t5x keeps nothing for it.
    assert bool(changed - prompts) == (trainable == "all")
    states = flatten(jax.tree.map(np.asarray, dict(after.param_states)))
    of_backbone = [name for name in states if not name.startswith("prompts/")]
    assert bool(of_backbone) == (trainable == "all")


def test_microbatches_are_the_whole_batch(task: str, shop_vocabulary: Vocabulary) -> None:
    """Their numbers of tokens and labels differ: means of means would be another loss."""
    config = roomy(shop_vocabulary)
    _, whole, metrics = under_t5x(bridged(config, task, "all"), None)
    _, parts, of_parts = under_t5x(bridged(config, task, "all"), None, num_microbatches=4)
    assert float(of_parts["loss"].total) == pytest.approx(float(metrics["loss"].total), abs=1e-5)
    for name, value in flatten(dict(whole.params)).items():
        # Adafactor divides by the root of what may be tiny.
        np.testing.assert_allclose(
            flatten(dict(parts.params))[name], value, atol=2e-4, err_msg=name
        )


def test_scores_are_those_of_m6rec_eval(task: str, shop_vocabulary: Vocabulary) -> None:
    config = roomy(shop_vocabulary)
    model, first, _, _ = built_in(config, "prompts")
    bridge = bridged(config, task, "prompts")
    _, found = jax.jit(bridge.score_batch)(variables.joined(first.variables), batch())
    expected = class_log_probabilities(model, first.variables, batch())
    np.testing.assert_allclose(found["log_probabilities"], expected, atol=1e-5)
    assert {"decoder_labels", "decoder_item_ids", "user_ids"} < set(found)


@pytest.mark.parametrize("prefix", ["", "Film"])
def test_texts_are_the_generators(prefix: str, task: str, shop_vocabulary: Vocabulary) -> None:
    config = roomy(shop_vocabulary)
    model = M6Rec(config)
    made = jax.jit(bridged(config, task, "all").get_initial_variables)
    params = jax.eval_shape(made, jax.random.PRNGKey(0), {})["params"]  # traceable
    params = bridged(config, task, "all").get_initial_variables(jax.random.PRNGKey(0), {})["params"]
    generator = Generator(model, variables.split(params), shop_vocabulary, EngineOptions(16, 6))
    history = ["liked Film A", "liked Film B"]
    # What stands after the beginning is what the task would have written: it must not be seen.
    row = generation_row(shop_vocabulary, history, "Film C", 16, 6, prefix=prefix)
    rows = {
        name: np.pad(value, (0, (16 if name.startswith("encoder") else 6) - len(value)))[None]
        for name, value in row.items()
        if name.startswith(("encoder", "decoder"))
    }
    rows |= {"task_ids": np.zeros((1, 1), np.int32)}
    tokens, aux = bridged(config, task, "all").predict_batch_with_aux(params, rows)
    written = generator.write([TextRequest(history, prefix)])[0]
    assert [int(i) for i in tokens[0] if i] == [*written.tokens]
    assert float(aux["scores"][0]) == pytest.approx(written.log_probability, abs=1e-4)


def test_axes_of_every_parameter(task: str, shop_vocabulary: Vocabulary) -> None:
    prompts = PromptConfig(
        num_tasks=2,
        num_prompts=4,
        num_options=2,
        head="linear",
        adapter_rank=2,
        lora_rank=2,
        embedding_rank=2,
        pooling_rank=2,
        special_token_ids=(1,),
        retrieval_dim=3,
        num_segment_embeddings=2,
    )
    model = bridged(roomy(shop_vocabulary, prompts=prompts), task, "all")
    made = jax.eval_shape(
        lambda key: model.get_initial_variables(key, {})["params"], jax.random.PRNGKey(0)
    )
    axes = flatten_axes(model.get_initial_variables(jax.random.PRNGKey(0), {})["params_axes"])
    shapes = flatten(made)
    assert set(axes) == {f"{name}_axes" for name in shapes}
    known = {name for name, _ in variables.logical_axis_rules()}
    for name, leaf in shapes.items():
        names = axes[f"{name}_axes"].names
        assert len(names) == len(leaf.shape), name
        assert set(names) <= known, f"{name}: t5x has no rule for {set(names) - known}"
        assert set(names) <= set(variables.logical_factor_rules()), name


def flatten_axes(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        key: leaf
        for name, child in tree.items()
        for key, leaf in flatten_axes(child, f"{prefix}{name}/").items()
    }


def test_errors(task: str, shop_vocabulary: Vocabulary) -> None:
    config = roomy(shop_vocabulary)
    with pytest.raises(ConfigError, match="no seqio task or mixture is called 'nothing'"):
        M6RecModel(M6Rec(config), "nothing")
    with pytest.raises(ConfigError, match="trainable = 'some' is not one of"):
        M6RecModel(M6Rec(config), task, trainable="some")
    with pytest.raises(ConfigError, match="verb = 'shout'"):
        M6RecModel(M6Rec(config), task, verb="shout")
    small = bridged(toy_config(), task, "all")
    with pytest.raises(ConfigError, match=r"ids, but ModelConfig\.vocab_size is 32"):
        small.get_initial_variables(jax.random.PRNGKey(0), {})
    without = roomy(shop_vocabulary, prompts=PromptConfig())
    plain = M6RecModel(M6Rec(without), task, trainable="prompts")
    with pytest.raises(ConfigError, match="the model has no prompts"):
        plain.get_initial_variables(jax.random.PRNGKey(0), {})

"""The optimizer step: what trains, accumulation, one compilation, mesh independence."""

from __future__ import annotations

from typing import Any

import gin
import jax
import numpy as np
import optax
import pytest

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import PromptConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import total_loss, window_means
from m6rec_jax.sharding import data_parallel, make_mesh, place_batch
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adafactor, adamw, name_mask
from m6rec_jax.training.train_state import TrainSetup
from m6rec_jax.training.train_step import (
    compile_step,
    evaluation_means,
    make_eval_step,
    make_train_step,
)
from tests.training.toy_run import ROWS, copied, toy_batch, toy_config


@pytest.fixture(autouse=True)
def objectives() -> Any:
    """Language modelling and classification together, whose denominators differ."""
    gin.clear_config()
    gin.bind_parameter("total_loss.classification_weight", 0.5)
    yield
    gin.clear_config()


def setup_of(trainable: str = "all", optimizer: Any = None, **changes: Any) -> TrainSetup:
    model = M6Rec(toy_config(**{"dropout_rate": 0.0, **changes}))
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = optimizer or adamw(1e-2, clip_norm=None)
    return TrainSetup(model, optimizer, mesh, data_parallel(), trainable, seed=1)


def run(
    setup: TrainSetup, batches: list[Any], accumulation: int = 1
) -> tuple[Any, list[dict[str, float]], Any]:
    """The last state, scalars of every step, and the compiled step."""
    state, compiled, history = initial_state(setup), None, []
    step = make_train_step(setup, accumulation_steps=accumulation)
    for batch in batches:
        if accumulation > 1:
            batch = {k: v.reshape(accumulation, -1, *v.shape[1:]) for k, v in batch.items()}
        features = place_batch(batch, setup.mesh, leading=int(accumulation > 1))
        compiled = compiled or compile_step(setup, step, state, features)
        state, metrics = compiled(state, features)
        history.append(window_means([jax.device_get(metrics)], ()))
    return state, history, compiled


def batches(count: int, rows: int = ROWS) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [toy_batch(rng, rows) for _ in range(count)]


def test_accumulation_equals_one_big_batch() -> None:
    data = batches(3)
    one, history_one, _ = run(setup_of(), data)
    four, history_four, _ = run(setup_of(), data, accumulation=4)
    for a, b in zip(history_one, history_four, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-4, abs=1e-6), name
    for name, value in copied(one.variables).items():
        # Adam divides by the gradient's size, so tiny gradients amplify rounding.
        np.testing.assert_allclose(copied(four.variables)[name], value, atol=2e-3, err_msg=name)
    # The parts of the toy's batches do have different numbers of labels and tokens.
    labels = (data[0]["decoder_labels"] >= 0).sum(1).reshape(4, -1).sum(1)
    assert len(set(labels.tolist())) > 1


def test_losses_by_job_add_up_over_parts_of_a_batch() -> None:
    """Two jobs, told apart by the label of a row, with accumulation and without, and validation."""
    data = batches(1)[0]
    jobs = {"even": 2, "odd": 3}
    ids = np.where(np.arange(ROWS) % 2, jobs["odd"], jobs["even"])
    shape = data["decoder_labels"].shape
    data["decoder_job_ids"] = np.broadcast_to(ids[:, None], shape).astype(np.int32)
    logged, setup = [], setup_of()
    state = initial_state(setup)
    for accumulation in (1, 4):
        step = make_train_step(setup, accumulation_steps=accumulation, jobs=tuple(jobs.values()))
        rows = data
        if accumulation > 1:
            rows = {k: v.reshape(accumulation, -1, *v.shape[1:]) for k, v in data.items()}
        _, scalars = jax.jit(step)(state, rows)
        means = window_means([scalars], tuple(jobs))
        logged.append({name: value for name, value in means.items() if name.startswith("loss/")})
    sums = jax.jit(make_eval_step(setup.model, jobs=tuple(jobs.values())))(state, data)
    expected = {n: x for n, x in evaluation_means([sums], tuple(jobs)).items() if "loss/" in n[:5]}
    assert expected.keys() == {"loss/even", "loss/odd"}
    for figures in logged:
        assert figures == pytest.approx(expected, rel=1e-5)


def test_frozen_backbone_is_untouched_and_has_no_optimizer_state() -> None:
    setup = setup_of("prompts")
    before = copied(initial_state(setup).variables)
    state, history, _ = run(setup, batches(3))
    after = copied(state.variables)
    for name in before:
        if name.startswith("params/"):
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert any((before[n] != after[n]).any() for n in before if n.startswith("prompts/"))
    sizes = {name: leaf.size for name, leaf in flatten(state.opt_state).items()}
    assert not [name for name in sizes if "params/" in name]
    moments = sum(size for name, size in sizes.items() if "/mu/" in name)
    assert moments == sum(leaf.size for leaf in jax.tree.leaves(state.prompts))
    assert history[0]["learning_rate"] > 0


# A mask leaves boxes of the state empty.
HALF_MASKED = optax.chain(
    optax.masked(optax.adam(2e-2), lambda tree: name_mask(tree, ("mlp/wo",))),
    optax.masked(optax.set_to_zero(), lambda tree: name_mask(tree, ("^(?!.*mlp/wo)",))),
)


@pytest.mark.parametrize(
    "optimizer",
    [adamw(2e-2), adafactor(5e-2, min_dim_size_to_factor=8), HALF_MASKED],
    ids=["adamw", "adafactor", "masked"],
)
def test_loss_falls_on_a_learnable_toy(optimizer: Any) -> None:
    rng = np.random.default_rng(1)
    _, history, _ = run(setup_of("all", optimizer), [toy_batch(rng, 32)] * 40)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_dropout_depends_on_seed_and_step_only() -> None:
    setup, data = setup_of("prompts", adamw(0.0), dropout_rate=0.3), batches(1) * 2
    once, again = run(setup, data)[1], run(setup, data)[1]
    assert once == again
    assert once[0]["loss"] != once[1]["loss"], "another step draws another mask"


def test_another_batch_shape_is_refused_not_compiled() -> None:
    setup = setup_of("prompts")
    state, _, compiled = run(setup, batches(1))
    with pytest.raises(TypeError, match="decoder_block_ids"):
        compiled(state, place_batch(batches(1, rows=4)[0], setup.mesh))


@jax.custom_jvp
def without_derivative(x: Any) -> Any:
    return x


@without_derivative.defjvp
def _refuse(*_: Any) -> Any:
    raise AssertionError("a validation differentiates nothing")


def test_validation_sums_equal_one_big_batch() -> None:
    def loss(*args: Any, **options: Any) -> Any:
        return jax.tree.map(without_derivative, total_loss(*args, **options))

    setup = setup_of()
    state, step = initial_state(setup), jax.jit(make_eval_step(setup.model, loss=loss))
    rng = np.random.default_rng(8)
    parts = [toy_batch(rng, 4) for _ in range(3)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    sums = [step(state, part) for part in parts]
    added = evaluation_means(jax.device_get(sums), ())
    expected = evaluation_means([step(state, whole)], ())
    for name, value in expected.items():
        assert added[name] == pytest.approx(value, rel=1e-5), name
    by_hand = expected["language_modelling/loss"] + 0.5 * expected["classification/loss"]
    assert expected["loss"] == pytest.approx(by_hand, rel=1e-5)
    # Of what is not there nothing is reported: 0 would be the best loss of all.
    nothing = toy_batch(rng, 4)
    nothing["decoder_loss_weights"] = np.zeros_like(nothing["decoder_loss_weights"])
    nothing["decoder_labels"] = np.full_like(nothing["decoder_labels"], -1)
    assert not {"loss", "classification/accuracy"} & set(
        evaluation_means([step(state, nothing)], ())
    )


def test_what_trains_must_be_there() -> None:
    with pytest.raises(ConfigError, match="the model has no prompts"):
        initial_state(setup_of("prompts", prompts=PromptConfig()))
    with pytest.raises(ConfigError, match="'backbone' is not one of prompts, all"):
        initial_state(setup_of("backbone"))

"""The optimizer step: what trains, accumulation, one compilation, mesh independence."""

from __future__ import annotations

from typing import Any

import gin
import jax
import numpy as np
import optax
import pytest

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.model.config import PromptConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import job_losses
from m6rec_jax.sharding import data_parallel, make_mesh, place_batch
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import Optimizer, adafactor, adamw, name_mask
from m6rec_jax.training.step_loop import window_means
from m6rec_jax.training.train_state import abstract_state
from m6rec_jax.training.train_step import CompiledStep, make_eval_step, make_train_step
from tests.training.toy_run import ROWS, copied, toy_batch, toy_config


@pytest.fixture(autouse=True)
def objectives() -> Any:
    """Language modelling and classification together, whose denominators differ."""
    gin.clear_config()
    gin.bind_parameter("total_loss.classification_weight", 0.5)
    yield
    gin.clear_config()


def setup(
    trainable: str = "all", optimizer: Any = None, config: Any = None, frozen_dtype: Any = None
) -> tuple[Any, ...]:
    model = M6Rec(config or toy_config(dropout_rate=0.0))
    optimizer = optimizer or adamw(1e-2, clip_norm=None)
    mesh, rules = make_mesh(devices=jax.devices()[:1]), data_parallel()
    abstract = abstract_state(
        model, optimizer, mesh, rules, trainable=trainable, frozen_dtype=frozen_dtype
    )
    state = initial_state(model, optimizer, abstract, mesh, rules, trainable=trainable, seed=0)
    return model, optimizer, mesh, rules, abstract, state


def run(
    parts: tuple[Any, ...], batches: list[Any], trainable: str, accumulation: int = 1
) -> tuple[Any, list[dict[str, float]], CompiledStep]:
    model, optimizer, mesh, rules, abstract, state = parts
    function = make_train_step(
        model, optimizer, trainable=trainable, seed=1, accumulation_steps=accumulation
    )
    compiled, history = None, []
    for batch in batches:
        if accumulation > 1:
            batch = {k: v.reshape(accumulation, -1, *v.shape[1:]) for k, v in batch.items()}
        features = place_batch(batch, mesh, leading=int(accumulation > 1))
        if compiled is None:
            compiled = CompiledStep(
                function, abstract, features, mesh=mesh, rules=rules, updates_state=True
            )
        state, metrics = compiled(state, features)
        history.append(window_means([jax.device_get(metrics)], ()))
    assert compiled is not None
    return state, history, compiled


def batches(count: int, rows: int = ROWS) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [toy_batch(rng, rows) for _ in range(count)]


def test_accumulation_equals_one_big_batch() -> None:
    data = batches(3)
    one, history_one, _ = run(setup(), data, "all")
    four, history_four, _ = run(setup(), data, "all", accumulation=4)
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
    logged = []
    for accumulation in (1, 4):
        model, optimizer, *_, state = setup()
        step = make_train_step(
            model,
            optimizer,
            trainable="all",
            seed=1,
            accumulation_steps=accumulation,
            jobs=tuple(jobs.values()),
        )
        rows = data
        if accumulation > 1:
            rows = {k: v.reshape(accumulation, -1, *v.shape[1:]) for k, v in data.items()}
        _, scalars = jax.jit(step)(state, rows)
        logged.append(job_losses(tuple(jobs), [scalars]))
    sums = jax.jit(make_eval_step(model, jobs=tuple(jobs.values())))(state, data)
    expected = {name: x for name, x in sums.scalars(tuple(jobs)).items() if "loss/" in name[:5]}
    assert expected.keys() == {"loss/even", "loss/odd"}
    for figures in logged:
        assert figures == pytest.approx(expected, rel=1e-5)


def test_frozen_backbone_is_untouched_and_has_no_optimizer_state() -> None:
    parts = setup("prompts")
    before = copied(parts[-1].variables)
    state, history, _ = run(parts, batches(3), "prompts")
    after = copied(state.variables)
    for name in before:
        if name.startswith("params/"):
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert any((before[n] != after[n]).any() for n in before if n.startswith("prompts/"))
    optimizer_names = set(flatten(state.opt_state))
    assert optimizer_names
    assert not [name for name in optimizer_names if "params/" in name]
    moments = [leaf.size for name, leaf in flatten(state.opt_state).items() if "/mu/" in name]
    assert sum(moments) == sum(leaf.size for leaf in jax.tree.leaves(state.prompts))
    assert history[0]["learning_rate"] > 0


def test_all_trains_everything_that_is_used() -> None:
    parts = setup("all")
    before = copied(parts[-1].variables)
    state, _, _ = run(parts, batches(3), "all")
    unchanged = [n for n, x in copied(state.variables).items() if (x == before[n]).all()]
    assert unchanged == []


def test_frozen_backbone_in_bfloat16() -> None:
    parts = setup("prompts", frozen_dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(parts[-1].params)} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(parts[-1].prompts)} == {"float32"}
    whole = setup("prompts")
    state, history, _ = run(parts, batches(2), "prompts")
    _, expected, _ = run(whole, batches(2), "prompts")
    losses, wanted = ([step["loss"] for step in one] for one in (history, expected))
    assert losses != wanted
    np.testing.assert_allclose(losses, wanted, rtol=1e-2)  # a weight keeps 8 bits
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {"bfloat16"}


# A mask leaves boxes of the state empty.
HALF_MASKED = optax.chain(
    optax.masked(optax.adam(2e-2), lambda tree: name_mask(tree, ("mlp/wo",))),
    optax.masked(optax.set_to_zero(), lambda tree: name_mask(tree, ("^(?!.*mlp/wo)",))),
)


@pytest.mark.parametrize(
    "optimizer",
    [
        adamw(2e-2),
        adafactor(5e-2, min_dim_size_to_factor=8),
        Optimizer(*HALF_MASKED, rate=None),
    ],
    ids=["adamw", "adafactor", "masked"],
)
def test_loss_falls_on_a_learnable_toy(optimizer: Any) -> None:
    rng = np.random.default_rng(1)
    data = [toy_batch(rng, 32)] * 40
    _, history, _ = run(setup("all", optimizer), data, "all")
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_dropout_depends_on_seed_and_step_only() -> None:
    config = toy_config(dropout_rate=0.3)
    data = batches(1) * 2
    _, once, _ = run(setup("prompts", adamw(0.0), config), data, "prompts")
    _, again, _ = run(setup("prompts", adamw(0.0), config), data, "prompts")
    assert once == again
    assert once[0]["loss"] != once[1]["loss"], "another step draws another mask"


def test_another_batch_shape_is_refused_not_compiled() -> None:
    parts = setup("prompts")
    _, _, compiled = run(parts, batches(1), "prompts")
    features = place_batch(batches(1, rows=4)[0], parts[2])
    with pytest.raises(DataError, match=r"'decoder_block_ids' of shape \(4, 4\)"):
        compiled(setup("prompts")[-1], features)


def test_validation_sums_equal_one_big_batch() -> None:
    model, _, mesh, rules, _, state = setup()
    step = jax.jit(make_eval_step(model))
    rng = np.random.default_rng(8)
    parts = [toy_batch(rng, 4) for _ in range(3)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    del mesh, rules
    sums = [step(state, part) for part in parts]
    added = jax.tree.map(lambda *x: sum(x), *sums).scalars()
    expected = step(state, whole).scalars()
    for name, value in expected.items():
        assert added[name] == pytest.approx(value, rel=1e-5), name
    by_hand = expected["language_modelling/loss"] + 0.5 * expected["classification/loss"]
    assert expected["loss"] == pytest.approx(by_hand, rel=1e-5)
    # Of what is not there nothing is reported: 0 would be the best loss of all.
    nothing = toy_batch(rng, 4)
    nothing["decoder_loss_weights"] = np.zeros_like(nothing["decoder_loss_weights"])
    nothing["decoder_labels"] = np.full_like(nothing["decoder_labels"], -1)
    assert not {"loss", "classification/accuracy"} & set(step(state, nothing).scalars())


def test_prompts_alone_need_prompts() -> None:
    with pytest.raises(ConfigError, match="the model has no prompts"):
        setup("prompts", config=toy_config(prompts=PromptConfig()))


def test_unknown_choice_of_what_trains() -> None:
    with pytest.raises(ConfigError, match="'backbone' is not one of prompts, all"):
        setup("backbone")

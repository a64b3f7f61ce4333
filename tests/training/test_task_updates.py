"""Tasks of one bank are trained as if each were alone; one task as optax would train it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.layout import prompt_leaves, take_task
from m6rec_jax.model.prompts import task_axis
from m6rec_jax.sharding import data_parallel, make_mesh
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adafactor, adamw
from m6rec_jax.training.train_state import TrainSetup, TrainState
from m6rec_jax.training.train_step import make_train_step
from tests.training.toy_run import toy_batch, toy_config

pytestmark = pytest.mark.usefixtures("no_gin")

RATE = 0.01
# Name to shape of one task's slice; the axis of tasks is put in.
SLICES = {
    "prompts/bank/soft_prompts": (5, 8),
    "prompts/bank/head_bias": (3,),
    "prompts/encoder/layers/mlp/adapter/wi": (2, 8, 4),
    "prompts/encoder/layers/mlp/adapter/scale": (2,),
}
BACKBONE = {
    "params/encoder/layers/mlp/wi/kernel": (2, 8, 16),
    "params/token_embedder/table": (9, 8),
}


def axis_of(name: str) -> int:
    return 0 if "/bank/" in name else 1


def random_leaves(seed: int, shapes: dict[str, tuple[int, ...]], scale: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {n: (scale * rng.normal(size=s)).astype(np.float32) for n, s in shapes.items()}


def bank(parts: list[dict[str, Any]], shared: dict[str, Any] | None = None) -> dict[str, Any]:
    """A tree of tasks' slices, stacked, beside what they share."""
    stacked = {n: np.stack([part[n] for part in parts], axis_of(n)) for n in parts[0]}
    return nested({**stacked, **(shared or {})})


def steps(optimizer: Any, start: Any, gradients: list[Any]) -> dict[str, np.ndarray]:
    """Names to values after a step with each of the gradients."""

    @jax.jit
    def step(values: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, values)
        return optax.apply_updates(values, updates), state

    values = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(values)
    for gradient in gradients:
        values, state = step(values, state, gradient)
    return {name: np.asarray(leaf) for name, leaf in flatten(values).items()}


def of_task(values: dict[str, np.ndarray], task: int) -> dict[str, np.ndarray]:
    return {n: np.take(v, task, axis_of(n)) for n, v in values.items() if n.startswith("prompts/")}


@pytest.mark.parametrize(
    ("make", "make_alone", "tasks"),
    [
        (adamw, adamw, 3),
        (adafactor, adafactor, 3),
        # With as many tasks as a matrix has columns, their axis is among the longest: nothing is
        # factored then.
        (functools.partial(adafactor, min_dim_size_to_factor=4), adafactor, 9),
    ],
)
def test_each_task_trains_as_it_would_alone(make: Any, make_alone: Any, tasks: int) -> None:
    optimizer, of_one = (each(RATE, clip_norm=1.0) for each in (make, make_alone))
    starts = [random_leaves(task, SLICES, 0.2 + task) for task in range(tasks)]
    gradients = [
        [random_leaves(100 + 10 * step + task, SLICES, 10.0 ** (task % 3)) for task in range(tasks)]
        for step in range(3)
    ]
    together = steps(optimizer, bank(starts), [bank(parts) for parts in gradients])
    for task in range(tasks):
        alone = steps(of_one, bank([starts[task]]), [bank([parts[task]]) for parts in gradients])
        for name, values in of_task(alone, 0).items():
            found = of_task(together, task)[name]
            np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-7, err_msg=name)


UNLIKE = PromptConfig(
    num_tasks=2,
    num_prompts=6,
    num_options=4,
    adapter_rank=4,
    lora_rank=5,
    task_num_prompts=(6, 4),
    task_num_options=(3, 4),
    task_adapter_ranks=(4, 3),
    task_lora_ranks=(3, 5),
)


@pytest.mark.parametrize(("head", "least"), [("linear", 128), ("option", 3)])
def test_tasks_of_unlike_sizes_train_as_each_would_alone(head: str, least: int) -> None:
    """In whole training steps, with second moments factored and not."""
    gin.bind_parameter("total_loss.classification_weight", 0.5)
    optimizer = adafactor(0.3, min_dim_size_to_factor=least, least_scale=0.1)
    bank_config = toy_config(dropout_rate=0.0, prompts=dataclasses.replace(UNLIKE, head=head))
    rng = np.random.default_rng(3)
    batches = [toy_batch(rng, 4) for _ in range(3)]
    # Equal rows: then the losses of the tasks have equal shares in what a batch is divided by.
    both = [{name: np.concatenate([x, x]) for name, x in batch.items()} for batch in batches]
    for batch in both:
        batch["task_ids"] = np.repeat(np.arange(2, dtype=np.int32), 4)[:, None]

    mesh = make_mesh(devices=jax.devices()[:1])
    setup = TrainSetup(M6Rec(bank_config), optimizer, mesh, data_parallel(), "prompts")
    state = initial_state(setup)
    start, together = prompts_of(state), prompts_of(trained(setup, both, state))
    for task in range(2):
        own = bank_config.prompts.of_task(task)
        config = bank_config.replace(prompts=own)
        leaves = prompt_leaves(config)
        taken = {
            name: np.expand_dims(x, leaves[name].task_axis)
            for name, x in take_task(start, bank_config, task, own).items()
        }
        prompts = nested(taken)
        own_state = state.replace(prompts=prompts, opt_state=optimizer.init({"prompts": prompts}))
        of_task = dataclasses.replace(setup, model=M6Rec(config))
        alone = prompts_of(trained(of_task, batches, own_state))
        assert alone.keys() == taken.keys()
        for name, values in take_task(together, bank_config, task, own).items():
            expected = np.squeeze(alone[name], leaves[name].task_axis)
            np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4, err_msg=name)


def prompts_of(state: TrainState) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in flatten(state.prompts).items()}


def trained(setup: TrainSetup, batches: list[Any], state: TrainState) -> TrainState:
    """The state after a step with each of the batches."""
    step = jax.jit(make_train_step(setup))
    for batch in batches:
        state, _ = step(state, batch)
    return state


@pytest.mark.parametrize("with_backbone", [False, True])
@pytest.mark.parametrize("least", [4, 128])
def test_one_task_is_trained_by_optax_to_the_bit(with_backbone: bool, least: int) -> None:
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=least),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(0.1),
        optax.scale(-RATE),
    )
    optimizer = adafactor(RATE, least_scale=0.1, clip_norm=1.0, min_dim_size_to_factor=least)
    own = BACKBONE if with_backbone else {}
    start = bank([random_leaves(0, SLICES, 0.2)], random_leaves(1, own, 0.5))
    gradients = [
        bank([random_leaves(2 + step, SLICES, scale)], random_leaves(9 + step, own, scale))
        for step, scale in enumerate((1.0, 1e-3, 50.0))
    ]
    expected, found = (steps(made, start, gradients) for made in (reference, optimizer))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_the_backbone_has_a_norm_of_its_own_beside_several_tasks() -> None:
    """Its step depends on no task's gradient, and theirs not on the backbone's."""
    optimizer = adamw(1.0, clip_norm=1.0)
    parts = [random_leaves(task, SLICES, 0.2) for task in range(2)]
    shared = random_leaves(7, BACKBONE, 1.0)
    values = jax.tree.map(jnp.asarray, bank(parts, shared))
    scales = (30.0, 1e-3)
    grads = bank(
        [random_leaves(20 + task, SLICES, scale) for task, scale in enumerate(scales)],
        random_leaves(30, BACKBONE, 40.0),
    )
    _, state = optimizer.update(grads, optimizer.init(values), values)
    # Adam's first moment is a tenth of the clipped gradient.
    clipped = {n: 10.0 * np.asarray(leaf) for n, leaf in flatten(state[1].mu).items()}
    norm = lambda leaves: np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves))  # noqa: E731
    assert norm(of_task(clipped, 0).values()) == pytest.approx(1.0, rel=1e-5)
    given = of_task({n: np.asarray(v) for n, v in flatten(grads).items()}, 1)
    for name, leaf in of_task(clipped, 1).items():
        np.testing.assert_allclose(leaf, given[name], rtol=1e-5, err_msg=name)
    assert norm([v for n, v in clipped.items() if n in BACKBONE]) == pytest.approx(1.0, rel=1e-5)


def test_the_axis_of_tasks_is_where_the_model_says() -> None:
    prompts = PromptConfig(
        num_tasks=3,
        num_prompts=4,
        num_options=2,
        head="linear",
        adapter_rank=2,
        lora_rank=2,
        embedding_rank=2,
        pooling_rank=2,
        lora_targets=("query", "key", "value", "out"),
        special_token_ids=(1, 2),
        retrieval_dim=4,
        num_segment_embeddings=2,
    )
    config = ModelConfig(vocab_size=32, embed_dim=16, prompts=prompts, late_layers_start=1)
    for shared in (False, True):
        leaves = prompt_leaves(config.replace(share_layers=shared))
        assert {name: task_axis(name) for name in leaves} == {
            name: leaf.task_axis for name, leaf in leaves.items()
        }

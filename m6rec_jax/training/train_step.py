"""The jitted optimizer step: gradients of what trains only, accumulation, one compilation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m6rec_jax.checkpoints.trees import PyTree
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import Loss, Metrics, Sum, Terms, mean_loss, total_loss, window_means
from m6rec_jax.sharding import compiler_options, replicated
from m6rec_jax.training.task_updates import task_sizes
from m6rec_jax.training.train_state import TrainSetup, TrainState

Array = jax.Array
TOWERS = ("encoder", "decoder")
Features = Mapping[str, Array]
# Sums by job stay sums: a log's line is over several steps, and a job need not be in each.
Scalars = dict[str, Array | Sum]


def make_train_step(
    setup: TrainSetup,
    *,
    accumulation_steps: int = 1,
    loss: Loss = total_loss,
    jobs: Sequence[int] = (),
) -> Callable[[TrainState, Features], tuple[TrainState, Scalars]]:
    """The function of one optimizer step; `compile_step` compiles it.

    Gradients are taken with respect to the groups that train; a frozen backbone is a constant of
    the differentiated function, so nothing is computed or stored for it.

    With accumulation every term of the loss is divided by its count over the *whole* batch before
    parts are summed, so the result equals that of one big batch. (In-batch negatives of the
    contrastive objective come from one part only: there the negatives differ by nature.)

    Dropout depends on the seed and the step alone, so a resumed run draws what an unbroken one
    would.

    Args:
      setup: of the run; a `rate` (a schedule) of its optimizer is reported.
      accumulation_steps: A. The step then takes features `[A, rows, length]` instead of
        `[rows, length]`.
      loss: whose variables include `TrainState.fixed`.
      jobs: numbers of the jobs whose losses are logged apart.

    Returns:
      A function (state, features) → (next state, scalars: `loss`, `gradient_norm`, `tokens`,
      `learning_rate`; and the objectives' metrics, as sums).
    """
    model, optimizer = setup.model, setup.optimizer
    rate = getattr(optimizer, "rate", None)
    update = optax.with_extra_args_support(optimizer).update
    sizes = task_sizes(model.config)

    def step(state: TrainState, features: Features) -> tuple[TrainState, Scalars]:
        variables = {**state.variables, **state.fixed}
        trained = setup.trained(state.variables)
        key = jax.random.fold_in(jax.random.key(setup.seed), state.step)

        def counts_of(part: Features) -> dict[str, Array]:
            # The counts depend on the features alone: XLA drops the forward pass.
            terms, _ = loss(model, variables, part)
            return {name: term.count for name, term in terms.items()}

        def part_loss(groups: PyTree, part: Features, key: Array, counts: Any) -> Any:
            rngs = {"dropout": key}
            terms, metrics = loss(
                model, {**variables, **groups}, part, rngs=rngs, deterministic=False, jobs=jobs
            )
            return mean_loss(terms, counts), metrics

        gradient = jax.value_and_grad(part_loss, has_aux=True)
        if accumulation_steps == 1:
            (total, metrics), grads = gradient(trained, features, key, None)
        else:
            of_parts = jax.lax.map(counts_of, dict(features))
            counts = {name: jnp.sum(count, axis=0) for name, count in of_parts.items()}
            parts = (jnp.arange(accumulation_steps), dict(features))
            (total, metrics), grads = _added_up(
                lambda part: gradient(trained, part[1], jax.random.fold_in(key, part[0]), counts),
                parts,
            )
        updates, opt_state = update(grads, state.opt_state, trained, task_sizes=sizes)
        trained = optax.apply_updates(trained, updates)
        scalars = {
            "loss": total,
            **metrics,
            "gradient_norm": optax.global_norm(grads),
            "tokens": sum(
                (jnp.count_nonzero(features[f"{tower}_block_ids"]) for tower in TOWERS),
                jnp.zeros((), jnp.int32),
            ),
            **({"learning_rate": jnp.asarray(rate(state.step), jnp.float32)} if rate else {}),
        }
        return state.replace(step=state.step + 1, opt_state=opt_state, **trained), scalars

    return step


def evaluation_means(
    batches: Sequence[tuple[Terms, Metrics]], jobs: Sequence[str] = ()
) -> dict[str, float]:
    """`loss` and what `window_means` makes of the metrics of all batches, at least one."""
    losses = window_means([terms for terms, _ in batches])
    whole = {"loss": sum(losses.values())} if losses else {}
    return whole | window_means([metrics for _, metrics in batches], jobs)


def make_eval_step(
    model: M6Rec, *, loss: Loss = total_loss, jobs: Sequence[int] = ()
) -> Callable[[TrainState, Features], tuple[Terms, Metrics]]:
    """A function (state, features `[rows, length]`) → the loss's sums, without dropout."""

    def step(state: TrainState, features: Features) -> tuple[Terms, Metrics]:
        return loss(model, {**state.variables, **state.fixed}, features, jobs=jobs)

    return step


def jit_step(
    setup: TrainSetup,
    step: Callable[[TrainState, Features], Any],
    state: TrainState,
    *,
    updates_state: bool = True,
) -> Any:
    """`jax.jit` of a step: the next state lies as `state` does, and all else on every device.

    With `updates_state` the step returns a state first, and uses up (donates) the one it is given.
    """
    everywhere = replicated(setup.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        step,
        donate_argnums=(0,) if updates_state else (),
        out_shardings=(shardings, everywhere) if updates_state else everywhere,
    )


def compile_step(
    setup: TrainSetup,
    step: Callable[[TrainState, Features], Any],
    state: TrainState,
    features: Features,
    *,
    updates_state: bool = True,
) -> jax.stages.Compiled:
    """`jit_step` compiled for a placed batch (or its abstract form); others are a TypeError."""
    options = compiler_options(setup.mesh.devices.flat[0].platform)
    with setup.in_place():
        lowered = jit_step(setup, step, state, updates_state=updates_state).lower(state, features)
        return lowered.compile(compiler_options=options or None)


def _added_up(function: Callable[[Any], Any], parts: Any) -> Any:
    """The sum of what a function returns for each part, along the leading axis of all leaves."""

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, function(part)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]

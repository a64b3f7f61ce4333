"""The jitted optimizer step: gradients of what trains only, accumulation, one compilation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from m6rec_jax.checkpoints.trees import PyTree
from m6rec_jax.errors import DataError
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import (
    Metrics,
    Sum,
    is_by_job,
    job_losses,
    loss_denominators,
    total_loss,
)
from m6rec_jax.sharding import LogicalRules, axis_rules, compiler_options, replicated
from m6rec_jax.training.optimizers import Schedule
from m6rec_jax.training.task_updates import parts_of_tasks
from m6rec_jax.training.train_state import TrainState, trainable_groups

Array = jax.Array
Features = Mapping[str, Array]
# Sums by job stay sums: a log's line is over several steps, and a job need not be in each.
Scalars = dict[str, Array | Sum]


class LossFunction(Protocol):
    """`objectives.total_loss`, or one that takes the same arguments.

    It may have a method `denominators` of its own, see `loss_denominators`; the variables that it
    gets include `TrainState.fixed`.
    """

    def __call__(
        self,
        model: M6Rec,
        variables: Any,
        features: Features,
        *,
        rngs: Mapping[str, Array] | None = None,
        deterministic: bool = True,
        denominators: Mapping[str, Array] | None = None,
        jobs: Sequence[int] = (),
    ) -> tuple[Array, Metrics]:
        """The loss and every objective's metrics as sums and counts."""


def make_train_step(
    model: M6Rec,
    optimizer: optax.GradientTransformation,
    *,
    trainable: str,
    seed: int,
    accumulation_steps: int = 1,
    loss: LossFunction = total_loss,
    jobs: Sequence[int] = (),
) -> Callable[[TrainState, Features], tuple[TrainState, Scalars]]:
    """The function of one optimizer step; `CompiledStep` compiles it.

    Gradients are taken with respect to the groups that train; a frozen backbone is a constant of
    the differentiated function, so nothing is computed or stored for it.

    With accumulation every objective is divided by its denominator over the *whole* batch before
    parts are summed, so the result equals that of one big batch. (In-batch negatives of the
    contrastive objective come from one part only: there the negatives differ by nature.)

    Dropout depends on `seed` and the step alone, so a resumed run draws what an unbroken one would.

    Args:
      model: the model.
      optimizer: over `trainable_groups`; if it has a `rate` (a schedule) and `metrics`, they are
        reported.
      trainable: 'prompts' or 'all'.
      seed: of dropout.
      accumulation_steps: A. The step then takes features `[A, rows, length]` instead of
        `[rows, length]`.
      loss: the objectives.
      jobs: numbers of the jobs whose losses are logged apart.

    Returns:
      A function (state, features) → (next state, scalars: `loss`, `gradient_norm`, `tokens`,
      `learning_rate`; and the objectives' metrics, as sums).
    """
    rate: Schedule | None = getattr(optimizer, "rate", None)
    measure = getattr(optimizer, "metrics", None)
    denominators_of = getattr(loss, "denominators", loss_denominators)
    update = optax.with_extra_args_support(optimizer).update
    of_tasks = parts_of_tasks(model.config)
    in_parts = accumulation_steps > 1

    def step(state: TrainState, features: Features) -> tuple[TrainState, Scalars]:
        trained = trainable_groups(state.variables, trainable)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        denominators = (
            _summed(jax.vmap(denominators_of)(features)) if in_parts else denominators_of(features)
        )

        def part_loss(groups: PyTree, part: Features, key: Array) -> tuple[Array, Metrics]:
            return loss(
                model,
                {**state.variables, **groups, **state.fixed},
                part,
                rngs={"dropout": key},
                deterministic=False,
                denominators=denominators,
                jobs=jobs,
            )

        gradient = jax.value_and_grad(part_loss, has_aux=True)
        if in_parts:
            (total, metrics), grads = _accumulated(gradient, trained, features, key)
        else:
            (total, metrics), grads = gradient(trained, features, key)
        updates, opt_state = update(grads, state.opt_state, trained, task_parts=of_tasks)
        trained = optax.apply_updates(trained, updates)
        scalars = {
            "loss": total,
            **metrics,
            "gradient_norm": optax.global_norm(grads),
            "tokens": _tokens(features),
            **({"learning_rate": jnp.asarray(rate(state.step), jnp.float32)} if rate else {}),
            **(measure(trained) if measure else {}),
        }
        return state.replace(step=state.step + 1, opt_state=opt_state, **trained), scalars

    return step


class EvaluationSums(NamedTuple):
    """Sums over one batch; those of all batches added up give the validation loss.

    Attributes:
      weighted: objective → weight · Σ losses.
      counts: objective → denominator.
      metrics: see `objectives`.
    """

    weighted: dict[str, Array]
    counts: dict[str, Array]
    metrics: Metrics

    def scalars(self, jobs: Sequence[str] = ()) -> dict[str, float]:
        """`loss`, the objectives' metrics and `job_losses`, as means over everything added up.

        Of what nothing was counted there is no metric.
        """
        means = {
            name: float(value.mean())
            for name, value in self.metrics.items()
            if not is_by_job(name) and float(value.count)
        }
        losses = [
            float(value) / float(self.counts[name])
            for name, value in self.weighted.items()
            if float(self.counts[name])
        ]
        whole = {"loss": sum(losses)} if losses else {}
        return {**whole, **means, **job_losses(jobs, [self.metrics])}


def make_eval_step(
    model: M6Rec, *, loss: LossFunction = total_loss, jobs: Sequence[int] = ()
) -> Callable[[TrainState, Features], EvaluationSums]:
    """A function (state, features `[rows, length]`) → sums, without dropout."""

    denominators_of = getattr(loss, "denominators", loss_denominators)

    def step(state: TrainState, features: Features) -> EvaluationSums:
        counts, variables = denominators_of(features), {**state.variables, **state.fixed}

        def with_denominators(denominators: Mapping[str, Array]) -> tuple[Array, Metrics]:
            return loss(model, variables, features, denominators=denominators, jobs=jobs)

        # The loss is Σ weight · sum / denominator, so its derivative by a denominator at 1 is
        # -weight · sum: each objective's share, without a second forward pass.
        ones = {name: jnp.ones(()) for name in counts}
        shares, metrics = jax.grad(with_denominators, has_aux=True)(ones)
        return EvaluationSums({name: -share for name, share in shares.items()}, counts, metrics)

    return step


def jit_step(
    step: Callable[[TrainState, Features], Any],
    state: TrainState,
    mesh: Mesh,
    *,
    updates_state: bool = True,
) -> Any:
    """`jax.jit` of a step as runs compile it, wherever it is compiled.

    Args:
      step: `(state, features) → (state, scalars)` or `→ sums`.
      state: with shardings; the next state lies as it does, and all else on every device.
      mesh: of the run.
      updates_state: the step returns a state first; the one given to it is then used up (donated).
    """
    everywhere = replicated(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        step,
        donate_argnums=(0,) if updates_state else (),
        out_shardings=(shardings, everywhere) if updates_state else everywhere,
    )


class CompiledStep:
    """A step compiled ahead of its first call, for batches of one shape; the only compilation.

    Args:
      step: `(state, features) → (state, scalars)` or `→ sums`.
      state: abstract state with shardings.
      features: a placed batch (or its abstract form).
      mesh, rules: of the run.
      updates_state: as for `jit_step`.

    Attributes:
      compiled: what XLA made of it.
    """

    def __init__(
        self,
        step: Callable[[TrainState, Features], Any],
        state: TrainState,
        features: Features,
        *,
        mesh: Mesh,
        rules: LogicalRules,
        updates_state: bool,
    ) -> None:
        self._shapes = {name: x.shape for name, x in features.items()}

        platform = mesh.devices.flat[0].platform
        jitted = jit_step(step, state, mesh, updates_state=updates_state)
        with jax.set_mesh(mesh), axis_rules(rules):
            lowered = jitted.lower(state, features)
            self.compiled: jax.stages.Compiled = lowered.compile(
                compiler_options=compiler_options(platform) or None
            )

    def __call__(self, state: TrainState, features: Features) -> Any:
        """Runs the step.

        Raises:
          DataError: the batch has another shape than the first one had.
        """
        shapes = {name: x.shape for name, x in features.items()}
        if shapes != self._shapes:
            name = min(
                name
                for name in {*shapes, *self._shapes}
                if shapes.get(name) != self._shapes.get(name)
            )
            raise DataError(
                f"a batch has '{name}' of shape {shapes.get(name)} where the first one had "
                f"{self._shapes.get(name)}; batches must all have one shape"
            )
        return self.compiled(state, features)


def _accumulated(
    gradient: Callable[..., Any], trained: PyTree, features: Features, key: Array
) -> Any:
    """Sums what `gradient` returns over the leading axis of the features."""

    def add(sums: Any, part: tuple[Array, Features]) -> tuple[Any, None]:
        index, rows = part
        result = gradient(trained, rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, sums, result), None

    shapes = jax.eval_shape(gradient, trained, {name: x[0] for name, x in features.items()}, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    parts = next(iter(features.values())).shape[0]
    sums, _ = jax.lax.scan(add, zeros, (jnp.arange(parts), dict(features)))
    return sums


def _summed(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), tree)


def _tokens(features: Features) -> Array:
    """Real (not padding) tokens of a batch, source and target."""
    blocks = [features[name] for name in ("encoder_block_ids", "decoder_block_ids")]
    return sum((jnp.count_nonzero(ids) for ids in blocks), jnp.zeros((), jnp.int32))

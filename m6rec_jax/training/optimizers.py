"""Optimizers and learning rates, from optax, for a tree of two groups: `params` and `prompts`.

train.optimizer = @adamw()
adamw.learning_rate = @warmup_schedule()
adamw.rate_factors = {'^params/': 0.1}
warmup_schedule.rate = 1e-3
warmup_schedule.warmup_steps = 100
warmup_schedule.decay = 'cosine'
warmup_schedule.total_steps = %TRAIN_STEPS
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import jax
import optax

from m6rec_jax.checkpoints.trees import flatten, unflatten
from m6rec_jax.errors import ConfigError
from m6rec_jax.training import task_updates

Schedule = Callable[[Any], Any]
DECAYS = ("constant", "linear", "cosine")
# Norm scales, factors of (IA)³ and (position) biases are not weights: pulling them to zero changes
# the function.
NOT_DECAYED = (r"scale$", r"/factors$", r"bias$", r"relative_bias/")


@gin.configurable
def warmup_schedule(
    rate: float, warmup_steps: int = 0, decay: str = "constant", total_steps: int | None = None
) -> Schedule:
    """Linear warm-up from 0 to `rate`, then decay.

    Args:
      rate: the highest rate, reached after `warmup_steps` steps.
      warmup_steps: 0: start at `rate`.
      decay: 'constant', or 'linear' or 'cosine' down to 0 at `total_steps`.
      total_steps: steps of the whole run, for 'linear' and 'cosine'.

    Raises:
      ConfigError: unknown decay, or a run shorter than its warm-up.
    """
    if decay not in DECAYS or warmup_steps < 0:
        raise ConfigError(
            f"warmup_schedule.decay = {decay!r}, warmup_steps = {warmup_steps}: a decay is one of "
            f"{', '.join(DECAYS)}, and the steps are not negative"
        )
    after: Schedule = optax.constant_schedule(rate)
    if decay != "constant":
        if total_steps is None or total_steps <= warmup_steps:
            raise ConfigError(
                f"TRAIN_STEPS = {total_steps} must exceed WARMUP_STEPS = {warmup_steps} "
                "(total_steps and warmup_steps of warmup_schedule): train longer, or set "
                f"--gin.WARMUP_STEPS={(total_steps or 0) // 10}"
            )
        span = total_steps - warmup_steps
        after = (
            optax.linear_schedule(rate, 0.0, span)
            if decay == "linear"
            else optax.cosine_decay_schedule(rate, span)
        )
    if not warmup_steps:
        return after
    warm_up = optax.linear_schedule(0.0, rate, warmup_steps)
    return optax.join_schedules([warm_up, after], [warmup_steps])


class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation that knows its learning rate, for the log.

    `update` takes `task_sizes` besides (`training.task_updates`).
    """

    rate: Schedule | None = None


@gin.configurable
def adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    rate_factors: Mapping[str, float] | None = None,
) -> Optimizer:
    """AdamW with decoupled weight decay.

    Args:
      learning_rate: a number or a schedule.
      b1, b2: of Adam.
      weight_decay: times the learning rate, off the weights at each step; not off `NOT_DECAYED`.
      clip_norm: largest norm of the gradient, over all that trains (None: not clipped). With
        several tasks: of each task's prompts by themselves, and of the backbone, so that a spike in
        one task's gradient shortens no other's step.
      rate_factors: regular expressions and factors; the rate of a leaf is multiplied by the factors
        of all that its name has a match of, for instance `{'token_embedder/': 0.1}`, or
        `{'^params/': 0.1}` for the backbone beside what is tuned.
    """
    steps = [optax.scale_by_adam(b1=b1, b2=b2)]
    return _optimizer(learning_rate, steps, weight_decay, clip_norm, rate_factors)


@gin.configurable
def adafactor(
    learning_rate: float | Schedule,
    min_dim_size_to_factor: int = 128,
    least_scale: float = 1e-3,
    absolute: Sequence[str] = (),
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    rate_factors: Mapping[str, float] | None = None,
) -> Optimizer:
    """Adafactor: second moments of matrices as row and column sums; T5's optimizer.

    Updates are clipped to a root mean square of 1 in each leaf, and are relative to the root mean
    square of the leaf. The tasks of a bank are kept apart: each takes the steps that it would take
    alone (`training.task_updates`).

    Args:
      learning_rate, weight_decay, clip_norm, rate_factors: as for `adamw`.
      min_dim_size_to_factor: only matrices with two sides at least this long are factored.
      least_scale: updates are scaled as if the leaf's root mean square were at least this much.
        T5's is 1e-3; what starts at zero, as the second halves of adapters do, then hardly moves,
        so raise it for prompts.
      absolute: regular expressions; the updates of leaves whose name has a match are not relative
        to their size. For what stands for logits, such as biases of relative positions: relative to
        their size these grow by a share of it at each step, until attention is all or nothing.
    """
    relative = task_updates.scale_by_task_rms(least_scale)
    steps = [
        task_updates.scale_by_factored_rms(min_dim_size_to_factor),
        task_updates.clip_by_task_rms(1.0),
        optax.masked(relative, lambda tree: name_mask(tree, absolute)) if absolute else relative,
    ]
    return _optimizer(learning_rate, steps, weight_decay, clip_norm, rate_factors)


def name_mask(tree: Any, left_out: str | Sequence[str]) -> Any:
    """A tree of bools: False where the leaf's name matches one of the regular expressions."""
    patterns = (left_out,) if isinstance(left_out, str) else left_out
    return unflatten(
        {name: not any(re.search(one, name) for one in patterns) for name in flatten(tree)}, tree
    )


def _optimizer(
    learning_rate: float | Schedule,
    steps: Sequence[optax.GradientTransformation],
    weight_decay: float,
    clip_norm: float | None,
    rate_factors: Mapping[str, float] | None,
) -> Optimizer:
    if clip_norm is not None and clip_norm <= 0.0:
        raise ConfigError(f"clip_norm = {clip_norm} lets nothing train (None: not clipped)")
    clip = [] if clip_norm is None else [task_updates.clip_by_norm(clip_norm)]
    decay = optax.add_decayed_weights(weight_decay, lambda tree: name_mask(tree, NOT_DECAYED))
    factors = [
        optax.masked(
            optax.scale(factor),
            lambda tree, pattern=pattern: jax.tree.map(operator.not_, name_mask(tree, pattern)),
        )
        for pattern, factor in (rate_factors or {}).items()
    ]
    rate = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
    chain = optax.chain(
        *clip,
        *steps,
        *([decay] if weight_decay else []),
        *factors,
        optax.scale_by_learning_rate(rate),
    )
    optimizer = Optimizer(chain.init, chain.update)
    optimizer.rate = rate
    return optimizer

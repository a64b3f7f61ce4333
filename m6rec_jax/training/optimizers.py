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

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import gin
import jax
import jax.numpy as jnp
import optax

from m6rec_jax.checkpoints.trees import flatten, unflatten
from m6rec_jax.errors import ConfigError
from m6rec_jax.training import task_updates

Schedule = Callable[[Any], Any]
DECAYS = ("constant", "linear", "cosine", "rsqrt")
# Norm scales, factors of (IA)³ and (position) biases are not weights: pulling them to zero changes
# the function.
NOT_DECAYED = (r"scale$", r"/factors$", r"bias$", r"relative_bias/")


@gin.configurable
def warmup_schedule(
    rate: float,
    warmup_steps: int = 0,
    decay: str = "constant",
    total_steps: int | None = None,
    final_rate: float = 0.0,
) -> Schedule:
    """Linear warm-up from 0 to `rate`, then decay.

    Args:
      rate: the highest rate, reached after `warmup_steps` steps.
      warmup_steps: 0: start at `rate`.
      decay: 'constant'; 'linear' or 'cosine' down to `final_rate` at `total_steps`; 'rsqrt':
        rate × sqrt(warmup_steps / step), T5's.
      total_steps: steps of the whole run, for 'linear' and 'cosine'.
      final_rate: for 'linear' and 'cosine'.

    Raises:
      ConfigError: unknown decay, or a run shorter than its warm-up.
    """
    if decay not in DECAYS:
        raise ConfigError(f"warmup_schedule.decay = {decay!r} is not one of {', '.join(DECAYS)}")
    if warmup_steps < 0:
        raise ConfigError(f"warmup_schedule.warmup_steps = {warmup_steps} must not be negative")
    if decay in ("linear", "cosine"):
        if total_steps is None:
            raise ConfigError(
                f"warmup_schedule.decay = {decay!r} needs warmup_schedule.total_steps, usually "
                "%TRAIN_STEPS"
            )
        if total_steps <= warmup_steps:
            raise ConfigError(
                f"TRAIN_STEPS = {total_steps} must exceed WARMUP_STEPS = {warmup_steps} "
                "(total_steps and warmup_steps of warmup_schedule): train longer, or set "
                f"--gin.WARMUP_STEPS={total_steps // 10}"
            )
        span = total_steps - warmup_steps
        after: Schedule = (
            optax.linear_schedule(rate, final_rate, span)
            if decay == "linear"
            else optax.cosine_decay_schedule(rate, span, final_rate / rate if rate else 0.0)
        )
    elif decay == "rsqrt":
        knee = max(warmup_steps, 1)

        def after(count: Any) -> Any:
            return rate * jnp.sqrt(knee / jnp.maximum(count + warmup_steps, knee))
    else:
        after = optax.constant_schedule(rate)
    if not warmup_steps:
        return after
    return optax.join_schedules(
        [optax.linear_schedule(0.0, rate, warmup_steps), after], [warmup_steps]
    )


@gin.configurable
def adamw(
    learning_rate: float | Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    not_decayed: Sequence[str] = NOT_DECAYED,
    clip_norm: float | None = 1.0,
    rate_factors: Mapping[str, float] | None = None,
) -> Optimizer:
    """AdamW with decoupled weight decay.

    Args:
      learning_rate: a number or a schedule.
      b1, b2, eps: of Adam.
      weight_decay: times the learning rate, off the weights at each step.
      not_decayed: regular expressions; leaves whose name has a match keep their size.
      clip_norm: largest norm of the gradient, over all that trains (None: not clipped). With
        several tasks: of each task's prompts by themselves, and of the backbone, so that a spike in
        one task's gradient shortens no other's step.
      rate_factors: regular expressions and factors; the rate of a leaf is multiplied by the factors
        of all that its name has a match of, for instance `{'token_embedder/': 0.1}`, or
        `{'^params/': 0.1}` for the backbone beside what is tuned.
    """
    return _optimizer(
        clip_norm,
        [
            optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
            _decay(weight_decay, not_decayed),
            _rate_factors(rate_factors or {}),
        ],
        learning_rate,
    )


@gin.configurable
def adafactor(
    learning_rate: float | Schedule,
    decay_rate: float = 0.8,
    min_dim_size_to_factor: int = 128,
    clipping_threshold: float | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    least_scale: float = 1e-3,
    absolute: Sequence[str] = (),
    weight_decay: float = 0.0,
    not_decayed: Sequence[str] = NOT_DECAYED,
    clip_norm: float | None = None,
    rate_factors: Mapping[str, float] | None = None,
) -> Optimizer:
    """Adafactor: second moments of matrices as row and column sums; T5's optimizer.

    The tasks of a bank are kept apart: each takes the steps that it would take alone
    (`training.task_updates`).

    Args:
      learning_rate, weight_decay, not_decayed, clip_norm, rate_factors: as for `adamw`.
      decay_rate: exponent of the second moment's decay, 1 - step^-decay_rate.
      min_dim_size_to_factor: only matrices with two sides at least this long are factored.
      clipping_threshold: largest root mean square of a leaf's update (None: not clipped).
      multiply_by_parameter_scale: updates are relative to the root mean square of the leaf. Of a
        bank's leaves, either is that of what each task has of it.
      least_scale: but as if that were at least this much. T5's is 1e-3; what starts at zero, as the
        second halves of adapters do, then hardly moves, so raise it for prompts.
      absolute: regular expressions; the updates of leaves whose name has a match are not relative
        to their size. For what stands for logits, such as biases of relative positions: relative to
        their size these grow by a share of it at each step, until attention is all or nothing.
    """
    steps: list[optax.GradientTransformation] = [
        task_updates.scale_by_factored_rms(
            decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor
        )
    ]
    if clipping_threshold is not None:
        steps.append(task_updates.by_task(optax.clip_by_block_rms(clipping_threshold)))
    if multiply_by_parameter_scale:
        relative = task_updates.by_task(optax.scale_by_param_block_rms(least_scale))
        # Masked only where it is needed, so that optimizer states keep their shape.
        masked = optax.masked(relative, lambda tree: name_mask(tree, absolute))
        steps.append(masked if absolute else relative)
    return _optimizer(
        clip_norm,
        [*steps, _decay(weight_decay, not_decayed), _rate_factors(rate_factors or {})],
        learning_rate,
    )


class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation that knows its learning rate.

    Attributes:
      init, update: optax's; `update` takes `task_parts` besides (`training.task_updates`).
      rate: a schedule, for the log; None: not known.
      metrics: of what trains, for the log; None: none.
    """

    rate: Schedule | None
    metrics: Callable[[Any], dict[str, jax.Array]] | None

    def __new__(
        cls,
        init: Callable[[Any], Any],
        update: Callable[..., tuple[Any, Any]],
        rate: Schedule | None,
        metrics: Callable[[Any], dict[str, jax.Array]] | None = None,
    ) -> Self:
        """Makes a named tuple of the first two, which has the others as attributes."""
        made = super().__new__(cls, init, update)
        made.rate, made.metrics = rate, metrics
        return made


def compiled(patterns: str | Sequence[str]) -> list[re.Pattern[str]]:
    """Regular expressions; a string is one, not a sequence of letters."""
    return [re.compile(one) for one in ((patterns,) if isinstance(patterns, str) else patterns)]


def name_mask(tree: Any, left_out: Sequence[str]) -> Any:
    """A tree of bools: False where the leaf's name matches one of the regular expressions."""
    patterns = compiled(left_out)
    return unflatten(
        {name: not any(p.search(name) for p in patterns) for name in flatten(tree)}, tree
    )


def _decay(weight_decay: float, not_decayed: Sequence[str]) -> optax.GradientTransformation:
    if not weight_decay:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, lambda tree: name_mask(tree, not_decayed))


def _rate_factors(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by factors chosen by the leaves' names."""
    if not factors:
        return optax.identity()
    patterns = [(re.compile(pattern), factor) for pattern, factor in factors.items()]

    def factor_of(name: str) -> float:
        return math.prod(factor for pattern, factor in patterns if pattern.search(name))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        scaled = {name: factor_of(name) * leaf for name, leaf in flatten(updates).items()}
        return unflatten(scaled, updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _optimizer(
    clip_norm: float | None,
    steps: Sequence[optax.GradientTransformation],
    learning_rate: float | Schedule,
) -> Optimizer:
    if clip_norm is not None and clip_norm <= 0.0:
        raise ConfigError(f"clip_norm = {clip_norm} lets nothing train (None: not clipped)")
    clip = [] if clip_norm is None else [task_updates.clip_by_norm(clip_norm)]
    rate = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)
    chain = optax.chain(*clip, *steps, optax.scale_by_learning_rate(rate))
    return Optimizer(chain.init, chain.update, rate)

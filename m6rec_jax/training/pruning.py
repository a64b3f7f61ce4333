"""Pruning by magnitude while a backbone trains: weights that are zero stay zero (paper section 5).

train.optimizer = @gradual_pruning()
gradual_pruning.optimizer = @adafactor()
gradual_pruning.sparsity = 0.8
gradual_pruning.end_step = 4000

The masks are the zeros themselves, so they need no room in checkpoints, and any later run that is
given `keep_zeros` keeps them.

Shares are of each matrix, in a stack of each layer's, and not of all weights together: matrices
start from unlike deviations (T5's queries from an eighth of its keys', embeddings from far more),
so one threshold for all would empty some of them and leave others whole.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from m6rec_jax.checkpoints.trees import flatten, unflatten
from m6rec_jax.errors import ConfigError
from m6rec_jax.training.optimizers import Optimizer

# Every embedding table and linear map of the backbone; not norms, nor biases of positions.
PRUNED = re.compile(r"^params/(.*kernel$|token_embedder/)")
# Fewer and larger ones destroy more than a short run can mend.
_CUTS = 64


class PruningState(NamedTuple):
    """`step`: int32 scalar, steps taken. `inner`: of the optimizer within."""

    step: jax.Array
    inner: Any


@gin.configurable
def gradual_pruning(
    optimizer: optax.GradientTransformation,
    end_step: int,
    begin_step: int = 0,
    sparsity: float = 0.8,
    total_steps: int | None = None,
) -> Optimizer:
    """Sets ever more of the smallest weights to zero (Zhu & Gupta, 2017).

    After step t the share of zeros is sparsity · (1 - (1 - (t - begin) / (end - begin))³): most go
    early, when there are many to spare, in about 65 cuts. What has gone stays, and takes no
    part in the optimizer.

    Args:
      optimizer: what updates the rest.
      end_step: the last step at which weights go.
      begin_step: the first one.
      sparsity: share of zeros from `end_step` on.
      total_steps: of the run, which must go on after `end_step` to recover; None: not known.

    Raises:
      ConfigError: steps or shares out of range; when it starts, no leaf that trains has weights.
    """
    if not 0.0 < sparsity < 1.0:
        raise ConfigError(f"gradual_pruning.sparsity = {sparsity} must lie between 0 and 1")
    if not 0 <= begin_step < end_step < (total_steps or end_step + 1):
        raise ConfigError(
            f"gradual_pruning.end_step = {end_step} must lie between begin_step = {begin_step} and "
            f"the run's end: it has {total_steps} steps (TRAIN_STEPS)"
        )
    period = max(1, (end_step - begin_step) // _CUTS)
    steps = np.array([*range(begin_step, end_step, period), end_step])
    shares = sparsity * (1 - (1 - (steps - begin_step) / (end_step - begin_step)) ** 3)
    return _pruned(optimizer, steps, shares)


@gin.configurable
def keep_zeros(optimizer: optax.GradientTransformation) -> Optimizer:
    """Tunes a pruned backbone: what is zero stays zero. Raises as `gradual_pruning`."""
    return _pruned(optimizer, np.zeros(0), np.zeros(0))


def _pruned(
    optimizer: optax.GradientTransformation, steps: np.ndarray, shares: np.ndarray
) -> Optimizer:
    inner = optax.with_extra_args_support(optimizer)

    def weights_of(tree: Any) -> dict[str, jax.Array]:
        return {name: leaf for name, leaf in flatten(tree).items() if PRUNED.search(name)}

    def init(params: Any) -> PruningState:
        if not weights_of(nn.meta.unbox(params)):
            raise ConfigError(
                "nothing that trains is a matrix of the backbone, so there is nothing to prune. A "
                "frozen backbone (train.trainable = 'prompts') keeps its zeros by itself"
            )
        return PruningState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(
        updates: Any, state: PruningState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, PruningState]:
        weights, step = weights_of(params), optax.safe_increment(state.step)
        gradients = flatten(updates)
        for name, weight in weights.items():
            gradients[name] = jnp.where(weight != 0, gradients[name], 0)
        updates, inner_state = inner.update(
            unflatten(gradients, updates), state.inner, params, **extra_args
        )
        moved = flatten(updates)
        sizes = {
            name: jnp.abs((weight + moved[name]).astype(jnp.float32))
            for name, weight in weights.items()
        }
        highest = _highest_pruned(sizes, step, steps, shares)
        for name, weight in weights.items():
            alive = (weight != 0) & (sizes[name] > highest[name])
            moved[name] = jnp.where(alive, moved[name], -weight)  # exactly zero: less itself
        return unflatten(moved, updates), PruningState(step, inner_state)

    pruned = Optimizer(init, update)
    pruned.rate = getattr(optimizer, "rate", None)
    return pruned


def _highest_pruned(
    sizes: dict[str, jax.Array], step: jax.Array, steps: np.ndarray, shares: np.ndarray
) -> dict[str, jax.Array]:
    """The highest magnitude that goes at a step (-1: none), by leaf: `[layers or 1, 1, ...]`."""
    layers = {name: leaf.shape[0] if "/layers/" in name else 1 for name, leaf in sizes.items()}

    def cut() -> dict[str, jax.Array]:
        now, highest = jnp.searchsorted(jnp.asarray(steps, jnp.int32), step), {}
        for name, leaf in sizes.items():
            rows = jnp.sort(leaf.reshape(layers[name], -1), axis=1)
            count = jnp.asarray(np.rint(shares * rows.shape[1]), jnp.int32)[now]
            highest[name] = jnp.where(count > 0, rows[:, count - 1], -1.0)
        return highest

    highest = {name: jnp.full(number, -1.0) for name, number in layers.items()}
    if len(steps):
        is_cut = jnp.any(step == jnp.asarray(steps, jnp.int32))
        highest = jax.lax.cond(is_cut, cut, lambda: highest)
    return {
        name: values.reshape(-1, *(1,) * (sizes[name].ndim - 1)) for name, values in highest.items()
    }

"""Cross entropy of target tokens: text infilling and generation (paper sections 1 and 2)."""

import functools
from collections.abc import Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.model.m6rec import M6Rec, Outputs
from m6rec_jax.objectives.sums import Features, Metrics, Sum, sums_by_job, weighted_sum

Array = jax.Array
NAME = "language_modelling"
# Place of the weights among the arrays that are cut into chunks.
_WEIGHTS = 2


@jax.custom_vjp
def token_cross_entropy(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] per token: float32 `[..., vocab]`, int32 `[...]` → `[...]`.

    One pass over the logits forward and one backward: no gather (whose transpose would scatter into
    an array as large as the logits) and no stored softmax.
    """
    return _token_cross_entropy_forward(logits, targets)[0]


def _hits(logits: Array, targets: Array) -> Array:
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    return vocabulary == targets[..., None]


def target_logits(logits: Array, targets: Array) -> Array:
    """logits[..., target]: `[..., vocab]` and `[...]` → `[...]`. Not for differentiation.

    A comparison and a sum fuse into one pass on an accelerator and need no communication where the
    vocabulary is split over devices. On a CPU the comparison would be written out in full.
    """

    def by_gather(logits: Array, targets: Array) -> Array:
        return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]

    def by_comparison(logits: Array, targets: Array) -> Array:
        return jnp.sum(jnp.where(_hits(logits, targets), logits, 0.0), axis=-1)

    return jax.lax.platform_dependent(logits, targets, cpu=by_gather, default=by_comparison)


def _token_cross_entropy_forward(
    logits: Array, targets: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return normaliser - target_logits(logits, targets), (logits, targets, normaliser)


def _token_cross_entropy_backward(
    kept: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, None]:
    logits, targets, normaliser = kept
    gradient = cotangent[..., None] * jnp.exp(logits - normaliser[..., None])
    return gradient - jnp.where(_hits(logits, targets), cotangent[..., None], 0.0), None


token_cross_entropy.defvjp(_token_cross_entropy_forward, _token_cross_entropy_backward)


@gin.configurable(allowlist=["chunk_length"])
def language_modelling_loss(
    model: M6Rec,
    variables: Any,
    outputs: Outputs,
    features: Features,
    *,
    chunk_length: int = 0,
    jobs: Sequence[int] = (),
) -> tuple[Sum, Metrics]:
    """Token cross entropy summed with `decoder_loss_weights`.

    Args:
      outputs: the model's for `features`: `decoder_target_tokens` int32 and `decoder_loss_weights`
        float32, `[batch, target]`.
      chunk_length: target positions whose logits `[batch, chunk, vocab]` exist at a time; the
        backward pass makes them again. 0: all at once. On one device, positions of weight 0
        (padding, prefixes) then need no logits at all.
      jobs: see `sums_by_job`.

    Returns:
      The loss' sum, and metrics: loss, accuracy (a tie with the largest logit counts as right) and
      the losses by job.
    """

    def sums(
        variables: Any, hidden: Array, targets: Array, weights: Array, *job_ids: Array
    ) -> tuple[Sum, Metrics]:
        logits = model.apply(variables, hidden, method=model.token_logits)
        loss = token_cross_entropy(logits, targets)
        fixed = jax.lax.stop_gradient(logits)
        right = target_logits(fixed, targets) >= jnp.max(fixed, axis=-1)
        summed = weighted_sum(loss, weights)
        return summed, {
            f"{NAME}/loss": jax.lax.stop_gradient(summed),
            f"{NAME}/accuracy": weighted_sum(right.astype(jnp.float32), weights),
            **sums_by_job(NAME, loss, weights, next(iter(job_ids), None), jobs),
        }

    names = ["decoder_target_tokens", "decoder_loss_weights"]
    names += ["decoder_job_ids"] if jobs and "decoder_job_ids" in features else []
    arrays = [outputs.hidden, *(features[name] for name in names)]
    return in_chunks(sums, chunk_length, variables, arrays)


def in_chunks(sums: Any, chunk_length: int, variables: Any, arrays: Sequence[Array]) -> Any:
    """`sums(variables, *arrays)`, a part of the target positions at a time.

    Args:
      sums: gives a tree of sums over positions, each times its weight.
      chunk_length: as in `language_modelling_loss`.
      variables: any tree, which gradients reach.
      arrays: `[batch, target, ...]`; the third one holds the weights.
    """
    rows, length = arrays[_WEIGHTS].shape
    if not 0 < chunk_length < length:
        return sums(variables, *arrays)
    if not _on_one_device():
        return _in_chunks(sums, chunk_length, variables, arrays)
    return _in_chunks(sums, chunk_length * rows, variables, _weighted_first(arrays), skip=True)


def _on_one_device() -> bool:
    """Rows that lie on several devices would have to be sent around to be sorted."""
    mesh = jax.sharding.get_abstract_mesh()
    # Under t5x, whose mesh JAX does not know of here, all devices may be in it.
    return (jax.device_count() if mesh.empty else mesh.size) == 1


def _weighted_first(arrays: Sequence[Array]) -> list[Array]:
    """`[batch, length, ...]` as `[1, batch · length, ...]`, positions of weight 0 at the end."""
    order = jnp.argsort(arrays[_WEIGHTS].reshape(-1) == 0, stable=True)
    flat = [jnp.asarray(x).reshape(-1, *x.shape[2:]) for x in arrays]
    return [x.at[order].get(mode="promise_in_bounds", unique_indices=True)[None] for x in flat]


def _in_chunks(
    function: Any,
    chunk_length: int,
    variables: Any,
    arrays: Sequence[Array],
    *,
    skip: bool = False,
) -> Any:
    """Sum of `function` over chunks of the arrays' axis 1, padded with zeros (weight 0).

    With `skip`, chunks without a weight cost nothing.
    """
    length = arrays[0].shape[1]
    num_chunks = -(-length // chunk_length)

    def split(x: Array) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, num_chunks * chunk_length - length)
        x = jnp.pad(x, padding)
        x = x.reshape(x.shape[0], num_chunks, chunk_length, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(total: Any, chunk: tuple[Array, ...]) -> tuple[Any, None]:
        def add(total: Any) -> Any:
            return jax.tree.map(jnp.add, total, function(variables, *chunk))

        if not skip:
            return add(total), None
        return jax.lax.cond(jnp.any(chunk[_WEIGHTS] != 0), add, lambda total: total, total), None

    chunks = tuple(map(split, arrays))
    shapes = jax.eval_shape(function, variables, *(chunk[0] for chunk in chunks))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(step, zero, chunks)
    return total

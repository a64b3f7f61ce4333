"""JAX's Pallas flash attention for TPUs, with a bias, for any lengths and arrays split over a mesh.

The kernel works on blocks of 128 positions, so sequences are padded to a multiple of that. XLA does
not know how to split a kernel over devices: each one runs it on its own examples and heads.
"""

from __future__ import annotations

import functools
import logging
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from m6rec_jax.errors import ConfigError

Array = jax.Array
logger = logging.getLogger(__name__)

_BLOCK = 128
# Far below any mask of the model's, so that queries that see nothing do not see padding either.
_PADDING = -1e30


def flash_attention(query: Array, key: Array, value: Array, bias: Array) -> Array:
    """softmax(Q Kᵀ + bias) V without a scale; see `dot_product_attention`.

    Args:
      query: `[batch, query, heads, head_dim]`.
      key, value: `[batch, key, heads, head_dim]`.
      bias: float32 `[batch, heads, query, key]`.

    Returns:
      `[batch, query, heads, head_dim]`, of `query`'s type.

    Raises:
      ConfigError: heads wider than the kernel takes.
      ValueError: of Pallas, on anything but a TPU (outside its interpret mode).
    """
    batch, _, num_heads, head_dim = query.shape
    if head_dim > _BLOCK and head_dim % _BLOCK:
        raise ConfigError(
            "dot_product_attention.implementation = 'flash' needs heads of up to "
            f"{_BLOCK}, or a multiple of it, not {head_dim}"
        )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _on_one_device(query, key, value, bias)
    batch_axes = _dividing(mesh, "batch", batch)
    head_axes = _dividing(mesh, "heads", num_heads)
    heads = PartitionSpec(batch_axes, None, head_axes)
    return jax.shard_map(
        _on_one_device,
        in_specs=(heads, heads, heads, PartitionSpec(batch_axes, head_axes)),
        out_specs=heads,
        check_vma=False,  # the kernel does not tell over which axes its results vary
    )(query, key, value, bias)


def _on_one_device(query: Array, key: Array, value: Array, bias: Array) -> Array:
    # Costs time, and only a TPU has a use for it.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    queries = query.shape[1]
    query, key, value = (_padded(x, (1,)).transpose(0, 2, 1, 3) for x in (query, key, value))
    bias = _padded(bias, (2, 3), _PADDING)
    out: Array = kernel.flash_attention(query, key, value, bias, sm_scale=1.0)
    return out.transpose(0, 2, 1, 3)[:, :queries]


def _padded(x: Array, axes: tuple[int, ...], value: float = 0.0) -> Array:
    widths = [(0, -x.shape[axis] % _BLOCK if axis in axes else 0) for axis in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def _dividing(
    mesh: jax.sharding.AbstractMesh, logical: str, size: int
) -> tuple[str, ...] | str | None:
    """The mesh axes that split a logical axis under the present rules, if they split it evenly."""
    (axes,) = nn.logical_to_mesh_axes((logical,)) or (None,)
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    parts = math.prod(mesh.shape[name] for name in names)
    if size % parts == 0:
        return axes
    if logical == "heads":  # batches of one row are nothing unusual: models start with them
        _warn(axes, size, parts)
    return None


@functools.cache
def _warn(axes: tuple[str, ...] | str, num_heads: int, parts: int) -> None:
    """Once for all layers and steps."""
    logger.warning(
        "flash attention: %d heads are not divisible by the %d parts of mesh axis %r, so every "
        "device computes all of them; change the mesh (make_mesh) or the model's size",
        *(num_heads, parts, axes),
    )

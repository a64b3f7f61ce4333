"""softmax(Q Kᵀ + bias) V with its own backward pass.

What the rule below gains over autodiff, measured on a 2-core CPU (batch 16, 4 heads, 176 x 176):
26 ms → 10 ms for forward and backward together.

- The softmax is not divided out: the exponentials multiply V and the small result is divided.
- The gradient of a position bias sums the scores' gradient over the batch. As a reduction over the
  outermost axis that alone takes XLA's CPU backend longer than all else here; as a product with
  ones it is free.
- Left operands are never transposed score matrices; see `dense.materialised_on_cpu`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.model.dense import materialised_on_cpu

Array = jax.Array


@jax.custom_vjp
def plain_attention(
    query: Array, key: Array, value: Array, position_bias: Array | None, mask: Array
) -> Array:
    """Attention without a scale (T5), sums and softmax in float32.

    Args:
      query: `[batch, query, heads, head_dim]`; its type is that of the products' operands.
      key, value: `[batch, key, heads, head_dim]`, of the same type.
      position_bias: float32 `[1, heads, query, key]`, or None.
      mask: additive float32 `[batch, 1, 1 or query, key]`; no gradient flows into it.

    Returns:
      `[batch, query, heads, head_dim]`, of `query`'s type.
    """
    return _forward(query, key, value, position_bias, mask)[0]


def cached_attention(
    query: Array, key: Array, value: Array, position_bias: Array | None, mask: Array, *new: Array
) -> Array:
    """As `plain_attention`, but keys and values are `[batch, heads, key, head_dim]`; no gradient.

    For few queries over a cache: no fused kernel gains anything there. `new` are a key and a value
    `[batch, heads, 1, head_dim]` that are read in place of what is in a column, and that column.
    Written into a layer's slice of a stacked cache first, they would copy it at every step; read
    apart from a cache of separate layers, XLA's CPU backend copies that twice.
    """
    operands: Any = (_heads_first(query), key, value, position_bias, mask, *new)
    if new:
        out, *_ = jax.lax.platform_dependent(*operands, cpu=_attend_written, default=_attend)
    else:
        out, *_ = _attend(*operands)
    return _heads_first(out).astype(query.dtype)


def with_column(cached: Array, new: Array, column: Array) -> Array:
    """A cache `[..., length, head_dim]` with `new` `[..., 1, head_dim]` in a column."""
    return jax.lax.dynamic_update_slice_in_dim(cached, new.astype(cached.dtype), column, -2)


def _product(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _heads_first(x: Array) -> Array:
    return x.transpose(0, 2, 1, 3)


def _forward(
    query: Array, key: Array, value: Array, position_bias: Array | None, mask: Array
) -> tuple[Array, tuple[Any, ...]]:
    dtype = query.dtype
    query, key, value = map(_heads_first, (query, key, value))
    out, exponentials, normaliser = _attend(query, key, value, position_bias, mask)
    kept = (query, key, value, exponentials, normaliser, out, position_bias, mask)
    return _heads_first(out).astype(dtype), kept


def _attend_written(
    query: Array, key: Array, value: Array, position_bias: Array | None, mask: Array, *new: Array
) -> tuple[Array, Array, Array]:
    new_key, new_value, column = new
    key, value = with_column(key, new_key, column), with_column(value, new_value, column)
    return _attend(query, key, value, position_bias, mask)


def _attend(
    query: Array, key: Array, value: Array, position_bias: Array | None, mask: Array, *new: Array
) -> tuple[Array, Array, Array]:
    """The result in float32, exponentials and their sums, all `[batch, heads, ...]`."""
    scores = _product("bhqd,bhkd->bhqk", query, key)
    if new:
        new_key, new_value, column = new
        here = jnp.arange(key.shape[2]) == column
        scores = jnp.where(here, _product("bhqd,bhkd->bhqk", query, new_key), scores)
    if position_bias is not None:
        scores = scores + position_bias
    scores = scores + mask
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)).astype(query.dtype)
    # Summed as rounded, so that the weights of a query add up to 1 exactly.
    normaliser = jnp.sum(exponentials.astype(jnp.float32), axis=-1, keepdims=True)
    of_cache = jnp.where(here, 0, exponentials) if new else exponentials
    out = _product("bhqk,bhkd->bhqd", of_cache, value)
    if new:
        weight = jnp.sum(exponentials - of_cache, axis=-1, keepdims=True)
        out += _product("bhqk,bhkd->bhqd", weight, new_value)
    return out / normaliser, exponentials, normaliser


def _backward(
    kept: tuple[Any, ...], cotangent: Array
) -> tuple[Array, Array, Array, Array | None, Array]:
    query, key, value, exponentials, normaliser, out, position_bias, mask = kept
    dtype = query.dtype
    # With E the exponentials and n their sums: weights P = E / n, so n divides the cotangent once.
    scaled = _heads_first(cotangent).astype(jnp.float32) / normaliser
    inner = jnp.sum(scaled * out, axis=-1, keepdims=True)
    scaled = scaled.astype(dtype)
    dvalue = _product(
        "bhdq,bhqk->bhdk", materialised_on_cpu(scaled.transpose(0, 1, 3, 2)), exponentials
    )
    dweights = _product("bhqd,bhkd->bhqk", scaled, value)
    dscores = exponentials.astype(jnp.float32) * (dweights - inner)
    rounded = dscores.astype(dtype)
    dquery = _product("bhqk,bhkd->bhqd", rounded, key)
    dkey = _product("bhdq,bhqk->bhdk", materialised_on_cpu(query.transpose(0, 1, 3, 2)), rounded)
    dbias = None
    if position_bias is not None:
        ones = jnp.ones((dscores.shape[0],), jnp.float32)
        dbias = jnp.einsum("b,bhqk->hqk", ones, dscores, precision="highest")[None]
    return (
        _heads_first(dquery).astype(dtype),
        dkey.transpose(0, 3, 1, 2).astype(dtype),
        dvalue.transpose(0, 3, 1, 2).astype(dtype),
        dbias,
        jnp.zeros_like(mask),
    )


plain_attention.defvjp(_forward, _backward)

"""softmax(Q Kᵀ + bias) V by the fastest way that the device has.

In gin:

    import m6rec_jax.model.dot_product_attention

    dot_product_attention.implementation = 'cudnn'

- 'plain': the package's own, on every device (`plain_attention`).
- 'xla': `jax.nn.dot_product_attention` as XLA compiles it.
- 'cudnn': cuDNN's fused attention on NVIDIA GPUs, which never holds the weights of all queries. The
  bias is rounded to bfloat16 there: between 4 and 8 by up to 1/64, beyond by more.
- 'auto': 'cudnn' on a GPU where it compiles for the types and lengths at hand, else 'plain'.

All are equal within rounding, gradients included, so a checkpoint does not know which it was.
"""

from __future__ import annotations

import functools
import logging

import gin
import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.plain_attention import plain_attention

Array = jax.Array
logger = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "plain", "xla", "cudnn")
# What cuDNN takes on every GPU that has bfloat16; Hopper takes heads of 256.
_CUDNN_TYPES = ("bfloat16", "float16")
_CUDNN_HEAD_DIM = 128


@gin.configurable(allowlist=["implementation"])
def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    position_bias: Array | None,
    mask: Array,
    *,
    implementation: str = "auto",
) -> Array:
    """Attention without a scale (T5), sums and softmax in float32.

    Args:
      query: `[batch, query, heads, head_dim]`; its type is that of the products' operands.
      key, value: `[batch, key, heads, head_dim]`, of the same type.
      position_bias: float32 `[1, heads, query, key]`, or None.
      mask: additive float32 `[batch, 1, 1 or query, key]`; no gradient flows into it.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      `[batch, query, heads, head_dim]`, of `query`'s type.

    Raises:
      ConfigError: an unknown implementation, or one that does not take these shapes or types.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"dot_product_attention.implementation = {implementation!r} is not one of "
            + ", ".join(IMPLEMENTATIONS)
        )
    if implementation == "auto":
        implementation = "cudnn" if _has_cudnn(query, key) else "plain"
    if implementation == "plain":
        return plain_attention(query, key, value, position_bias, mask)
    bias = jax.lax.stop_gradient(mask)
    bias = bias if position_bias is None else bias + position_bias
    if implementation == "cudnn":
        if objections := cudnn_objections(query, key):
            raise ConfigError(
                f"dot_product_attention.implementation = 'cudnn' {objections}; 'auto' takes "
                "another one in such places"
            )
        # Shared biases are written out: their gradients are then summed here, in float32.
        batch, queries, heads, _ = query.shape
        bias = jnp.broadcast_to(bias, (batch, heads, queries, key.shape[1])).astype(query.dtype)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=bias,
        scale=1.0,
        implementation="cudnn" if implementation == "cudnn" else "xla",
    )


def cudnn_objections(query: Array, key: Array) -> str:
    """Why cuDNN's attention with a bias does not take these arrays; empty if it does."""
    lengths, head_dim = (query.shape[1], key.shape[1]), query.shape[-1]
    if str(query.dtype) not in _CUDNN_TYPES:
        return f"needs operands of {' or '.join(_CUDNN_TYPES)}, not {query.dtype}"
    if head_dim % 8 or head_dim > _CUDNN_HEAD_DIM:
        return f"needs heads of a multiple of 8 up to {_CUDNN_HEAD_DIM}, not {head_dim}"
    if any(length % 2 for length in lengths):
        return f"needs even lengths, not {lengths[0]} queries and {lengths[1]} keys"
    return ""


def _has_cudnn(query: Array, key: Array) -> bool:
    if jax.default_backend() != "gpu" or cudnn_objections(query, key):
        return False
    _, queries, heads, head_dim = query.shape
    return _cudnn_compiles(queries, key.shape[1], heads, head_dim, str(query.dtype))


@functools.cache
def _cudnn_compiles(queries: int, keys: int, heads: int, head_dim: int, dtype: str) -> bool:
    """Whether forward and backward pass compile: versions of cuDNN and GPUs have their own limits.

    A wrong guess would end a run that the plain implementation serves as well.
    """

    def loss(query: Array, key: Array, value: Array, bias: Array) -> Array:
        out = dot_product_attention(
            query, key, value, bias, jnp.zeros((1, 1, 1, keys)), implementation="cudnn"
        )
        return jnp.sum(out.astype(jnp.float32))

    query = jax.ShapeDtypeStruct((1, queries, heads, head_dim), dtype)
    key = jax.ShapeDtypeStruct((1, keys, heads, head_dim), dtype)
    bias = jax.ShapeDtypeStruct((1, heads, queries, keys), jnp.float32)
    try:
        jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(query, key, key, bias).compile()
    except Exception as error:  # whatever JAX, XLA or cuDNN say
        logger.warning(
            "attention of %d queries and %d keys is not cuDNN's: %s",
            queries,
            keys,
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )
        return False
    return True

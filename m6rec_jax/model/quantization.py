"""Weights in 8 bits: bytes, and a float16 scale for each row of a table or output of a product.

A leaf of bytes, such as `kernel`, has its scales beside it, `kernel_scale`. The model multiplies
the bytes as they are and scales what comes out, so the weights are never held as floats. qwix
0.1.8 does not round embedding tables, over half of a small model.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array
SCALE = "_scale"
BITS = 8
_TABLE, _PROJECTION = "token_embedder/embedding", "token_embedder/projection"


def scaled_axes(name: str) -> tuple[int, ...]:
    """Axes of a leaf of the backbone that share a scale; none: it is no weight of a product.

    Args:
      name: without the collection, such as 'encoder/layers/mlp/wo/kernel'.
    """
    if name == _TABLE:
        return (1,)  # a row is looked up, or is the output of the logits
    if name == _PROJECTION:
        return (0,)
    if not name.endswith("kernel"):
        return ()
    first = int("/layers/" in name)
    return (first, first + 1) if name.endswith("out/kernel") else (first,)


def quantized(weight: Array, axes: tuple[int, ...], bits: int = BITS) -> tuple[Array, Array]:
    """Whole numbers up to 2^(bits - 1) - 1 and their float16 scales, whose product is near.

    Scales are `[..., 1, ...]` along the axes. Zero stays zero.
    """
    # Also of a backbone in bfloat16, which is packed as float32.
    weight = weight.astype(jnp.float32)
    most = 2 ** (bits - 1) - 1
    largest = jnp.max(jnp.abs(weight), axis=axes, keepdims=True)
    scale = (largest / most).astype(jnp.float16)
    # What float16 cannot tell from zero is zero.
    divisor = jnp.where(scale == 0, 1.0, scale.astype(jnp.float32))
    rounded = jnp.clip(jnp.rint(weight / divisor), -most, most)
    return rounded.astype(jnp.int8), scale


def dequantized(rounded: Array, scale: Array) -> Array:
    """As float32."""
    return rounded.astype(jnp.float32) * scale.astype(jnp.float32)


def scale_of(module: nn.Module, name: str) -> Array | None:
    """The scales beside a module's parameter, float32; None where it is of floats."""
    if not module.has_variable("params", name + SCALE):
        return None
    scale: Array = module.get_variable("params", name + SCALE)
    return nn.meta.unbox(scale).astype(jnp.float32)

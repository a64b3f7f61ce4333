"""Root-mean-square layer norm: a scale, no mean, no bias (T5)."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class LayerNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · scale over the last axis, computed in float32."""

    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., embed]` → the same shape, in `dtype`."""
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
            (x.shape[-1],),
            jnp.float32,
        )
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)

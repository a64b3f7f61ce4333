"""Early exit: which losses train it, and where in the decoder an answer may be read (section 5).

Only the decoder exits. The paper's model is one stack, whose layer k reads layer k of the source;
here the decoder reads the encoder's last layer, so the encoder runs once, in full. With late
interaction decoder layers below `first_cross_layer` have seen nothing of the source: an exit there
would answer without the user, so there is none, and exit k is the k-th layer with cross attention.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.model.config import ModelConfig

Array = jax.Array


def exit_weights(config: ModelConfig) -> np.ndarray:
    """Weights of the losses at the exits k = 1 … L, float32 `[exits]`, which add up to 1.

    'rising': 2k / (L(L + 1)), which favours deep exits. 'falling': in proportion to
    2k / (k(k + 1)), which favours shallow ones. Notes on the paper print the latter as it stands,
    where its sum grows with the depth; divided by it, a loss is comparable with that of the last
    layer alone.
    """
    k = np.arange(1, config.num_exits + 1, dtype=np.float64)
    weights = k if config.exit_losses == "rising" else 1.0 / (k + 1.0)
    return (weights / weights.sum()).astype(np.float32)


class TokenExits(NamedTuple):
    """When each row's next token leaves the decoder: none of it is compiled in.

    A token leaves when its state has settled: when a layer hardly turns it any more. Asking the
    vocabulary for its best two tokens after every layer, as CALM may (Schuster et al., 2022), costs
    more than the layers that it saves: in T5 1.1 small the head has six times a layer's products.

    Attributes:
      threshold: float32 `[rows]`, the cosine of the states before and after a layer, both after the
        final norm, from which a token leaves; above 1: never.
      depth: int32 `[rows]`, exits at most.
      asleep: bool `[rows]`; True: nobody waits for the row.
    """

    threshold: Array
    depth: Array
    asleep: Array

    def leaves(self, before: Array, after: Array, exit_index: Array) -> Array:
        """Whether each row leaves, bool `[rows]`.

        Args:
          before, after: `[rows, embed]`, after the final norm.
          exit_index: int32 scalar, from 0.
        """
        before, after = before.astype(jnp.float32), after.astype(jnp.float32)
        product = jnp.sum(before * after, axis=-1)
        norms = jnp.sum(before * before, axis=-1) * jnp.sum(after * after, axis=-1)
        cosine = product * jax.lax.rsqrt(norms + 1e-12)
        return (cosine >= self.threshold) | (exit_index + 1 >= self.depth)

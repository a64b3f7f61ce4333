"""Early exit: which losses train it, and where in the decoder an answer may be read (section 5).

Only the decoder exits. The paper's model is one stack, whose layer k reads layer k of the source;
here the decoder reads the encoder's last layer, so the encoder runs once, in full. With late
interaction decoder layers below `first_cross_layer` have seen nothing of the source: an exit there
would answer without the user, so there is none, and exit k is the k-th layer with cross attention.
"""

from __future__ import annotations

import numpy as np

from m6rec_jax.model.config import ModelConfig


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

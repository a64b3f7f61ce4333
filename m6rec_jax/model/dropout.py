"""Dropout with one mask shared along the length axis (T5's broadcast dropout)."""

from flax import linen as nn

from m6rec_jax.model.config import ModelConfig


def dropout(config: ModelConfig) -> nn.Dropout:
    """Dropout for `[batch, length, features]`.

    The mask is the same for every position of axis -2, as in T5: far fewer random bits, which
    would otherwise take longer than the layer itself on a CPU.
    """
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

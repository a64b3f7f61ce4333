"""Small models in the shapes of T5's relatives, with random weights."""

from __future__ import annotations

import numpy as np

from m6rec_jax.checkpoints.t5_weights import Weights, leaf_shapes
from m6rec_jax.model import ModelConfig

# heads × head_dim differs from embed_dim, and the towers differ in depth, as they may in T5.
T5_1_1 = ModelConfig(
    vocab_size=128,
    embed_dim=8,
    num_encoder_layers=3,
    num_decoder_layers=2,
    num_heads=3,
    head_dim=4,
    mlp_dim=10,
)
T5_1_0 = T5_1_1.replace(mlp_activations=("relu",), logits_via_embedding=True)
UMT5 = T5_1_1.replace(per_layer_relative_bias=True)
CONFIGS = {"t5_1_1": T5_1_1, "t5_1_0": T5_1_0, "umt5": UMT5}


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Every leaf random, so that no two could be exchanged unnoticed."""
    rng = np.random.default_rng(seed)
    shapes = leaf_shapes(config)
    return Weights(
        config, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    )


def assert_same_leaves(one: Weights, two: Weights) -> None:
    """Equal bit by bit."""
    assert one.leaves.keys() == two.leaves.keys()
    for name, leaf in one.leaves.items():
        assert leaf.dtype == two.leaves[name].dtype == np.float32
        np.testing.assert_array_equal(leaf, two.leaves[name], err_msg=name)

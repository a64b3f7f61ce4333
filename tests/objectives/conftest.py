"""A small model and a batch of every objective."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import M6Rec

CONFIG = ModelConfig(
    vocab_size=24,
    embed_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    head_dim=4,
    mlp_dim=8,
    scan_unroll=0,
    prompts=PromptConfig(num_prompts=4, num_options=3, head="option", retrieval_dim=6),
)
ROWS, SOURCE, TARGET = 5, 6, 9

Features = dict[str, Any]


@pytest.fixture(scope="module")
def features() -> Features:
    rng = np.random.default_rng(0)
    retrieval = np.array([[1], [0], [1], [1], [1]], np.int32)
    item_ids = np.full((ROWS, TARGET), -1, np.int32)
    # Row 1 is no retrieval row; item 3 is in rows 0 and 2; rows 3 and 4 are one user.
    for row, items in enumerate([[(2, 3), (5, 7), (8, 1)], [(4, 5)], [(3, 3)], [(8, 9)], [(2, 4)]]):
        for position, item in items:
            item_ids[row, position] = item
    labels = np.full((ROWS, TARGET), -1, np.int32)
    labels[1, 4], labels[1, 8] = 2, 0
    return {
        "encoder_input_tokens": rng.integers(2, 24, (ROWS, SOURCE)).astype(np.int32),
        "encoder_block_ids": np.ones((ROWS, SOURCE), np.int32),
        "decoder_input_tokens": rng.integers(2, 24, (ROWS, TARGET)).astype(np.int32),
        "decoder_target_tokens": rng.integers(2, 24, (ROWS, TARGET)).astype(np.int32),
        "decoder_loss_weights": rng.choice([0.0, 0.5, 1.0], (ROWS, TARGET)).astype(np.float32),
        "decoder_block_ids": np.tile(np.repeat([1, 2, 3], 3), (ROWS, 1)).astype(np.int32),
        "decoder_labels": labels,
        "decoder_item_ids": item_ids,
        "decoder_item_log_frequency": np.log(rng.random((ROWS, TARGET))).astype(np.float32),
        "task_ids": np.zeros((ROWS, 1), np.int32),
        "user_ids": np.array([[0], [1], [2], [3], [3]], np.int32),
        "retrieval": retrieval,
    }


@pytest.fixture(scope="module")
def variables(features: Features) -> dict[str, Any]:
    return made(CONFIG, features, 1)


def made(config: ModelConfig, features: Features, seed: int) -> dict[str, Any]:
    """Random variables, none of them zero."""
    shapes = jax.eval_shape(M6Rec(config).init, jax.random.key(0), features)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (rng.normal(size=leaf.value.shape) * 0.5).astype(np.float32),
        shapes,
        is_leaf=lambda leaf: hasattr(leaf, "names"),
    )

"""Unpacked candidates are the same candidates."""

import gin
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.efficiency import (
    FULL,
    TUNED,
    TUNED_BFLOAT16,
    Models,
    measured,
    one_candidate_per_row,
    tuning_programs,
)
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig


def test_candidates_in_rows_of_their_own_score_the_same() -> None:
    rng = np.random.default_rng(0)
    blocks = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 2, 3, 3]], np.int32)
    labels = np.array([[-1, -1, 1, -1, 0, -1, -1], [-1, 0, -1, -1, 1, -1, 1]], np.int32)
    source = rng.integers(3, 50, (2, 5)).astype(np.int32)
    batch = {
        "encoder_input_tokens": source,
        "encoder_block_ids": np.ones_like(source),
        "decoder_input_tokens": np.where(blocks > 0, rng.integers(3, 50, blocks.shape), 0).astype(
            np.int32
        ),
        "decoder_block_ids": blocks,
        "decoder_labels": labels,
        "task_ids": np.zeros((2, 1), np.int32),
    }
    single = one_candidate_per_row(batch, 4)
    assert single["decoder_block_ids"].tolist() == [
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 0, 0],
    ]
    assert single["decoder_labels"][single["decoder_labels"] >= 0].tolist() == [1, 0, 0, 1, 1]
    config = ModelConfig(
        vocab_size=64,
        embed_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        head_dim=8,
        mlp_dim=16,
        prompts=PromptConfig(num_prompts=2, num_options=2, head="option"),
    )
    model = M6Rec(config)
    variables = jax.jit(model.init)(
        jax.random.key(0), {k: jnp.asarray(v) for k, v in batch.items()}
    )

    @jax.jit
    def options(features: dict[str, jax.Array]) -> jax.Array:
        hidden = model.apply(variables, features).hidden
        return model.apply(variables, hidden, features["task_ids"], method=model.option_logits)

    def logits(features: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(options(features))[features["decoder_labels"] >= 0]

    # Sums over a row of another length are rounded in another order.
    np.testing.assert_allclose(logits(single), logits(batch), rtol=1e-4, atol=1e-5)


def test_what_full_and_frozen_tuning_hold() -> None:
    """Where the backbone is nearly all: its gradient besides, itself alone, half of itself."""
    frozen = ModelConfig(
        vocab_size=1 << 15,
        embed_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        head_dim=8,
        mlp_dim=16,
        logits_via_embedding=True,
        prompts=PromptConfig(num_prompts=2, num_options=2, head="option", adapter_rank=2),
    )
    models = Models(frozen, frozen.replace(prompts=PromptConfig(num_options=2, head="linear")))
    batch = {
        "encoder_input_tokens": np.full((1, 4), 7, np.int32),
        "encoder_block_ids": np.ones((1, 4), np.int32),
        "decoder_input_tokens": np.full((1, 3), 9, np.int32),
        "decoder_block_ids": np.ones((1, 3), np.int32),
        "decoder_labels": np.array([[-1, -1, 1]], np.int32),
        "task_ids": np.zeros((1, 1), np.int32),
    }
    gin.parse_config("""
        adafactor.learning_rate = 0.1
        total_loss.language_modelling_weight = 0.0
        total_loss.classification_weight = 1.0
    """)
    figures = measured(tuning_programs(models, batch), batch, turns=1)
    held = {name: own["peak_memory_mib"] for name, own in figures.items()}
    backbone = (1 << 15) * 32 * 4 / 2**20
    assert held[FULL] > 1.9 * backbone
    assert 1.0 * backbone < held[TUNED] < 1.2 * backbone
    assert held[TUNED_BFLOAT16] < held[TUNED] - 0.4 * backbone

"""A small model with random weights and a checkpoint of it."""

from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.text.vocabulary import Vocabulary


def small_model(vocabulary: Vocabulary, model_dir: Path, seed: int, **prompts: Any) -> tuple:
    """The model and its variables, which `model_dir` has as step 3."""
    model = M6Rec(
        ModelConfig(
            vocab_size=vocabulary.size,
            embed_dim=16,
            num_encoder_layers=1,
            num_decoder_layers=1,
            num_heads=2,
            head_dim=8,
            mlp_dim=32,
            prompts=PromptConfig(**prompts),
        )
    )
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed), initial_features()))
    run = RunDescription(model.config, vocabulary.fingerprint, "all", 1)
    with CheckpointStore(model_dir / "checkpoints") as store:
        store.save(3, dict(variables), data={}, run=run)
    return model, variables

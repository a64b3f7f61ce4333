"""A tiny random model with a head, adapters and two towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.text.vocabulary import Vocabulary
from tests.random_variables import filled


def make_model(
    vocabulary: Vocabulary, prompts: Mapping[str, Any] | None = None, **changes: Any
) -> tuple[M6Rec, dict[str, Any]]:
    """A new model; `prompts` and `changes` are settings of `PromptConfig` and `ModelConfig`."""
    of_prompts: dict[str, Any] = {
        "num_prompts": 4,
        "num_options": 3,
        "head": "option",
        "adapter_rank": 2,
        "retrieval_dim": 16,
        "num_tasks": 2,
        "special_token_ids": vocabulary.special_ids,
    }
    of_model: dict[str, Any] = {
        "vocab_size": vocabulary.size,
        "embed_dim": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "head_dim": 16,
        "mlp_dim": 64,
        "prompts": PromptConfig(**(of_prompts | dict(prompts or {}))),
    }
    model, key = M6Rec(ModelConfig(**(of_model | changes))), jax.random.key(0)
    variables = jax.jit(model.init)({"params": key, "prompts": key}, initial_features())
    return model, nn.meta.unbox(variables)


def livelier(variables: Any) -> Any:
    """A new model writes the same word for ever, for everybody: let every variable be random."""
    return jax.tree.map(jnp.asarray, filled(variables, about_one="scale"))

"""A tiny random model with a head, adapters and two towers."""

import jax

from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import initial_features


def make_model(vocabulary, **changes):
    prompts = PromptConfig(
        num_prompts=4,
        num_options=3,
        head="option",
        adapter_rank=2,
        retrieval_dim=16,
        num_tasks=2,
        special_token_ids=vocabulary.special_ids,
    )
    config = ModelConfig(
        vocab_size=vocabulary.size,
        embed_dim=32,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=16,
        mlp_dim=64,
        prompts=prompts,
        **changes,
    )
    model = M6Rec(config)
    key = jax.random.key(0)
    variables = jax.jit(model.init)({"params": key, "prompts": key}, initial_features())
    from flax import linen as nn

    return model, nn.meta.unbox(variables)

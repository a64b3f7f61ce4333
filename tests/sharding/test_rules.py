"""The logical axes that rules may name are those that the model has."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax.core import meta

from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.sharding.rules import LOGICAL_AXES

CONFIG = ModelConfig(
    vocab_size=32,
    embed_dim=8,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    late_layers_start=1,
    prompts=PromptConfig(
        num_prompts=4,
        num_options=2,
        head="linear",
        adapter_rank=2,
        lora_rank=2,
        embedding_rank=2,
        pooling_rank=2,
        special_token_ids=(0,),
        retrieval_dim=4,
        num_segment_embeddings=2,
    ),
)


def test_rules_may_name_every_axis_of_the_model_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: set[str | None] = set()
    constrained = nn.with_logical_constraint

    def recorded(x: Any, names: Any, *args: Any, **options: Any) -> Any:
        found.update(names)
        return constrained(x, names, *args, **options)

    monkeypatch.setattr(nn, "with_logical_constraint", recorded)
    model = M6Rec(CONFIG)
    ints = jnp.zeros((2, 4), jnp.int32)
    features = {
        "encoder_input_tokens": ints,
        "encoder_block_ids": ints,
        "decoder_input_tokens": ints,
        "decoder_block_ids": ints,
        "task_ids": ints[:, :1],
    }

    def run(key: jax.Array) -> Any:
        variables = model.init(key, features)
        hidden = model.apply(variables, features).hidden
        return variables, model.apply(variables, hidden, method=model.token_logits)

    variables, _ = jax.eval_shape(run, jax.random.key(0))
    for leaf in jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, meta.Partitioned)):
        found.update(leaf.names)
    assert found - {None} == set(LOGICAL_AXES)

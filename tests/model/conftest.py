"""A tiny model, a batch with padding everywhere, and variables without a single zero."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn

from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.tuning.lora import TARGETS
from m6rec_jax.text.vocabulary import EOS_ID
from tests.random_variables import filled

Variables = dict[str, Any]
Features = Mapping[str, np.ndarray]


def tuned(config: ModelConfig, **prompts: Any) -> ModelConfig:
    """With these settings of `PromptConfig` beside those that it has."""
    return config.replace(prompts=dataclasses.replace(config.prompts, **prompts))


def hidden(config: ModelConfig, variables: Any, features: Features, **options: Any) -> np.ndarray:
    """The decoder's states, `[rows, target, embed]`."""
    apply = jax.jit(functools.partial(M6Rec(config).apply, **options))
    return np.asarray(apply(variables, features).hidden)


@pytest.fixture(scope="session")
def prompt_config() -> PromptConfig:
    return PromptConfig(
        num_tasks=1,
        num_prompts=4,
        num_options=3,
        head="option",
        adapter_rank=2,
        special_token_ids=(0, 1, 29),
        retrieval_dim=5,
        num_segment_embeddings=3,
    )


@pytest.fixture(scope="session")
def config(prompt_config: PromptConfig) -> ModelConfig:
    return ModelConfig(
        vocab_size=32,
        embed_dim=12,
        num_encoder_layers=3,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=5,
        mlp_dim=14,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        late_layers_start=2,
        prompts=prompt_config,
    )


@pytest.fixture(scope="session")
def every_method(config: ModelConfig) -> ModelConfig:
    """LoRA, (IA)³, updates of the embedding and pooling beside what `config` has."""
    methods = {"lora_rank": 2, "lora_scale": 0.7, "lora_targets": TARGETS, "embedding_rank": 1}
    methods |= {"ia3_targets": ("key", "value", "hidden"), "pooling_rank": 2}
    return tuned(config, **methods)


def _row(lengths: list[int], total: int) -> np.ndarray:
    blocks = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(blocks, (0, total - len(blocks)))


@pytest.fixture(scope="session")
def features() -> dict[str, np.ndarray]:
    """Three rows: several blocks and candidates, one of each, and a retrieval row.

    Candidates end in [EOS], or pooling would do nothing.
    """
    rng = np.random.default_rng(0)
    encoder_blocks = np.stack([_row([3, 4, 2, 1], 11), _row([5], 11), _row([2, 6, 1], 11)])
    decoder_blocks = np.stack([_row([4, 2, 3], 10), _row([7], 10), _row([5, 5], 10)])

    def tokens(blocks: np.ndarray) -> np.ndarray:
        return np.where(blocks > 0, rng.integers(0, 32, blocks.shape), 0).astype(np.int32)

    ends = np.diff(decoder_blocks, append=0) != 0
    return {
        "encoder_input_tokens": tokens(encoder_blocks),
        "encoder_block_ids": encoder_blocks.astype(np.int32),
        "decoder_input_tokens": np.where(ends, EOS_ID, tokens(decoder_blocks)),
        "decoder_block_ids": decoder_blocks.astype(np.int32),
        "task_ids": np.zeros((3, 1), np.int32),
        "retrieval": np.array([[0], [0], [1]], np.int32),
    }


@pytest.fixture(scope="session")
def make_variables(features: Features) -> Callable[..., Variables]:
    """make_variables(config, seed) → unboxed variables, every leaf random (adapters too)."""

    def make(config: ModelConfig, seed: int = 0) -> Variables:
        model = M6Rec(config)
        shapes = jax.eval_shape(lambda: nn.meta.unbox(model.init(jax.random.key(0), features)))
        made: Variables = filled(shapes, seed)
        return made

    return make

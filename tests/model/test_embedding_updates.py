"""Updates of the token embedding: the same as a merged table, nothing at the start."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig

Make = Callable[..., dict[str, Any]]
Features = dict[str, np.ndarray]
# Two ways to sum the same float32 products.
TOLERANCE = {"rtol": 3e-5, "atol": 3e-5}


def with_updates(config: ModelConfig, rank: int = 2, **changes: Any) -> ModelConfig:
    """Updates of the embedding beside everything else that the configuration has."""
    return config.replace(
        prompts=dataclasses.replace(config.prompts, embedding_rank=rank, **changes)
    )


def hidden(config: ModelConfig, variables: Any, features: Features) -> np.ndarray:
    return np.asarray(jax.jit(M6Rec(config).apply)(variables, features).hidden)


def merged(variables: Any) -> dict[str, Any]:
    """The backbone with E + A B in place of E, summed in float64."""
    params = jax.tree.map(np.copy, variables["params"])
    bank = variables["prompts"]["bank"]
    a, b = (np.asarray(bank[f"embedding_update_{key}"][0], np.float64) for key in "ab")
    table = params["token_embedder"]["embedding"]
    params["token_embedder"]["embedding"] = (table + a @ b).astype(np.float32)
    return {"params": params, "prompts": variables["prompts"]}


def test_equals_a_merged_table(
    config: ModelConfig, make_variables: Make, features: Features
) -> None:
    tuned, plain = with_updates(config), with_updates(config, rank=0)
    variables = make_variables(tuned)
    actual = hidden(tuned, variables, features)
    np.testing.assert_allclose(actual, hidden(plain, merged(variables), features), **TOLERANCE)
    assert np.abs(actual - hidden(plain, variables, features)).max() > 1e-2


def test_vocabulary_logits_keep_the_backbones_table(
    config: ModelConfig, make_variables: Make, features: Features
) -> None:
    tuned = with_updates(config).replace(logits_via_embedding=True)
    variables = make_variables(tuned)
    states = hidden(tuned, variables, features)
    logits = M6Rec(tuned).apply(variables, states, method="token_logits")
    table = variables["params"]["token_embedder"]["embedding"]
    expected = states.astype(np.float64) @ table.T.astype(np.float64) / config.embed_dim**0.5
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


def test_not_with_early_layers_that_all_tasks_share() -> None:
    with pytest.raises(ConfigError, match=r"embedding_rank = 1 .* adapters_late_only"):
        PromptConfig(embedding_rank=1, adapters_late_only=True)
    with pytest.raises(ConfigError, match="embedding_rank = -1"):
        PromptConfig(embedding_rank=-1)

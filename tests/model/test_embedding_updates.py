"""Updates of the token embedding: the same as a merged table, nothing at the start."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from tests.model.conftest import hidden, tuned

Make = Callable[..., dict[str, Any]]
Features = dict[str, np.ndarray]
# Two ways to sum the same float32 products.
TOLERANCE = {"rtol": 3e-5, "atol": 3e-5}


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
    updated = tuned(config, embedding_rank=2)
    variables = make_variables(updated)
    actual = hidden(updated, variables, features)
    np.testing.assert_allclose(actual, hidden(config, merged(variables), features), **TOLERANCE)
    assert np.abs(actual - hidden(config, variables, features)).max() > 1e-2


def test_vocabulary_logits_keep_the_backbones_table(
    config: ModelConfig, make_variables: Make, features: Features
) -> None:
    updated = tuned(config, embedding_rank=2).replace(logits_via_embedding=True)
    variables = make_variables(updated)
    states = hidden(updated, variables, features)
    logits = M6Rec(updated).apply(variables, states, method="token_logits")
    table = variables["params"]["token_embedder"]["embedding"]
    expected = states.astype(np.float64) @ table.T.astype(np.float64) / config.embed_dim**0.5
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


def test_not_with_early_layers_that_all_tasks_share() -> None:
    with pytest.raises(ConfigError, match=r"embedding_rank = 1 .* adapters_late_only"):
        PromptConfig(embedding_rank=1, adapters_late_only=True)
    with pytest.raises(ConfigError, match="embedding_rank = -1"):
        PromptConfig(embedding_rank=-1)

"""(IA)³: the same as scaled kernels."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import ModelConfig, PromptConfig
from tests.model.conftest import hidden, tuned

Make = Callable[..., dict[str, Any]]
Features = dict[str, np.ndarray]


def merged(variables: Any) -> dict[str, Any]:
    """The backbone with scaled kernels: columns of keys and values, rows of the second matrix."""
    params = jax.tree.map(np.copy, variables["params"])
    for tower, kinds in (("encoder", ("self",)), ("decoder", ("self", "cross"))):
        layers, own = params[tower]["layers"], variables["prompts"][tower]["layers"]
        for kind in kinds:
            for name in ("key", "value"):
                factors = own[f"{kind}_attention"][f"ia3_{name}"]["factors"][:, 0]
                layers[f"{kind}_attention"][name]["kernel"] *= factors[:, None]
        layers["mlp"]["wo"]["kernel"] *= own["mlp"]["ia3_hidden"]["factors"][:, 0, :, None]
    return {"params": params, "prompts": variables["prompts"]}


def test_equals_merged_weights(
    config: ModelConfig, make_variables: Make, features: Features
) -> None:
    scaled = tuned(config, ia3_targets=("key", "value", "hidden"))
    variables = make_variables(scaled)
    actual = hidden(scaled, variables, features)
    expected = hidden(config, merged(variables), features)
    np.testing.assert_allclose(actual, expected, rtol=3e-5, atol=3e-5)
    assert np.abs(actual - hidden(config, variables, features)).max() > 1e-2


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="ia3_targets has unknown 'keys'; known: key, value"):
        PromptConfig(ia3_targets=("keys",))  # type: ignore[call-arg]

"""LoRA: the same as merged weights, nothing at the start, and the task's own everywhere."""

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

ATTENTIONS = (("encoder", "self"), ("decoder", "self"), ("decoder", "cross"))


def merged(config: ModelConfig, variables: Any, task: int = 0) -> dict[str, Any]:
    """The backbone with W + scale · A B in place of W, summed in float64; no sharing of layers."""
    params = jax.tree.map(np.copy, variables["params"])
    for tower, kind in ATTENTIONS:
        attention = params[tower]["layers"][f"{kind}_attention"]
        updates = variables["prompts"][tower]["layers"][f"{kind}_attention"]
        for name in config.prompts.lora_targets:
            a, b = (np.asarray(updates[f"lora_{name}"][key], np.float64) for key in ("a", "b"))
            kernel = attention[name]["kernel"]
            sums = np.stack(
                [
                    one.astype(np.float64)
                    + config.prompts.lora_scale * np.tensordot(a[layer, task], b[layer, task], 1)
                    for layer, one in enumerate(kernel)
                ]
            )
            attention[name]["kernel"] = sums.astype(np.float32)
    return {"params": params, "prompts": variables["prompts"]}


@pytest.mark.parametrize(
    ("targets", "scan_unroll"),
    [(("query", "value"), 1), (("query", "value"), 0), (("key",), 1), (("out",), 1)],
)
def test_equals_merged_weights(
    config: ModelConfig,
    make_variables: Make,
    features: Features,
    targets: tuple[str, ...],
    scan_unroll: int,
) -> None:
    lora = tuned(config, lora_rank=3, lora_scale=0.7, lora_targets=targets)
    lora = lora.replace(scan_unroll=scan_unroll)
    variables = make_variables(lora)
    actual = hidden(lora, variables, features)
    expected = hidden(config, merged(lora, variables), features)
    np.testing.assert_allclose(actual, expected, rtol=3e-5, atol=3e-5)
    assert np.abs(actual - hidden(config, variables, features)).max() > 1e-2


def test_config_errors() -> None:
    with pytest.raises(ConfigError, match="lora_rank = -1 must be an integer of at least 0"):
        PromptConfig(lora_rank=-1)
    message = "lora_targets has unknown 'wi'; known: query, key, value, out"
    with pytest.raises(ConfigError, match=message):
        PromptConfig(lora_targets=("query", "wi"))
    with pytest.raises(ConfigError, match=r"lora_targets = 3 must be a list, such as \(3,\)"):
        PromptConfig(lora_targets=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="lora_rank = 2, but lora_targets is empty"):
        PromptConfig(lora_rank=2, lora_targets=())
    assert PromptConfig(lora_targets="out").lora_targets == ("out",)  # type: ignore[arg-type]

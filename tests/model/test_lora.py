"""LoRA: the same as merged weights, nothing at the start, and the task's own everywhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.tuning.lora import TARGETS as LORA_TARGETS

Make = Callable[..., dict[str, Any]]
Features = dict[str, np.ndarray]

RANK, SCALE = 3, 0.7
ATTENTIONS = (("encoder", "self"), ("decoder", "self"), ("decoder", "cross"))


def with_lora(config: ModelConfig, **changes: Any) -> ModelConfig:
    """LoRA beside everything else that the configuration has."""
    values = {"lora_rank": RANK, "lora_scale": SCALE, "lora_targets": LORA_TARGETS, **changes}
    return config.replace(prompts=dataclasses.replace(config.prompts, **values))


def hidden(config: ModelConfig, variables: Any, features: Features) -> np.ndarray:
    outputs = jax.jit(M6Rec(config).apply)(variables, features)
    return np.asarray(outputs.hidden, np.float32)


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
    tuned = with_lora(config, lora_targets=targets).replace(scan_unroll=scan_unroll)
    variables = make_variables(tuned)
    plain = with_lora(config, lora_rank=0)
    actual = hidden(tuned, variables, features)
    expected = hidden(plain, merged(tuned, variables), features)
    np.testing.assert_allclose(actual, expected, rtol=3e-5, atol=3e-5)
    assert np.abs(actual - hidden(plain, variables, features)).max() > 1e-2


def test_variables(config: ModelConfig, features: Features) -> None:
    """Leading axes layers and tasks, one set per layer even where layers are shared."""
    tuned = with_lora(config, num_tasks=2).replace(share_layers=True)
    boxed = jax.eval_shape(M6Rec(tuned).init, jax.random.key(0), features)
    leaves = boxed["prompts"]["decoder"]["layers"]["cross_attention"]
    assert set(leaves) == {f"lora_{name}" for name in LORA_TARGETS}
    expected = {
        ("lora_value", "a"): ((2, 2, 12, RANK), ("layers", "tasks", "embed", "rank")),
        ("lora_value", "b"): ((2, 2, RANK, 2, 5), ("layers", "tasks", "rank", "heads", "kv")),
        ("lora_out", "a"): ((2, 2, 2, 5, RANK), ("layers", "tasks", "heads", "kv", "rank")),
        ("lora_out", "b"): ((2, 2, RANK, 12), ("layers", "tasks", "rank", "embed")),
    }
    for (name, matrix), (shape, axes) in expected.items():
        leaf = leaves[name][matrix]
        assert (leaf.value.shape, leaf.names, leaf.value.dtype) == (shape, axes, jnp.float32)
    encoder = boxed["prompts"]["encoder"]["layers"]["self_attention"]["lora_query"]["a"]
    assert encoder.value.shape[0] == 3
    bare = jax.eval_shape(
        M6Rec(tuned.replace(prompts=PromptConfig())).init, jax.random.key(0), features
    )
    assert jax.tree.map(jnp.shape, boxed["params"]) == jax.tree.map(jnp.shape, bare["params"])


def test_config_errors() -> None:
    with pytest.raises(ConfigError, match="lora_rank = -1 must be an integer of at least 0"):
        PromptConfig(lora_rank=-1)
    message = "lora_targets has unknown 'wi'; known: query, key, value, out"
    with pytest.raises(ConfigError, match=message):
        PromptConfig(lora_targets=("query", "wi"))
    with pytest.raises(ConfigError, match="lora_rank = 2, but lora_targets is empty"):
        PromptConfig(lora_rank=2, lora_targets=())
    assert PromptConfig(lora_targets="out").lora_targets == ("out",)  # type: ignore[arg-type]

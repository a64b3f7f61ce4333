"""Every implementation of attention against the plain one, and which is chosen where."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import dot_product_attention as ours
from m6rec_jax.model import plain_attention as plain_attention_module
from m6rec_jax.model.dot_product_attention import cudnn_objections, dot_product_attention
from m6rec_jax.model.plain_attention import plain_attention

# (batch, queries, keys, heads, head_dim)
SHAPE = (2, 6, 10, 3, 8)


def inputs(shape: tuple[int, ...], dtype: str = "float32") -> tuple[Any, ...]:
    """Query, key, value, position bias, mask; the last example's last query sees nothing."""
    batch, queries, keys, heads, head_dim = shape
    rng = np.random.default_rng(0)

    def draw(*sizes: int) -> np.ndarray:
        return rng.standard_normal(sizes).astype(np.float32)

    mask = np.where(rng.random((batch, 1, queries, keys)) < 0.7, 0.0, -1e9).astype(np.float32)
    mask[-1, :, -1] = -1e9
    return (
        jnp.asarray(draw(batch, queries, heads, head_dim), dtype),
        jnp.asarray(draw(batch, keys, heads, head_dim), dtype),
        jnp.asarray(draw(batch, keys, heads, head_dim), dtype),
        jnp.asarray(3 * draw(1, heads, queries, keys)),
        jnp.asarray(mask),
    )


def outcome(attention: Callable[..., Any], arguments: tuple[Any, ...], *, bias: bool = True) -> Any:
    """Output and gradients (query, key, value, position bias) of a sum with fixed weights."""
    *arrays, mask = arguments
    arrays = arrays if bias else arrays[:3]
    weight = np.random.default_rng(1).standard_normal(arrays[0].shape)

    def loss(*arrays: Any) -> Any:
        out = attention(*arrays[:3], arrays[3] if bias else None, mask)
        return jnp.sum(out.astype(jnp.float32) * weight), out

    places = tuple(range(len(arrays)))
    (_, out), gradients = jax.jit(jax.value_and_grad(loss, places, has_aux=True))(*arrays)
    return out, *gradients


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Within a tolerance relative to the largest value: gradients are sums of both signs."""
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        atol = tolerance * np.abs(other).max()
        np.testing.assert_allclose(one, other, atol=atol, rtol=0, equal_nan=False)


def using(implementation: str) -> Callable[..., Any]:
    return lambda *arguments: dot_product_attention(*arguments, implementation=implementation)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_xla_is_the_plain_one(bias: bool, dtype: str, tolerance: float) -> None:
    """In bfloat16 both round, at other places: 2^-8 for a weight, twice in the backward pass."""
    arguments = inputs(SHAPE, dtype)
    found = outcome(using("xla"), arguments, bias=bias)
    assert_close(found, outcome(plain_attention, arguments, bias=bias), tolerance)


def test_a_mask_for_all_queries() -> None:
    *arrays, mask = inputs(SHAPE)
    arguments = (*arrays, mask[:, :, :1])
    assert_close(outcome(using("xla"), arguments), outcome(plain_attention, arguments), 1e-5)


def test_auto_on_a_cpu_is_the_plain_one() -> None:
    arguments = inputs(SHAPE, "bfloat16")
    found = jax.make_jaxpr(dot_product_attention)(*arguments)
    assert str(found) == str(jax.make_jaxpr(plain_attention)(*arguments))


@pytest.mark.parametrize("bias", [True, False])
def test_cudnn_is_asked_for_what_it_takes(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered for a GPU without one: JAX's own checks pass, forward and backward."""
    fused = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    *arrays, mask = inputs(SHAPE, "bfloat16")

    def loss(*arrays: Any) -> Any:
        out = dot_product_attention(
            *arrays[:3], arrays[3] if bias else None, mask, implementation="cudnn"
        )
        return jnp.sum(out.astype(jnp.float32))

    arrays = arrays if bias else arrays[:3]
    step = jax.jit(jax.grad(loss, tuple(range(len(arrays)))))
    text = step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text


def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(ours, "_cudnn_compiles", lambda *_: True)
    asked: list[str] = []

    def noted(query: Any, *_: Any, implementation: str, **__: Any) -> Any:
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", noted)
    dot_product_attention(*inputs(SHAPE, "bfloat16"))
    assert asked == ["cudnn"]
    for shape, dtype in (((2, 1, 10, 3, 8), "bfloat16"), (SHAPE, "float32")):
        dot_product_attention(*inputs(shape, dtype))
    assert asked == ["cudnn"], "one query at a time, and float32, are for the plain one"


def test_auto_does_without_cudnn_that_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is none here."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    arguments = inputs((2, 4, 12, 3, 8), "bfloat16")
    with caplog.at_level("WARNING", ours.__name__):
        found = jax.make_jaxpr(dot_product_attention)(*arguments)
    assert str(found) == str(jax.make_jaxpr(plain_attention)(*arguments))
    assert "attention of 4 queries and 12 keys is not cuDNN's: " in caplog.text


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        (SHAPE, "float32", "operands of bfloat16 or float16, not float32"),
        ((1, 2, 2, 1, 12), "bfloat16", "heads of a multiple of 8 up to 128, not 12"),
        ((1, 2, 2, 1, 256), "bfloat16", "not 256"),
        ((1, 2, 3, 1, 8), "bfloat16", "even lengths, not 2 queries and 3 keys"),
    ],
)
def test_what_cudnn_does_not_take(shape: tuple[int, ...], dtype: str, words: str) -> None:
    arguments = inputs(shape, dtype)
    assert words in cudnn_objections(*arguments[:2])
    with pytest.raises(ConfigError, match=words):
        using("cudnn")(*arguments)


def test_gin_chooses() -> None:
    arguments = inputs(SHAPE)
    with gin.unlock_config():
        gin.bind_parameter("dot_product_attention.implementation", "cuddn")
    try:
        with pytest.raises(ConfigError, match="'cuddn' is not one of auto, plain, xla, cudnn"):
            dot_product_attention(*arguments)
    finally:
        with gin.unlock_config():
            gin.clear_config()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_column_read_apart_or_written_first(dtype: str) -> None:
    query, key, value, bias, mask = inputs(SHAPE, dtype)
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    column = jnp.int32(4)
    new = key[:, :, :1] + 1, value[:, :, :1] - 1, column
    apart = plain_attention_module._attend(query, key, value, bias, mask, *new)[0]
    written = plain_attention_module._attend_written(query, key, value, bias, mask, *new)[0]
    # Sums in another order; bfloat16 operands are summed in float32.
    np.testing.assert_allclose(apart, written, rtol=1e-5, atol=1e-5)
    untouched = plain_attention_module._attend(query, key, value, bias, mask)[0]
    assert np.abs(np.asarray(written - untouched)).max() > 0.01

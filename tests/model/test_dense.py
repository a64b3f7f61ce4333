"""Products with rounded operands: right in float32, close in bfloat16, summed in float32."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.model.dense import dot
from m6rec_jax.model.dot_product_attention import dot_product_attention

SHAPES = [
    ("nd,df->nf", (40, 24), (24, 16), {}),
    ("bsd,dhk->bshk", (3, 5, 8), (8, 2, 4), {}),
    ("bshk,hkd->bsd", (3, 5, 2, 4), (2, 4, 8), {"num_contracted": 2}),
    ("bsd,bdr->bsr", (3, 5, 8), (3, 8, 2), {"num_batch": 1}),
]


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def relative_error(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("spec", "x_shape", "y_shape", "options"), SHAPES)
@pytest.mark.parametrize(("operand_dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 5e-3)])
def test_value_and_gradients(
    spec: str,
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    options: dict[str, Any],
    operand_dtype: str,
    tolerance: float,
) -> None:
    x, y = arrays(x_shape, y_shape)
    (weight,) = arrays(np.einsum(spec, x, y).shape)

    def plain(x: Any, y: Any) -> Any:
        return jnp.einsum(spec, x, y)

    def rounded(x: Any, y: Any) -> Any:
        return dot(x, y, operand_dtype=operand_dtype, **options)

    assert relative_error(jax.jit(rounded)(x, y), plain(x, y)) < tolerance
    expected = jax.grad(lambda *a: jnp.sum(jnp.sin(plain(*a)) * weight), (0, 1))(x, y)
    actual = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(rounded(*a)) * weight), (0, 1)))(x, y)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == jnp.float32
        assert relative_error(one, other) < 4 * tolerance
        if operand_dtype == "bfloat16":
            assert relative_error(one, other) > 1e-5, "nothing was rounded"


def test_sums_are_float32() -> None:
    """4096 ones: a bfloat16 sum would stick at 256."""
    x, y = jnp.ones((4, 4096)), jnp.ones((4096, 4))
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x, y: dot(x, y, operand_dtype="bfloat16")[0, 0])
    )(x, y)
    assert value == 4096
    assert gradient[0, 0] == 1
    (gradient,) = jax.jit(
        jax.grad(lambda x, y: jnp.sum(dot(x.T, y.T, operand_dtype="bfloat16")), (0,))
    )(jnp.ones((1, 4096)), jnp.ones((4096, 1)))
    assert gradient[0, 0] == 4096


def test_every_product_of_the_backward_pass_has_rounded_operands() -> None:
    """In the lowered program all three products take bfloat16 and give float32."""
    step = jax.jit(
        jax.grad(lambda x, y: jnp.sum(jnp.sin(dot(x, y, operand_dtype="bfloat16"))), (0, 1))
    )
    text = step.lower(jnp.ones((8, 4)), jnp.ones((4, 6))).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    for line in products:
        operands, result = line.rsplit("->", 1)
        assert operands.count("bf16>") == 2, line
        assert "xf32>" in result, line


@pytest.mark.parametrize("with_bias", [True, False])
def test_attention_gradients(with_bias: bool) -> None:
    query, key, value, bias, weight = arrays(
        (2, 4, 3, 5), (2, 6, 3, 5), (2, 6, 3, 5), (1, 3, 4, 6), (2, 4, 3, 5)
    )
    mask = np.where(np.random.default_rng(1).random((2, 1, 4, 6)) < 0.7, 0.0, -1e9)
    mask = mask.astype(np.float32)

    def plain(query: Any, key: Any, value: Any, bias: Any) -> Any:
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) + mask
        scores = scores + bias if with_bias else scores
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), value)

    def ours(query: Any, key: Any, value: Any, bias: Any) -> Any:
        return dot_product_attention(query, key, value, bias if with_bias else None, mask)

    inputs = (query, key, value, bias)
    np.testing.assert_allclose(ours(*inputs), plain(*inputs), rtol=1e-5, atol=1e-6)
    expected = jax.grad(lambda *a: jnp.sum(plain(*a) * weight), (0, 1, 2, 3))(*inputs)
    actual = jax.jit(jax.grad(lambda *a: jnp.sum(ours(*a) * weight), (0, 1, 2, 3)))(*inputs)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_attention_in_bfloat16_is_close() -> None:
    query, key, value, bias = arrays((2, 16, 3, 8), (2, 16, 3, 8), (2, 16, 3, 8), (1, 3, 16, 16))
    mask = np.zeros((2, 1, 1, 16), np.float32)

    def loss(query: Any, key: Any, value: Any, bias: Any) -> Any:
        return jnp.sum(jnp.sin(dot_product_attention(query, key, value, bias, mask)))

    expected = jax.grad(loss, (0, 1, 2, 3))(query, key, value, bias)
    rounded = (a.astype(jnp.bfloat16) for a in (query, key, value))
    actual = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*rounded, bias)
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one.astype(jnp.float32), other) < 2e-2


def test_attention_of_a_row_without_any_key_is_finite() -> None:
    query, key, value = arrays((1, 2, 1, 4), (1, 3, 1, 4), (1, 3, 1, 4))
    mask = np.full((1, 1, 1, 3), -1e9, np.float32)
    out, gradients = jax.value_and_grad(
        lambda *a: jnp.sum(dot_product_attention(*a, None, mask)), (0, 1, 2)
    )(query, key, value)
    assert np.isfinite(out)
    assert all(np.isfinite(g).all() for g in gradients)


def test_other_backends_are_left_to_their_compiler() -> None:
    """The barrier that a CPU needs is in the CPU's program only."""
    step = jax.jit(jax.grad(lambda x, y: jnp.sum(dot(x, y, operand_dtype="bfloat16")), (0, 1)))
    arguments = (jnp.ones((8, 4)), jnp.ones((4, 6)))
    for platform, barriers in (("cpu", True), ("tpu", False)):
        text = jax.export.export(step, platforms=[platform])(*arguments).mlir_module()
        assert ("optimization_barrier" in text) == barriers

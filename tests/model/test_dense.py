"""Products with rounded operands: right in float32, close in bfloat16, summed in float32."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.model.dense import dot

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


def test_other_backends_are_left_to_their_compiler() -> None:
    """The barrier that a CPU needs is in the CPU's program only."""
    step = jax.jit(jax.grad(lambda x, y: jnp.sum(dot(x, y, operand_dtype="bfloat16")), (0, 1)))
    arguments = (jnp.ones((8, 4)), jnp.ones((4, 6)))
    for platform, barriers in (("cpu", True), ("tpu", False)):
        text = jax.export.export(step, platforms=[platform])(*arguments).mlir_module()
        assert ("optimization_barrier" in text) == barriers

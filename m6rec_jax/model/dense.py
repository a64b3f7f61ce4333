"""Matrix products with float32 parameters, rounded operands and float32 sums.

A product whose operands are bfloat16 but whose sum is float32 is the fastest a TPU's matrix unit
or a CPU's AMX tiles can do. Plain autodiff does not keep it: the transpose of a float32-to-bfloat16
cast gives float32 cotangents, so both products of the backward pass fall back to float32 (or, with
bfloat16 outputs, to bfloat16 sums). The custom rule here rounds the cotangent too and sums in
float32 in all three products.
"""

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array


def _product(spec: str, x: Array, y: Array, operand_dtype: str, out_dtype: Any) -> Array:
    out = jnp.einsum(
        spec,
        x.astype(operand_dtype),
        y.astype(operand_dtype),
        preferred_element_type=jnp.float32,
    )
    return out.astype(out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _rounded_product(spec: str, x: Array, y: Array, operand_dtype: str, out_dtype: str) -> Array:
    return _product(spec, x, y, operand_dtype, out_dtype)


def _rounded_product_forward(
    spec: str, x: Array, y: Array, operand_dtype: str, out_dtype: str
) -> tuple[Array, tuple[Array, Array]]:
    # The float32 operands themselves are kept, not their rounded copies: parameters then reach the
    # backward pass of a scan without a second stack in memory, and the cast is cheap.
    return _product(spec, x, y, operand_dtype, out_dtype), (x, y)


def _rounded_product_backward(
    spec: str, operand_dtype: str, out_dtype: str, kept: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = kept
    operands, out = spec.split("->")
    left, right = operands.split(",")
    dx = _product(f"{out},{right}->{left}", cotangent, y, operand_dtype, x.dtype)
    dy = _product(f"{left},{out}->{right}", x, cotangent, operand_dtype, y.dtype)
    return dx, dy


_rounded_product.defvjp(_rounded_product_forward, _rounded_product_backward)


def einsum(
    spec: str, x: Array, y: Array, *, operand_dtype: str, out_dtype: str | None = None
) -> Array:
    """Product of two arrays, operands rounded to `operand_dtype`, sums in float32.

    Args:
      spec: explicit einsum of two operands in which every index stands in at least two of the three
        terms, like 'bsd,df->bsf' (that is what makes the backward rule two more einsums).
      x, y: the operands, of any float type. Gradients come back in their types.
      operand_dtype: 'float32' or 'bfloat16'.
      out_dtype: type of the result; None: float32.

    Raises:
      ValueError: if an index stands in one term only.
    """
    _check_spec(spec)
    out_dtype = out_dtype or "float32"
    if operand_dtype == "float32" and x.dtype == y.dtype == jnp.float32:
        return _product(spec, x, y, operand_dtype, out_dtype)
    return _rounded_product(spec, x, y, operand_dtype, out_dtype)


@functools.cache
def _check_spec(spec: str) -> None:
    operands, out = spec.split("->")
    left, right = operands.split(",")
    for index in set(left + right + out):
        if (index in left) + (index in right) + (index in out) < 2:
            raise ValueError(f"einsum {spec!r}: index {index!r} must stand in two terms or more")


def dot(
    x: Array,
    kernel: Array,
    *,
    operand_dtype: str,
    out_dtype: str | None = None,
    num_contracted: int = 1,
) -> Array:
    """x `[..., in dims]` times kernel `[in dims, out dims]` → `[..., out dims]`; see `einsum`."""
    letters = string.ascii_lowercase
    rows = letters[: x.ndim - num_contracted]
    summed = letters[10 : 10 + num_contracted]
    columns = letters[20 : 20 + kernel.ndim - num_contracted]
    return einsum(
        f"{rows}{summed},{summed}{columns}->{rows}{columns}",
        x,
        kernel,
        operand_dtype=operand_dtype,
        out_dtype=out_dtype,
    )


class Projection(nn.Module):
    """A linear map without bias, `[..., in dims]` → `[..., out dims]`.

    Attributes:
      in_shape, out_shape: the dimensions summed over and those made.
      axes: logical axis names of the kernel, `in_shape` first.
      stddev: of the normal distribution that the kernel starts from.
      operand_dtype: type to which operands are rounded.
      out_dtype: type of the result.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    axes: tuple[str, ...]
    stddev: float
    operand_dtype: str
    out_dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes),
            self.in_shape + self.out_shape,
            jnp.float32,
        )
        return dot(
            x,
            kernel,
            operand_dtype=self.operand_dtype,
            out_dtype=self.out_dtype,
            num_contracted=len(self.in_shape),
        )

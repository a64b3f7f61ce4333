"""Linear maps with float32 parameters, rounded operands and float32 sums.

A product whose operands are bfloat16 but whose sum is float32 is the fastest a TPU's matrix unit
or a CPU's AMX tiles can do. Plain autodiff does not keep it: the transpose of a float32-to-bfloat16
cast gives float32 cotangents, so both products of the backward pass fall back to float32 (or, with
bfloat16 outputs, to bfloat16 sums). The rule here rounds the cotangent too and sums in float32 in
all three products.
"""

import functools
import math
import string
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from m6rec_jax.model.quantization import scale_of

Array = jax.Array

# By their names in a config. 'gelu' is the tanh approximation of T5 1.1.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "linear": lambda x: x,
    "tanh": jnp.tanh,
}
# What a backward pass that recomputes the rest may keep: results of weight products, as rounded.
PRODUCT = "weight product"


def dot(
    x: Array,
    kernel: Array,
    *,
    operand_dtype: str,
    out_dtype: str = "float32",
    num_contracted: int = 1,
    num_batch: int = 0,
    precision: str | None = None,
) -> Array:
    """x `[batch dims, ..., in dims]` times kernel `[batch dims, in dims, out dims]`.

    Args:
      x, kernel: of any float type; gradients come back in their types. A kernel may be of int8.
      operand_dtype: type to which operands are rounded, in the backward pass too.
      out_dtype: type of the result, rounded once from the float32 sum.
      num_contracted: how many in dims there are.
      num_batch: how many leading dims x and kernel share.
      precision: of the products; 'highest' keeps float32 operands as they are where the hardware
        would round them (TPUs to bfloat16, GPUs to TF32), None leaves that to JAX's setting.

    Returns:
      `[batch dims, ..., out dims]`.
    """
    rows = x.ndim - num_batch - num_contracted
    columns = kernel.ndim - num_batch - num_contracted
    dims = _Dims(num_batch, rows, num_contracted, columns)
    return _rounded_dot(x, kernel, dims, _Types(operand_dtype, out_dtype, precision))


def rows_dot(x: Array, table: Array) -> Array:
    """x `[rows, in]`, rounded to the table's type, times a table `[out, in]`; no gradient.

    For few rows and a wide table, which is read as it lies.

    Returns:
      `[rows, out]`, float32.
    """
    left = _twice(x.astype(table.dtype)) if x.shape[0] == 1 else x.astype(table.dtype)
    out = jnp.einsum("rk,nk->rn", left, table, preferred_element_type=jnp.float32)
    return out[: x.shape[0]]


def _twice(x: Array) -> Array:
    """A single row `[1, ...]`, which comes twice if it is of bfloat16.

    XLA's CPU backend multiplies a single row by a loop, and a bfloat16 matrix it first converts to
    float32 in memory. From two rows on it calls a library, which for a wide bfloat16 matrix takes a
    fortieth of the time.
    """
    return materialised_on_cpu(jnp.concatenate([x, x])) if x.dtype == jnp.bfloat16 else x


def materialised_on_cpu(x: Array) -> Array:
    """x, computed into memory as it is when compiled for a CPU; elsewhere nothing.

    XLA's CPU backend otherwise does two things to a transposed operand of a product. It fuses the
    transpose with what made the operand and runs that (a GELU, say) once per element without vector
    instructions: 3 to 5 times the cost of the layer. Or it folds the transpose into the product,
    and a bfloat16 product with a transposed left operand and a float32 result then fails at run
    time ("Unsupported element type for DotThunk", jaxlib 0.10.2).
    """
    return jax.lax.platform_dependent(
        x, cpu=jax.lax.optimization_barrier, default=lambda operand: operand
    )


class _Dims(NamedTuple):
    batch: int
    rows: int
    contracted: int
    columns: int

    def letters(self) -> tuple[str, str, str, str]:
        """Einsum letters of batch, rows, contracted and columns."""
        supply = iter(string.ascii_letters)
        batch, rows, contracted, columns = (
            "".join(next(supply) for _ in range(count)) for count in self
        )
        return batch, rows, contracted, columns


class _Types(NamedTuple):
    operand: str
    out: str
    precision: str | None

    def product(
        self, spec: str, x: Array, y: Array, out_dtype: jnp.dtype | str | None = None
    ) -> Array:
        """A product summed in float32."""
        found = jnp.einsum(spec, x, y, preferred_element_type=jnp.float32, precision=self.precision)
        return found.astype(self.out if out_dtype is None else out_dtype)


def _row_in_halves(x: Array, kernel: Array, types: _Types) -> Array:
    """A float32 row `[in]` times kernel `[in, out]`: the sum of two products, `[out]`.

    A single product that is not very wide runs on one core of a CPU, and so do several that do not
    depend on one another. Batched, each half of the inputs has a core of its own.
    """
    half = x.shape[0] // 2
    x, kernel = x.reshape(2, half), kernel.reshape(2, half, -1)
    return types.product("hk,hkn->hn", x, kernel, jnp.float32).sum(axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rounded_dot(x: Array, kernel: Array, dims: _Dims, types: _Types) -> Array:
    return _forward(x, kernel, dims, types)[0]


def _forward(
    x: Array, kernel: Array, dims: _Dims, types: _Types
) -> tuple[Array, tuple[Array, Array, Array]]:
    b, m, k, n = dims.letters()
    rounded = materialised_on_cpu(x.astype(types.operand))
    spec = f"{b}{m}{k},{b}{k}{n}->{b}{m}{n}"
    one_row = not dims.batch and math.prod(x.shape[: dims.rows]) == 1
    cast = kernel.astype(types.operand)
    if one_row and rounded.dtype == jnp.float32 and rounded.size % 2 == 0:
        found = _row_in_halves(rounded.reshape(-1), cast.reshape(rounded.size, -1), types)
        shape = x.shape[: dims.rows] + kernel.shape[dims.contracted :]
        out = found.reshape(shape).astype(types.out)
    else:
        left = _twice(rounded) if one_row else rounded
        out = types.product(spec, left, cast)[: x.shape[0]]
    if not dims.batch:
        out = checkpoint_name(out, PRODUCT)
    # Kept for the backward pass: x rounded (half the memory), the kernel itself (a scan over layers
    # passes it on without a copy, a rounded one would be a second stack), and x's type.
    return out, (rounded, kernel, jnp.zeros((), x.dtype))


def _backward(
    dims: _Dims, types: _Types, kept: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    b, m, k, n = dims.letters()
    rounded, kernel, like_x = kept
    cotangent = cotangent.astype(types.operand)
    spec = f"{b}{m}{n},{b}{k}{n}->{b}{m}{k}"
    dx = types.product(spec, cotangent, kernel.astype(types.operand), like_x.dtype)
    first_row, first_in = dims.batch, dims.batch + dims.rows
    order = (
        *range(dims.batch),
        *range(first_in, first_in + dims.contracted),
        *range(first_row, first_in),
    )
    transposed = materialised_on_cpu(rounded.transpose(order))
    spec = f"{b}{k}{m},{b}{m}{n}->{b}{k}{n}"
    dkernel = types.product(spec, transposed, cotangent, kernel.dtype)
    return dx, dkernel


_rounded_dot.defvjp(_forward, _backward)


class Site(NamedTuple):
    """A map from `in_shape` to `out_shape` in a layer, which tuning methods may change.

    Attributes:
      name: 'query', 'key', 'value' or 'out' of an attention; 'hidden' (up to the activations) or
        'mlp' (the whole) of a feed-forward layer.
      in_shape, out_shape: such as `(embed,)` and `(heads, head_dim)`.
      axes: logical axes of both, `in_shape` first.
    """

    name: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    axes: tuple[str, ...]


class Projection(nn.Module):
    """A linear map without bias, `[..., in dims]` → `[..., out dims]`.

    Attributes:
      config: types of operands and result.
      site: shapes and axes of the kernel.
      stddev: of the normal distribution that the kernel starts from.
      out_dtype: type of the result; None: the activations'.
    """

    config: Any
    site: Site
    stddev: float
    out_dtype: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        site = self.site
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(self.stddev), site.axes),
            site.in_shape + site.out_shape,
            jnp.float32,
        )
        scale = scale_of(self, "kernel")
        out_dtype = self.out_dtype or self.config.dtype
        out = dot(
            x,
            kernel,
            operand_dtype=self.config.operand_dtype,
            out_dtype=out_dtype if scale is None else "float32",
            num_contracted=len(site.in_shape),
        )
        return out if scale is None else (out * scale.reshape(site.out_shape)).astype(out_dtype)

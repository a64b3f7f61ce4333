"""What identifies a tree (`fingerprint`) and what proves that it came back intact (`checksums`).

All depend on names, shapes, types and values only: not on the order of the tree, the mesh or the
number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from m6rec_jax.checkpoints.trees import PyTree, flatten

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprint(tree: PyTree, dtype: Any = None) -> str:
    """SHA-256 (hex) of all names, types, shapes and values, these rounded to `dtype` if one is
    given; brings one leaf after another to the host.
    """
    total = hashlib.sha256()
    for name, leaf in sorted(flatten(tree).items()):
        array = np.ascontiguousarray(on_host(leaf).astype(dtype or leaf.dtype, copy=False))
        total.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def backbone_fingerprint(params: PyTree) -> str:
    """What says whether prompts fit a backbone: the same whether it is held in float32 or, frozen,
    in bfloat16.
    """
    return fingerprint(params, jnp.bfloat16)


def on_host(leaf: Any) -> np.ndarray:
    """A whole array in host memory, also of one that several processes hold parts of."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def checksums(flat: Mapping[str, Any]) -> dict[str, int]:
    """A 32-bit checksum per leaf of `{name: array}`, computed on the device without gathering
    anything.

    Sum of (bit pattern × odd weight of its position) modulo 2^32: integer sums do not depend on the
    order of summation, so any sharding gives the same number; any single flipped bit and almost any
    exchange of values changes it. Orbax does not notice flipped bits in array chunks by itself.
    """
    return {name: int(value) for name, value in _checksums(dict(flat)).items()}


@jax.jit
def _checksums(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _checksum(jnp.asarray(leaf)) for name, leaf in flat.items()}


def _checksum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    # Position weights from one iota per dimension: flattening would gather a sharded array.
    position = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        step = jnp.uint32(stride & 0xFFFFFFFF)
        position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * step
        stride *= x.shape[axis]
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)

"""The type in which a backbone is held that does not train."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import FLOAT_TYPES


def held_in(params: Any, frozen_dtype: str | None) -> Any:
    """A tree of `jax.ShapeDtypeStruct` in the type that a frozen backbone is held in.

    'bfloat16' halves the memory; None or 'float32' is the type that it trained in.

    Raises:
      ConfigError: another type.
    """
    if frozen_dtype is None:
        return params
    if frozen_dtype not in FLOAT_TYPES:
        raise ConfigError(f"frozen_dtype = {frozen_dtype!r} is not one of {', '.join(FLOAT_TYPES)}")
    return jax.tree.map(lambda leaf: leaf.update(dtype=jnp.dtype(frozen_dtype)), params)

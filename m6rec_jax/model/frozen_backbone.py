"""The type in which a backbone is held that does not train."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import FLOAT_TYPES


def held_in(params: Any, frozen_dtype: str | None) -> Any:
    """Shapes of a backbone in the type that it is held in while it is frozen.

    Args:
      params: tree of `jax.ShapeDtypeStruct`.
      frozen_dtype: 'bfloat16' halves the memory; None or 'float32': as it trained.

    Returns:
      The same tree with that type.

    Raises:
      ConfigError: another type.
    """
    if frozen_dtype is None:
        return params
    if frozen_dtype not in FLOAT_TYPES:
        raise ConfigError(f"frozen_dtype = {frozen_dtype!r} is not one of {', '.join(FLOAT_TYPES)}")
    return jax.tree.map(lambda leaf: leaf.update(dtype=jnp.dtype(frozen_dtype)), params)

"""Variables without a single zero, so that every tensor of a model matters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def filled(tree: Any, seed: int = 0, about_one: str = "norm/scale") -> Any:
    """Random numbers in place of each leaf, of which a shape is enough; some are about 1."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = rng.normal(size=leaf.shape) * (1.0 if "embedding" in name else 0.4)
        return (values + (about_one in name)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, tree)

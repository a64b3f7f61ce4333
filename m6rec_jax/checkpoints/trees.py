"""Trees by name: `{"encoder/layers/query": array}` and back.

Orbax items, manifests and error messages all use these names, so a checkpoint can be read without
the Python classes (optax states, Flax boxes) that the tree was made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
    """`{name: leaf}`; a name joins dict keys, attribute names and positions by '/'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    flat = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in flat:
            raise ValueError(f"two leaves are called '{name}'")
        flat[name] = leaf
    return flat


def unflatten(flat: Mapping[str, Any], like: PyTree) -> PyTree:
    """The inverse of `flatten`, for a tree with the structure of `like`."""
    _, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [flat[name] for name in flatten(like)])


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of the names' parts: what is handed to Orbax."""
    return traverse_util.unflatten_dict(flat, sep="/")

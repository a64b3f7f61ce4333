"""Tuning methods, one file each; `method.py` says what one is.

Every module of this package is imported, and every subclass of `Method` is a method. So a new one
needs its file here, a gin file that sets it and a test (docs/tuning.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from flax import linen as nn
from jax import Array

from m6rec_jax.model.dense import Site
from m6rec_jax.model.tuning.method import Method

if TYPE_CHECKING:
    from m6rec_jax.model.config import ModelConfig

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

METHODS: tuple[Method, ...] = tuple(
    sorted((method() for method in Method.__subclasses__()), key=lambda m: (m.order, m.name))
)


def owner(leaf: str) -> Method:
    """The method whose variable is called that."""
    return next(method for method in METHODS if method.owns(leaf))


def changes(config: ModelConfig, site: Site) -> list[nn.Module]:
    """What a task changes at a site, as submodules of the module that asks."""
    return [
        method.change(config, site)
        for method in METHODS
        if site.name in method.sites(config.prompts)
    ]


def apply(changes: list[nn.Module], x: Array, y: Array, task_ids: Array) -> Array:
    """y `[batch, length, *out_shape]` of a site that read x, as tasks `[batch]` change it."""
    for change in changes:
        y = change(x, y, task_ids)
    return y

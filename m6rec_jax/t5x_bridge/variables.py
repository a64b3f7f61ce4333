"""Our two trees as the one that t5x has, and the names of their axes.

t5x trains one tree, `params`: the backbone under its own names, and what belongs to the tasks in a
branch of it:

    params = {"encoder": ..., "decoder": ..., "token_embedder": ..., "prompts": {"bank": ..., ...}}

t5x learns axis names from a second tree, `params_axes`, whose leaves have the same names with
`_axes` behind them. Ours are on the boxes of `model.init`, and are taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
from flax import linen as nn
from flax.core import meta, unfreeze
from flax.linen.partitioning import AxisMetadata
from t5x import partitioning
from t5x.adafactor import standard_logical_factor_rules

from m6rec_jax.checkpoints.trees import PyTree, nested
from m6rec_jax.sharding.rules import PROMPT_AXES

PROMPTS = "prompts"
_AXES = "_axes"

Rules = Sequence[tuple[str, Any]]


def joined(variables: Mapping[str, PyTree]) -> dict[str, Any]:
    """`{'params': ..., 'prompts': ...}` as t5x's `params`."""
    prompts = variables.get(PROMPTS, {})
    return {**variables["params"], **({PROMPTS: prompts} if prompts else {})}


def split(params: Mapping[str, PyTree], *, frozen: bool = False) -> dict[str, Any]:
    """t5x's `params` as `{'params': ..., 'prompts': ...}`; `frozen`: the backbone is constant."""
    backbone = unfreeze(params)
    prompts = backbone.pop(PROMPTS, {})
    if frozen:
        backbone = jax.lax.stop_gradient(backbone)
    return {"params": backbone, PROMPTS: prompts}


def with_axes(variables: Mapping[str, PyTree]) -> dict[str, Any]:
    """`{'params': arrays, 'params_axes': AxisMetadata}` of variables as `model.init` boxes them."""
    boxed = joined(variables)
    boxes, _ = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=_is_named)
    axes = {
        f"{jax.tree_util.keystr(path, simple=True, separator='/')}{_AXES}": AxisMetadata(box.names)
        for path, box in boxes
    }
    return {"params": nn.meta.unbox(boxed), "params_axes": nested(axes)}


@gin.configurable
def logical_axis_rules(
    activation_partitioning_dims: int = 1, parameter_partitioning_dims: int = 1
) -> Rules:
    """t5x's standard rules with axes of prompts, which every device holds whole.

    Args:
      activation_partitioning_dims, parameter_partitioning_dims: 1 or 2, as for t5x's
        `standard_logical_axis_rules`.
    """
    return partitioning.standard_logical_axis_rules(
        activation_partitioning_dims,
        parameter_partitioning_dims,
        [(name, None) for name in PROMPT_AXES],
    )


@gin.configurable
def logical_factor_rules() -> Mapping[str, Any]:
    """How t5x's Adafactor factors second moments, by axis: its own rules and those of prompts.

    Tasks are apart, as layers are: a step of one changes no second moment of another.
    """
    ours = dict.fromkeys(PROMPT_AXES, "column") | {"tasks": "batch"}
    return {**standard_logical_factor_rules(), **ours}


def _is_named(leaf: Any) -> bool:
    return isinstance(leaf, meta.Partitioned)

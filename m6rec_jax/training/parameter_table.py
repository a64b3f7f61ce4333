"""Counts of parameters by group: what a model has and what of it trains (`m6rec params`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from flax import linen as nn

from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.frozen_backbone import held_in
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.model.quantization import SCALE
from m6rec_jax.model.tuning import METHODS

BACKBONE, PROMPTS = "backbone", "prompts"
# The first substring found in a leaf's name decides its group.
_GROUPS = {
    BACKBONE: {
        "token_embedder": "embedding",
        "encoder": "encoder",
        "decoder": "decoder",
        "logits_head": "head",
    },
    PROMPTS: {part: row for method in METHODS for part, row in method.groups.items()},
}


@dataclass(frozen=True, slots=True)
class Group:
    """`count` parameters of `num_bytes`; `part` is 'backbone' or 'prompts'.

    `nonzero` is how many of them are not zero; None where there are no values.
    """

    part: str
    name: str
    count: int
    num_bytes: int
    trains: bool
    nonzero: int | None = None


@dataclass(frozen=True)
class _Row:
    part: str
    group: str
    parameters: int
    nonzero: int
    of_backbone: str
    bytes: int
    trains: str


@dataclass(frozen=True, slots=True)
class ParameterTable:
    """All groups of a model. A bank of several tasks is counted whole.

    Attributes:
      groups: in the order of the table.
      of_tasks: prompt parameters of each task by itself: where tasks have unlike sizes, a bank is
        larger than their sum.
    """

    groups: tuple[Group, ...]
    of_tasks: tuple[int, ...]

    def count(self, part: str) -> int:
        """Parameters of 'backbone' or 'prompts'."""
        return sum(group.count for group in self.groups if group.part == part)

    @property
    def num_bytes(self) -> int:
        """Of all parameters."""
        return sum(group.num_bytes for group in self.groups)

    @property
    def trainable_share(self) -> float:
        """Parameters that train for the largest task, as a share of the backbone (paper: about 1%).

        When the backbone trains itself the share exceeds 1.
        """
        trains = any(group.trains for group in self.groups if group.part == BACKBONE)
        return max(self.of_tasks) / self.count(BACKBONE) + trains

    def render(self) -> str:
        """The table as text."""

        def row(part: str, name: str, groups: Iterable[Group], trains: str = "") -> _Row:
            groups = list(groups)
            count, nonzero = (
                sum(getattr(group, what) or 0 for group in groups) for what in ("count", "nonzero")
            )
            share = f"{count / self.count(BACKBONE):.2%}"
            size = sum(group.num_bytes for group in groups)
            return _Row(part, name, count, nonzero, share, size, trains)

        rows = [row(g.part, g.name, [g], "yes" if g.trains else "no") for g in self.groups]
        for part in (BACKBONE, PROMPTS):
            rows.append(row(part, "all", (g for g in self.groups if g.part == part)))
        rows.append(row("both", "all", self.groups))
        rows.append(row("both", "trains", (group for group in self.groups if group.trains)))
        columns = ["part", "group", "parameters", "nonzero", "of_backbone", "bytes", "trains"]
        if all(group.nonzero is None for group in self.groups):
            columns.remove("nonzero")
        table = parameter_overview.make_table(rows, column_names=columns)
        share = f"trains per task: {self.trainable_share:.2%} of the backbone"
        if (tasks := len(self.of_tasks)) > 1:
            share += f" (the bank holds {tasks} tasks; this is the largest)"
        return f"{table}\n{share}"


def count_parameters(
    config: ModelConfig,
    trainable: str = "all",
    frozen_dtype: str | None = None,
    values: Mapping[str, Any] | None = None,
    stored: Mapping[str, int] | None = None,
) -> ParameterTable:
    """The table of a model that need not exist: nothing is computed or allocated.

    Args:
      config: of the model.
      trainable: 'prompts' or 'all'.
      frozen_dtype: type in which a frozen backbone is kept, as for `TrainSetup`.
      values: variables of a model that does exist, to count what is not zero.
      stored: bytes of its tensors as they are stored, such as 'params/decoder/final_norm/scale',
        and of the scales of those in 8 bits; None: of the types that training holds them in.
    """
    variables = nn.meta.unbox(abstract_variables(config))
    if trainable != "all":
        variables = {**variables, "params": held_in(variables["params"], frozen_dtype)}

    def bytes_of(name: str, leaf: jax.ShapeDtypeStruct) -> int:
        if stored is None:
            return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        return stored[name] + stored.get(name + SCALE, 0)

    groups = []
    for collection, part in (("params", BACKBONE), ("prompts", PROMPTS)):
        leaves = flatten(variables.get(collection, {}))
        present = None if values is None else flatten(dict(values).get(collection, {}))
        row_of = {
            name: next((row for key, row in _GROUPS[part].items() if key in name), "other")
            for name in leaves
        }
        for row in dict.fromkeys((*_GROUPS[part].values(), "other")):
            of_row = {name: leaf for name, leaf in leaves.items() if row_of[name] == row}
            if of_row:
                count = sum(math.prod(leaf.shape) for leaf in of_row.values())
                size = sum(bytes_of(f"{collection}/{name}", leaf) for name, leaf in of_row.items())
                nonzero = None
                if present is not None:
                    nonzero = sum(int(jnp.count_nonzero(present[name])) for name in of_row)
                trains = trainable == "all" or part == PROMPTS
                groups.append(Group(part, row, count, size, trains, nonzero))
    return ParameterTable(tuple(groups), _of_tasks(config))


def _of_tasks(config: ModelConfig) -> tuple[int, ...]:
    """Prompt parameters of each task of a bank, by itself."""

    @functools.cache  # tasks are mostly alike
    def count(prompts: PromptConfig) -> int:
        alone = nn.meta.unbox(abstract_variables(config.replace(prompts=prompts)))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(alone.get("prompts", {})))

    return tuple(count(config.prompts.of_task(i)) for i in range(config.prompts.num_tasks))

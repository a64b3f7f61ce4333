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
            counts = [(group.count, group.nonzero or 0, group.num_bytes) for group in groups]
            count, nonzero, size = map(sum, zip(*counts, strict=True)) if counts else (0, 0, 0)
            share = f"{count / self.count(BACKBONE):.2%}"
            return _Row(part, name, count, nonzero, share, size, trains)

        rows = [row(g.part, g.name, [g], "yes" if g.trains else "no") for g in self.groups]
        for part in (BACKBONE, PROMPTS):
            rows.append(row(part, "all", (g for g in self.groups if g.part == part)))
        rows.append(row("both", "all", self.groups))
        rows.append(row("both", "trains", (group for group in self.groups if group.trains)))
        columns = ["part", "group", "parameters", "nonzero", "of_backbone", "bytes", "trains"]
        if all(group.nonzero is None for group in self.groups):
            columns.remove("nonzero")
        share = f"trains per task: {self.trainable_share:.2%} of the backbone"
        if (tasks := len(self.of_tasks)) > 1:
            share += f" (the bank holds {tasks} tasks; this is the largest)"
        return f"{parameter_overview.make_table(rows, column_names=columns)}\n{share}"


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
    present = None if values is None else flatten(dict(values))
    groups = []
    for collection, part in (("params", BACKBONE), ("prompts", PROMPTS)):
        of_rows: dict[str, list[tuple[str, Any]]] = {
            row: [] for row in (*_GROUPS[part].values(), "other")
        }
        for name, leaf in flatten(variables.get(collection, {})).items():
            row = next((row for key, row in _GROUPS[part].items() if key in name), "other")
            of_rows[row].append((f"{collection}/{name}", leaf))
        for row, leaves in of_rows.items():
            if leaves:
                size = sum(
                    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
                    if stored is None
                    else stored[name] + stored.get(name + SCALE, 0)
                    for name, leaf in leaves
                )
                count = sum(math.prod(leaf.shape) for _, leaf in leaves)
                nonzero = None
                if present is not None:
                    nonzero = sum(int(jnp.count_nonzero(present[name])) for name, _ in leaves)
                trains = trainable == "all" or part == PROMPTS
                groups.append(Group(part, row, count, size, trains, nonzero))

    @functools.cache  # tasks are mostly alike
    def of_task(prompts: PromptConfig) -> int:
        alone = nn.meta.unbox(abstract_variables(config.replace(prompts=prompts)))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(alone.get("prompts", {})))

    tasks = range(config.prompts.num_tasks)
    return ParameterTable(
        tuple(groups), tuple(of_task(config.prompts.of_task(task)) for task in tasks)
    )

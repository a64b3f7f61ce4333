"""Counts of parameters by group: what a model has and what of it trains (`m6rec params`)."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
        return self._share(max(self.of_tasks))

    def _share(self, prompts: int) -> float:
        backbone = self.count(BACKBONE)
        trains = any(group.trains for group in self.groups if group.part == BACKBONE)
        return (prompts + (backbone if trains else 0)) / backbone

    def render(self) -> str:
        """The table as text."""
        backbone = self.count(BACKBONE)
        with_values = any(group.nonzero is not None for group in self.groups)

        def row(part: str, name: str, groups: Sequence[Group], trains: str) -> tuple[str, ...]:
            count = sum(group.count for group in groups)
            size = sum(group.num_bytes for group in groups)
            cells = part, name, f"{count:,}", f"{count / backbone:.2%}", f"{size:,}", trains
            if not with_values:
                return cells
            return *cells[:3], f"{sum(group.nonzero or 0 for group in groups):,}", *cells[3:]

        of_parts = {
            part: [group for group in self.groups if group.part == part]
            for part in (BACKBONE, PROMPTS)
        }
        nonzero = ("nonzero",) if with_values else ()
        rows = [
            ("part", "group", "parameters", *nonzero, "of backbone", "bytes", "trains"),
            *(row(g.part, g.name, [g], "yes" if g.trains else "no") for g in self.groups),
            *(row(part, "all", groups, "") for part, groups in of_parts.items()),
            row("both", "all", self.groups, ""),
            row("both", "trains", [group for group in self.groups if group.trains], ""),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if 2 <= i < len(widths) - 1 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        lines.insert(-4, lines[1])
        share = f"trains per task: {self.trainable_share:.2%} of the backbone"
        if len(self.of_tasks) > 1:
            if (least := min(self.of_tasks)) < max(self.of_tasks):
                share = share.replace(": ", f": {self._share(least):.2%} to ")
            share += f" (the bank holds {len(self.of_tasks)} tasks"
            if room := self.count(PROMPTS) - sum(self.of_tasks):
                share += f"; {room:,} of its parameters are room that smaller ones leave"
            share += ")"
        return "\n".join([*lines, share])


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
      frozen_dtype: type in which a frozen backbone is kept, as for `abstract_state`.
      values: variables of a model that does exist, to count what is not zero.
      stored: bytes of its tensors as they are stored, such as 'params/decoder/final_norm/scale',
        and of the scales of those in 8 bits; None: of the types that training holds them in.
    """
    variables = nn.meta.unbox(abstract_variables(config))
    if trainable != "all":
        variables = {**variables, "params": held_in(variables["params"], frozen_dtype)}
    groups = []
    for collection, part in (("params", BACKBONE), ("prompts", PROMPTS)):
        leaves = flatten(variables.get(collection, {}))
        found = None if values is None else flatten(dict(values).get(collection, {}))
        row_of = {
            name: next((row for key, row in _GROUPS[part].items() if key in name), "other")
            for name in leaves
        }
        for row in dict.fromkeys((*_GROUPS[part].values(), "other")):
            names = [name for name in leaves if row_of[name] == row]
            own = [leaves[name] for name in names]
            if own:
                sizes = [math.prod(leaf.shape) for leaf in own]
                if stored is None:
                    bytes_of_types = [np.dtype(leaf.dtype).itemsize for leaf in own]
                    num_bytes = sum(map(operator.mul, sizes, bytes_of_types))
                else:
                    keys = [f"{collection}/{name}" for name in names]
                    num_bytes = sum(stored[key] + stored.get(key + SCALE, 0) for key in keys)
                trains = trainable == "all" or part == PROMPTS
                left = (
                    None
                    if found is None
                    else sum(int(jnp.count_nonzero(found[name])) for name in names)
                )
                groups.append(Group(part, row, sum(sizes), num_bytes, trains, left))
    return ParameterTable(tuple(groups), _of_tasks(config))


def _of_tasks(config: ModelConfig) -> tuple[int, ...]:
    """Prompt parameters of each task of a bank, by itself."""

    @functools.cache  # tasks are mostly alike
    def count(prompts: PromptConfig) -> int:
        alone = nn.meta.unbox(abstract_variables(config.replace(prompts=prompts)))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(alone.get("prompts", {})))

    return tuple(count(config.prompts.of_task(i)) for i in range(config.prompts.num_tasks))

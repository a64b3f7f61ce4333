"""The collection `prompts`: variables that each task has of its own beside a frozen backbone.

Every leaf has an axis `tasks` (the first; after `layers` inside a stack), so one set of variables
is a bank of tasks. An example picks its row by task id, and one batch may mix tasks. A bank of one
task is indexed statically and costs nothing.

All tasks of a bank share one capacity, and smaller tasks are padded:

- Soft prompts are the *last* of the capacity, and options the last of those. Padding then changes
  no distance between positions; attention masks it out.
- Adapters and LoRA updates are zero beyond their rank, and stay zero in training: each of the two
  factors is zero there, so neither gets a gradient (every activation offered maps 0 to 0).

In training the config says how many prompts and classes each task has. A served bank has these
numbers among its variables, so that another task changes no compiled program:

    {"params": ..., "prompts": ..., "task_sizes": {"bank": {"num_prompts": int32 [tasks],
                                                             "num_options": int32 [tasks]}}}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from m6rec_jax.model.dense import dot

Array = jax.Array
Init = Callable[..., Array]
COLLECTION = "prompts"
SIZES_COLLECTION = "task_sizes"

# For small products that decide between classes, users and items, or add to embeddings: float32,
# whatever the hardware does to others.
EXACT: dict[str, Any] = {"operand_dtype": "float32", "precision": "highest"}


def task_axis(name: str) -> int:
    """The axis of tasks in a leaf like 'bank/soft_prompts', 'encoder/layers/mlp/adapter/wi'."""
    return 0 if name.startswith("bank/") else 1


class Variable(NamedTuple):
    """A variable before it is made: initialiser, shape and logical axes, without that of tasks."""

    init: Init
    shape: tuple[int, ...]
    axes: tuple[str, ...]


def prompt_variable(
    module: nn.Module,
    num_tasks: int,
    name: str,
    init: Init,
    shape: Sequence[int],
    axes: Sequence[str],
) -> Array:
    """The value of a module's variable, `[tasks, *shape]`, float32; made at initialisation."""
    boxed = nn.with_logical_partitioning(init, ("tasks", *axes))
    return module.variable(
        COLLECTION,
        name,
        lambda: boxed(module.make_rng("prompts"), (num_tasks, *shape), jnp.float32),
    ).value


def within_ranks(init: Init, ranks: Sequence[int]) -> Init:
    """An initialiser of `[tasks, ..., rank]`: zeros beyond each task's rank; no `ranks`: `init`."""
    if not ranks:
        return init

    def limited(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        own = jnp.asarray(ranks).reshape(-1, *(1,) * (len(shape) - 1))
        return jnp.where(jnp.arange(shape[-1]) < own, init(key, shape, dtype), 0)

    return limited


def task_rows(bank: Array, task_ids: Array) -> Array:
    """A bank `[tasks, ...]` at task_ids `[batch]`: `[batch, ...]`; with one task `[1, ...]`."""
    return bank if bank.shape[0] == 1 else jnp.take(bank, task_ids, axis=0)


def task_dot(
    x: Array,
    bank: Array,
    task_ids: Array,
    *,
    operand_dtype: str,
    num_contracted: int = 1,
    precision: str | None = None,
) -> Array:
    """x `[batch, length, in dims]` times its task's row of bank `[tasks, in dims, out dims]`.

    Options are those of `dense.dot`.

    Returns:
      `[batch, length, out dims]`, float32.
    """
    options: dict[str, Any] = {
        "operand_dtype": operand_dtype,
        "num_contracted": num_contracted,
        "precision": precision,
    }
    if bank.shape[0] == 1:
        return dot(x, bank[0], **options)
    return dot(x, jnp.take(bank, task_ids, axis=0), num_batch=1, **options)

"""How much room a loaded bank has: fixed, so that another task compiles nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.config import LORA_TARGETS, ModelConfig, PromptConfig, default_settings

_SIZES = (
    "num_prompts",
    "num_options",
    "adapter_rank",
    "lora_rank",
    "embedding_rank",
    "retrieval_dim",
    "num_segment_embeddings",
)
# Twice the tasks there are, but never fewer than this.
LEAST_TASKS = 8


@gin.configurable
@dataclasses.dataclass(frozen=True)
class BankCapacity:
    """The largest task that fits, and how many tasks do. None: as the tasks there are need it.

        load_bank.capacity = @BankCapacity()
        BankCapacity.num_tasks = 32
        BankCapacity.num_options = 64

    Room costs memory, and ranks and prompts cost time, whether a task uses them or not.

    Attributes:
      num_tasks: None: twice as many as there are, at least 8.
      num_prompts, num_options, adapter_rank, lora_rank, embedding_rank, retrieval_dim,
        num_segment_embeddings: see `PromptConfig`.
      lora_targets, special_token_ids: what tasks may have; others are refused.
      adapter_activation: that of all tasks with adapters; of a bank without any 'gelu'.
      adapters_late_only: True refuses tasks with adapters or LoRA in early layers, or with updates
        of the embedding, which those layers read. None: where all tasks that have some have them in
        late layers only, and no task updates embeddings.
    """

    num_tasks: int | None = None
    num_prompts: int | None = None
    num_options: int | None = None
    adapter_rank: int | None = None
    lora_rank: int | None = None
    embedding_rank: int | None = None
    retrieval_dim: int | None = None
    num_segment_embeddings: int | None = None
    lora_targets: tuple[str, ...] | None = None
    special_token_ids: tuple[int, ...] | None = None
    adapter_activation: str | None = None
    adapters_late_only: bool | None = None

    def prompt_config(self, tasks: Sequence[PromptConfig]) -> PromptConfig:
        """A configuration with room for the tasks there are.

        Its head is linear, whatever the tasks have: the options of a task are the kernel of one.

        Raises:
          ConfigError: a size is no whole number, or there is less room than tasks.
        """
        sizes: dict[str, Any] = {
            name: max((getattr(task, name) for task in tasks), default=0)
            if getattr(self, name) is None
            else getattr(self, name)
            for name in _SIZES
        }
        num_tasks = self.num_tasks
        if num_tasks is None:
            num_tasks = max(2 * len(tasks), LEAST_TASKS)
        targets, special = self.lora_targets, self.special_token_ids
        if targets is None:
            used = {name for task in tasks if task.lora_rank for name in task.lora_targets}
            targets = tuple(name for name in LORA_TARGETS if name in used)
        if special is None:
            special = tuple(sorted({i for task in tasks for i in task.special_token_ids}))
        activation, late_only = self.adapter_activation, self.adapters_late_only
        if activation is None:
            used_ones = [task.adapter_activation for task in tasks if task.adapter_rank]
            activation = used_ones[0] if used_ones else PromptConfig.adapter_activation
        if late_only is None:
            in_layers = [task for task in tasks if task.in_layers]
            late_only = bool(in_layers) and all(task.adapters_late_only for task in in_layers)
            late_only &= not sizes["embedding_rank"]
        if late_only and sizes["embedding_rank"]:
            raise ConfigError(
                "BankCapacity.adapters_late_only = True, but there is room for, or a task with, "
                f"updates of the embedding (embedding_rank = {sizes['embedding_rank']}), which "
                "early layers read: set it to False, or leave those tasks out"
            )
        room = {
            "num_tasks": num_tasks,
            "head": "linear" if sizes["num_options"] else "none",
            "adapter_activation": activation,
            "lora_targets": targets or PromptConfig.lora_targets,
            "adapters_late_only": late_only,
            "special_token_ids": special,
            **sizes,
        }
        # What gin binds is of a run that is trained in this process, or read beside the bank.
        config = PromptConfig(**(default_settings(PromptConfig) | room))
        if len(tasks) > num_tasks:
            raise ConfigError(
                f"BankCapacity.num_tasks = {num_tasks}, but the bank has {len(tasks)} tasks; raise "
                "it or name the tasks to load"
            )
        return config


def check_capacity(task: ModelConfig, bank: ModelConfig, name: str) -> None:
    """A task must find room in a loaded bank.

    Args:
      task: of the model with that task alone.
      bank: of the bank's model.
      name: of the task, for errors.

    Raises:
      ConfigError: naming what is too small.
    """
    own, room = task.prompts, bank.prompts
    for size in _SIZES:
        if getattr(own, size) > getattr(room, size):
            raise ConfigError(
                f"'{name}' has {size} = {getattr(own, size)}, but the bank was loaded with room "
                f"for {getattr(room, size)}: raise BankCapacity.{size}"
            )
    for setting, wanted, there in (
        ("lora_targets", own.lora_targets if own.lora_rank else (), room.lora_targets),
        ("special_token_ids", own.special_token_ids, room.special_token_ids),
    ):
        missing = sorted(set(wanted) - set(there), key=str)
        if missing:
            raise ConfigError(
                f"'{name}' has {missing} among its {setting}, but the bank was loaded for "
                f"{list(there)}: set BankCapacity.{setting}"
            )
    late_only_matters = own.in_layers and bank.late_layers_start > 0
    if late_only_matters and room.adapters_late_only and not own.adapters_late_only:
        raise ConfigError(
            f"'{name}' has adapters in the early layers, but all tasks that the bank was loaded "
            "with have theirs in late layers only (PromptConfig.adapters_late_only): set "
            "BankCapacity.adapters_late_only = False"
        )

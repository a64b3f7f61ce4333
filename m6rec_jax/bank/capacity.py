"""How much room a loaded bank has: fixed, so that another task compiles nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.model.config import ModelConfig, PromptConfig, default_settings
from m6rec_jax.model.tuning import METHODS

# Twice the tasks there are, but never fewer than this.
LEAST_TASKS = 8


def _settings(kind: str) -> dict[str, Any]:
    """The methods' settings of a kind: name -> method; see `model.tuning.method`."""
    return {
        field.name: method
        for method in METHODS
        for field in dataclasses.fields(method.settings)
        if field.metadata.get("kind") == kind
    }


_SIZES, _SETS, SHARED = (_settings(kind) for kind in ("size", "set", "shared"))
_ROOM = (*_SIZES, *_SETS, *SHARED)


@gin.configurable
class BankCapacity:
    """The largest task that fits, and how many tasks do. None: as the tasks there are need it.

        load_bank.capacity = @BankCapacity()
        BankCapacity.num_tasks = 32
        BankCapacity.num_options = 64

    Room costs memory, and ranks and prompts cost time, whether a task uses them or not.

    Args:
      num_tasks: None: twice as many as there are, at least 8.
      adapters_late_only: True refuses tasks that change early layers or, by an update of the
        embedding or by pooling, what these read. None: where all that are there change late ones.
      room: settings of `PromptConfig`. Sizes: `num_prompts`, `num_options`, `adapter_rank`,
        `lora_rank`, `embedding_rank`, `pooling_rank`, `retrieval_dim`, `num_segment_embeddings`.
        What tasks may have: `lora_targets`, `ia3_targets`, `special_token_ids`. What all have in
        common: `adapter_activation`.

    Raises:
      ConfigError: there is no such setting.
    """

    def __init__(
        self, num_tasks: int | None = None, adapters_late_only: bool | None = None, **room: Any
    ) -> None:
        for name in room:
            if name not in _ROOM:
                raise ConfigError(
                    f"BankCapacity has no {name!r}{did_you_mean(name, _ROOM)}: it has "
                    f"{', '.join(_ROOM)}"
                )
        self.num_tasks, self.adapters_late_only = num_tasks, adapters_late_only
        self.room = {name: value for name, value in room.items() if value is not None}

    def prompt_config(self, tasks: Sequence[PromptConfig]) -> PromptConfig:
        """A configuration with room for the tasks there are.

        Its head is linear, whatever the tasks have: the options of a task are the kernel of one.

        Raises:
          ConfigError: a size is no whole number, or there is less room than tasks.
        """
        num_tasks = self.num_tasks
        if num_tasks is None:
            num_tasks = max(2 * len(tasks), LEAST_TASKS)
        if len(tasks) > num_tasks:
            raise ConfigError(
                f"BankCapacity.num_tasks = {num_tasks}, but the bank has {len(tasks)} tasks; raise "
                "it or name the tasks to load"
            )
        room: dict[str, Any] = {
            name: max((getattr(task, name) for task in tasks), default=0) for name in _SIZES
        }
        for name, method in (_SETS | SHARED).items():
            used = [getattr(task, name) for task in tasks if method.used(task)]
            if used:
                room[name] = used[0] if name in SHARED else _union(name, used)
        room |= self.room
        room |= {"num_tasks": num_tasks, "head": "linear" if room["num_options"] else "none"}
        # What gin binds is of a run that is trained in this process, or read beside the bank.
        config = PromptConfig(**(default_settings(PromptConfig) | room))
        early = any(method.in_early_layers and method.used(config) for method in METHODS)
        in_layers = [task.adapters_late_only for task in tasks if task.in_layers]
        if (late_only := self.adapters_late_only) and early:
            raise ConfigError(
                "BankCapacity.adapters_late_only = True, but a task or room changes early layers"
            )
        if late_only is None:
            late_only = not early and any(in_layers) and all(in_layers)
        return dataclasses.replace(config, adapters_late_only=late_only)


def _union(name: str, used: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """All values, in the order of the known ones."""
    known = PromptConfig.__dataclass_fields__[name].metadata.get("known")
    return tuple(sorted(set().union(*used), key=known.index if known else None))


def check_capacity(task: ModelConfig, bank: ModelConfig, name: str) -> None:
    """A task (of a model with that task alone) must find room in a loaded bank.

    Raises:
      ConfigError: naming what is too small.
    """
    needed, room = task.prompts, bank.prompts
    lacking = {s for s in _SIZES if getattr(needed, s) > getattr(room, s)}
    for setting, method in _SETS.items():
        if method.used(needed) and not set(getattr(needed, setting)) <= set(getattr(room, setting)):
            lacking.add(setting)
    if needed.in_layers and bank.late_layers_start and room.adapters_late_only:
        lacking |= set() if needed.adapters_late_only else {"adapters_late_only"}
    if lacking:
        has = ", ".join(
            f"{setting} = {getattr(needed, setting)} (the bank: {getattr(room, setting)})"
            for setting in sorted(lacking)
        )
        raise ConfigError(
            f"'{name}' needs more room than the bank was loaded with, {has}: set it in BankCapacity"
        )

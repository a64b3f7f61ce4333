"""A bank in memory: one model, one backbone, the prompts of many tasks stacked beside it.

bank = load_bank("runs/bank", "runs/foundation")
scorer = bank.scorer()
scorer.score_requests(histories, candidates, ["ctr", "stars", "ctr"])   # one batch, two tasks
larger = bank.with_tasks("genres")        # another file of runs/bank; nothing is compiled
larger.scorer("genres").score_requests(histories, candidates)
smaller = larger.without("ctr")
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.bank.capacity import BankCapacity, check_capacity
from m6rec_jax.bank.folder import (
    WHAT,
    BankFolder,
    PromptManifest,
    TaskPrompts,
    check_owner,
    requirements,
)
from m6rec_jax.checkpoints.checkpoint import PARAMS, open_checkpoint
from m6rec_jax.checkpoints.fingerprint import backbone_fingerprint
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.engine import Backbone
from m6rec_jax.engine.model_folder import (
    InferenceSettings,
    LoadedModel,
    load_model,
    read_settings,
    read_vocabulary,
    variable_targets,
)
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.task_settings import task_name, task_settings
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec
from m6rec_jax.model.frozen_backbone import held_in
from m6rec_jax.model.layout import fit_task
from m6rec_jax.model.prompts import SIZES_COLLECTION, task_axis
from m6rec_jax.sharding import LogicalRules, replicated

Stacked = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LoadedBank(LoadedModel):
    """Tasks by name, over one backbone; see the module's docstring.

    A value: `with_tasks` and `without` give another bank, which shares the backbone, and leave
    this one as it is. `load_bank` makes the first one.

    Attributes:
      backbone_fingerprint: see `checkpoints.fingerprint`; that of prompts must be equal.
      folder: where tasks are found by name.
      manifests: by name.
    """

    backbone_fingerprint: str
    folder: BankFolder
    manifests: Mapping[str, PromptManifest]

    def with_tasks(self, *tasks: str | TaskPrompts) -> LoadedBank:
        """A bank with further tasks, in free rows. Nothing is compiled.

        Args:
          tasks: names of tasks in the bank's folder, or prompts from elsewhere.

        Raises:
          ConfigError: a name is taken, there is no free row, or a task is larger than what the bank
            was loaded for.
          CheckpointError: no such task; truncated or damaged files; another backbone, vocabulary or
            model.
        """
        read = [self.folder.read(task) if isinstance(task, str) else task for task in tasks]
        config, settings, manifests = self.model.config, dict(self.tasks), dict(self.manifests)
        common = requirements(config, self.backbone_fingerprint, self.vocabulary.fingerprint)
        taken, num_rows = {task.task_id for task in settings.values()}, config.prompts.num_tasks
        free = [row for row in range(num_rows) if row not in taken]
        for prompts in read:
            manifest, name = prompts.manifest, prompts.manifest.task
            check_owner(manifest, "the model that was loaded", common)
            check_capacity(manifest.model_config, config, name)
            for length in ("source_length", "target_length"):
                needed, room = getattr(manifest.settings, length), getattr(self.settings, length)
                if (needed or 0) > room:
                    raise ConfigError(
                        f"'{name}' has {length} = {needed}, and the longest task that the bank was "
                        f"loaded with {room}: load it with this one"
                    )
            if name in settings:
                raise ConfigError(f"the loaded bank has a task '{name}' already; remove it first")
            if not free:
                raise ConfigError(
                    f"no room for '{name}': all {num_rows} rows of the loaded bank are taken; "
                    "raise BankCapacity.num_tasks or remove a task"
                )
            manifests[name] = manifest
            settings[name] = dataclasses.replace(manifest.settings, task_id=free.pop(0))
        write = _row_writer(self.model, self.backbone.runtime.mesh, self.backbone.runtime.rules)
        # Requests that have begun go on with the old arrays. The copy never leaves the devices.
        stacked = {
            name: jax.device_put(leaf, leaf.sharding, may_alias=False)
            for name, leaf in flatten(self.variables["prompts"]).items()
        }
        for prompts in read:
            row = fit_task(prompts.tensors, prompts.manifest.model_config, config)
            stacked = write(stacked, row, np.int32(settings[prompts.manifest.task].task_id))
        sizes = {name: np.zeros(num_rows, np.int32) for name in ("num_prompts", "num_options")}
        for name, manifest in manifests.items():
            for size, values in sizes.items():
                values[settings[name].task_id] = getattr(manifest.prompts, size)
        mesh = jax.tree.leaves(self.backbone.params)[0].sharding.mesh
        return dataclasses.replace(
            self,
            variables={
                "params": self.backbone.params,
                "prompts": nested(stacked),
                SIZES_COLLECTION: {"bank": jax.device_put(sizes, replicated(mesh))},
            },
            settings=dataclasses.replace(self.settings, tasks=settings),
            manifests=manifests,
        )

    def without(self, name: str) -> LoadedBank:
        """A bank without a task, whose row is free then. (Its folder stays.)

        Raises:
          ConfigError: no such task.
        """
        task_settings(self.tasks, name)
        tasks, manifests = dict(self.tasks), dict(self.manifests)
        del tasks[name], manifests[name]
        settings = dataclasses.replace(self.settings, tasks=tasks)
        return dataclasses.replace(self, settings=settings, manifests=manifests)

    def dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        """See `LoadedModel`; every task of a bank has its own data set."""
        return self.manifests[task_name(self.tasks, task)].dataset_spec

    def _described(self, task: str, exits: bool) -> dict[str, Any]:
        """The other tasks of the bank have no part in it.

        Except in the width of vectors, which is that of the widest: an index has to be built anew
        when a task with wider ones joins.
        """
        manifest, here = self.manifests[task_name(self.tasks, task)], self.model.config
        return {
            # Of the run that the backbone was read from, precision alone: it may be any that has
            # the backbone, trained with other dropout, say.
            "config": {what: getattr(manifest.model_config, what) for what in WHAT},
            "precision": (here.dtype, here.operand_dtype),
            "prompt_config": dataclasses.asdict(manifest.prompts),
            "retrieval_dim": here.prompts.retrieval_dim if manifest.prompts.retrieval_dim else 0,
            "task": manifest.settings.fingerprinted(exits),
            "prompts": manifest.prompts_fingerprint,
        }


@functools.lru_cache(maxsize=16)
def _row_writer(
    model: M6Rec, mesh: Mesh | None, rules: LogicalRules
) -> Callable[[Stacked, Mapping[str, np.ndarray], np.int32], Stacked]:
    """What writes a task's tensors into one row of a bank's, in place."""

    def write(stacked: Stacked, values: Mapping[str, jax.Array], row: jax.Array) -> Stacked:
        return {
            name: leaf.at[(slice(None),) * task_axis(name) + (row,)].set(values[name])
            for name, leaf in stacked.items()
        }

    shardings = {name: target.sharding for name, target in _targets(model, mesh, rules).items()}
    return jax.jit(write, out_shardings=shardings, donate_argnums=0)


def _targets(model: M6Rec, mesh: Mesh | None, rules: LogicalRules) -> dict[str, Any]:
    """Shapes and shardings of a bank's prompts, by name."""
    return flatten(variable_targets(model, mesh, rules).get("prompts", {}))


@gin.configurable
def load_bank(
    bank: str | Path,
    backbone: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    capacity: BankCapacity | None = None,
    step: int | None = None,
    frozen_dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> LoadedBank:
    """Loads a bank and the backbone that its tasks share; rows are as long as the longest task's.

    Args:
      bank: the folder.
      backbone: MODEL_DIR of a run that has that backbone: the foundation, or any run tuned from it
        with a frozen one. Its `inference` folder has the vocabulary.
      tasks: which of the bank's; None: all.
      capacity: room for tasks to come; None: `BankCapacity()`.
      step: of the backbone's checkpoint; None: the newest.
      frozen_dtype: type that the backbone is held in ('bfloat16' halves its memory; None: float32),
        as for `training.loop.train`. Prompts stay in float32.
      mesh: devices to spread the variables over; None: the default device.
      rules: logical-axis rules, with a mesh.

    Raises:
      CheckpointError: no bank or backbone; a truncated or damaged task (name the `tasks` to load,
        or remove it); another backbone or vocabulary than the tasks were trained on.
      ConfigError: less room than the tasks need, or another `frozen_dtype`.
    """
    folder, rules = BankFolder(bank), tuple(rules)
    if isinstance(tasks, str):
        tasks = (tasks,)  # and not its letters
    read = [folder.read(name) for name in (folder.names() if tasks is None else tasks)]
    checkpoint, vocabulary = open_checkpoint(backbone, step), read_vocabulary(backbone)
    checkpoint.check_vocabulary(vocabulary.fingerprint)
    config = checkpoint.config
    target = held_in(variable_targets(M6Rec(config), mesh, rules)["params"], frozen_dtype)
    params = checkpoint.restore(PARAMS, target, config)
    if read:
        # The tasks may have been tuned with other settings than the foundation's that change no
        # weight, such as where late interaction begins.
        first = read[0].manifest.model_config
        config = config.replace(**{name: getattr(first, name) for name in WHAT})
    room = (capacity or BankCapacity()).prompt_config([p.manifest.prompts for p in read])
    lengths: list[Any] = [p.manifest.settings for p in read] or [read_settings(backbone)]
    longest = (
        max(one.source_length or 0 for one in lengths),
        max(one.target_length or 0 for one in lengths),
    )
    model = M6Rec(config.replace(prompts=room))
    rows = {
        name: jnp.zeros(target.shape, jnp.float32, device=target.sharding)
        for name, target in _targets(model, mesh, rules).items()
    }
    empty = LoadedBank(
        model=model,
        variables={"prompts": nested(rows)},
        vocabulary=vocabulary,
        settings=InferenceSettings(*longest),
        step=checkpoint.step,
        backbone=Backbone(model, params, Runtime(mesh, rules), *longest),
        backbone_fingerprint=backbone_fingerprint(params),
        folder=folder,
        manifests={},
    )
    return empty.with_tasks(*read)


def load_with_bank(
    model_dir: str | Path,
    *,
    bank: str | Path | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> LoadedModel:
    """`load_model` of a run, or `load_bank` on the run's backbone, by settings of gin."""
    if bank is None:
        return load_model(model_dir, step=step, mesh=mesh, rules=rules)
    return load_bank(bank, model_dir, step=step, mesh=mesh, rules=rules)

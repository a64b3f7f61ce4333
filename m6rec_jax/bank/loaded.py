"""A bank in memory: one model, one backbone, the prompts of many tasks stacked beside it.

bank = load_bank("runs/bank", "runs/foundation")               # bank.loading
scorer = bank.scorer()
scorer.score_requests(histories, candidates, ["ctr", "stars", "ctr"])   # one batch, two tasks
larger = bank.with_tasks("genres")        # another folder of runs/bank; nothing is compiled
larger.scorer("genres").score_requests(histories, candidates)
smaller = larger.without("ctr")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.bank.capacity import check_capacity
from m6rec_jax.bank.folder import BankFolder, TaskPrompts
from m6rec_jax.bank.manifest import WHAT, PromptManifest, check_owner
from m6rec_jax.checkpoints.fingerprint import on_host
from m6rec_jax.checkpoints.trees import PyTree, flatten, nested
from m6rec_jax.engine.model_folder import LoadedModel, digest, variable_targets
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec
from m6rec_jax.model.layout import fit_task, prompt_leaves
from m6rec_jax.model.prompts import SIZES_COLLECTION
from m6rec_jax.sharding import LogicalRules, make_mesh, replicated

_COUNTS = ("num_prompts", "num_options")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LoadedBank(LoadedModel):
    """Tasks by name, over one backbone; see the module's docstring.

    A value: `with_tasks` and `without` give another bank, which shares the backbone, and leave
    this one as it is. `load_bank` makes the first one.

    Attributes:
      backbone_fingerprint: see `checkpoints.fingerprint`; that of prompts must be equal.
      folder: where tasks are found by name.
      manifests: by name.
      shardings: of the variables, by name.
    """

    backbone_fingerprint: str
    folder: BankFolder
    manifests: Mapping[str, PromptManifest]
    shardings: Mapping[str, Any]

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
        for prompts in read:
            self._check(prompts)
        names = [prompts.manifest.task for prompts in read]
        tasks_here = dict(self.settings.tasks)
        leaves = prompt_leaves(self.model.config)
        # Put together on the host: nothing is compiled, and requests that have begun go on with the
        # old arrays.
        stacked = {
            name: np.array(on_host(leaf))
            for name, leaf in flatten(self.variables["prompts"]).items()
        }
        sizes = self.variables[SIZES_COLLECTION]["bank"]
        counts = {name: np.array(sizes[name]) for name in _COUNTS}
        for row, prompts in zip(self._free_rows(names), read, strict=True):
            task = prompts.manifest
            tasks_here[task.task] = dataclasses.replace(task.settings, task_id=row)
            fitted = fit_task(prompts.tensors, task.model_config, self.model.config)
            for name, values in fitted.items():
                np.moveaxis(stacked[name], leaves[name].task_axis, 0)[row] = values
            for name in _COUNTS:
                counts[name][row] = getattr(task.prompts, name)
        return dataclasses.replace(
            self,
            variables=_placed(self.backbone.params, stacked, counts, self.shardings),
            settings=dataclasses.replace(self.settings, tasks=tasks_here),
            manifests={**self.manifests, **{p.manifest.task: p.manifest for p in read}},
        )

    def without(self, name: str) -> LoadedBank:
        """A bank without a task, whose row is free then. (Its folder stays.)

        Raises:
          ConfigError: no such task.
        """
        if name not in self.tasks:
            raise ConfigError(
                f"the loaded bank has no task '{name}': {', '.join(sorted(self.tasks)) or 'none'}"
            )

        def others(values: Mapping[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in values.items() if key != name}

        return dataclasses.replace(
            self,
            settings=dataclasses.replace(self.settings, tasks=others(self.settings.tasks)),
            manifests=others(self.manifests),
        )

    def dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        """See `LoadedModel`; every task of a bank has its own data set."""
        return self.manifests[task_name(self.tasks, task)].dataset_spec

    def fingerprint(self, task: str = "", exits: bool = True) -> str:
        """See `LoadedModel`; the other tasks of the bank have no part in it.

        Except in the width of vectors, which is that of the widest: an index has to be built anew
        when a task with wider ones joins.
        """
        name = task_name(self.tasks, task)
        manifest, template = self.manifests[name], self.template(name)
        own, here = manifest.model_config, self.model.config
        width = here.prompts.retrieval_dim if manifest.prompts.retrieval_dim else 0
        return digest(
            {
                # Of the run that the backbone was read from, precision alone: it may be any that
                # has the backbone, trained with other dropout, say.
                "config": {what: getattr(own, what) for what in WHAT},
                "precision": (here.dtype, here.operand_dtype),
                "prompt_config": dataclasses.asdict(manifest.prompts),
                "vocabulary": self.vocabulary.fingerprint,
                "retrieval_dim": width,
                "task": manifest.settings.fingerprinted(exits),
                "template": None if template is None else template.to_spec(),
                "backbone": self.backbone.checksums,
                "prompts": manifest.prompts_fingerprint,
            }
        )

    def _check(self, prompts: TaskPrompts) -> None:
        manifest = prompts.manifest
        check_owner(
            manifest,
            "the loaded bank",
            self.backbone_fingerprint,
            self.vocabulary.fingerprint,
            self.model.config,
        )
        check_capacity(manifest.model_config, self.model.config, manifest.task)
        for name in ("source_length", "target_length"):
            own, room = getattr(manifest.settings, name), getattr(self.settings, name)
            if own is not None and own > room:
                raise ConfigError(
                    f"'{manifest.task}' has {name} = {own}, but the bank was loaded for {room}: "
                    f"give load_bank a {name} of {own}"
                )

    def _free_rows(self, names: Sequence[str]) -> list[int]:
        for i, name in enumerate(names):
            if name in self.tasks or name in names[:i]:
                raise ConfigError(f"the loaded bank has a task '{name}' already; remove it first")
        number = self.model.config.prompts.num_tasks
        taken = {settings.task_id for settings in self.tasks.values()}
        free = [row for row in range(number) if row not in taken]
        if len(names) > len(free):
            raise ConfigError(
                f"no room for '{names[len(free)]}': all {number} rows of the loaded bank are "
                "taken; raise BankCapacity.num_tasks or remove a task"
            )
        return free[: len(names)]


def _placed(
    params: PyTree,
    stacked: Mapping[str, np.ndarray],
    counts: Mapping[str, np.ndarray],
    shardings: Mapping[str, Any],
) -> dict[str, Any]:
    """The variables, of prompts and sizes on the host."""
    placed = {
        name: jax.make_array_from_callback(values.shape, shardings[name], values.__getitem__)
        for name, values in stacked.items()
    }
    sizes = jax.device_put(dict(counts), shardings[SIZES_COLLECTION])
    return {"params": params, "prompts": nested(placed), SIZES_COLLECTION: {"bank": sizes}}


def empty_variables(
    model: M6Rec, params: PyTree, mesh: Mesh | None, rules: LogicalRules
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables of a bank without tasks, and their shardings by name; see `LoadedBank`.

    Args:
      model: with the bank's capacity as its prompts.
      params: the backbone, placed as `engine.model_folder.variable_targets` says.
      mesh, rules: where variables lie; None: the default device.
    """
    targets = flatten(variable_targets(model, mesh, rules).get("prompts", {}))
    target_mesh = make_mesh(1, 1, 1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    shardings: dict[str, Any] = {name: target.sharding for name, target in targets.items()}
    shardings |= {SIZES_COLLECTION: replicated(target_mesh)}
    leaves = prompt_leaves(model.config)
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in leaves.items()}
    counts = {name: np.zeros(model.config.prompts.num_tasks, np.int32) for name in _COUNTS}
    return _placed(params, zeros, counts, shardings), shardings

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
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.bank.capacity import check_capacity
from m6rec_jax.bank.folder import BankFolder, TaskPrompts
from m6rec_jax.bank.manifest import WHAT, Owner, PromptManifest, check_owner
from m6rec_jax.checkpoints.fingerprint import on_host
from m6rec_jax.checkpoints.trees import PyTree, flatten, nested
from m6rec_jax.engine.backbone import Backbone
from m6rec_jax.engine.loaded_model import InferenceSettings, LoadedModel, digest
from m6rec_jax.engine.model_folder import variable_targets
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.task_settings import task_name
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.layout import fit_task, prompt_leaves
from m6rec_jax.model.prompts import SIZES_COLLECTION
from m6rec_jax.sharding import LogicalRules, make_mesh, replicated
from m6rec_jax.text.vocabulary import Vocabulary

_COUNTS = ("num_prompts", "num_options")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LoadedBank(LoadedModel):
    """Tasks by name, over one backbone; see the module's docstring.

    A value: `with_tasks` and `without` give another bank, which shares the backbone, and leave
    this one as it is. Make the first one with `empty_bank`.

    Attributes:
      owner: of the backbone, to compare those of prompts with.
      folder: where tasks are found by name.
      manifests: by name.
      shardings: of the variables, by name.
    """

    owner: Owner
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
        rows = self._free_rows([prompts.manifest.task for prompts in read])
        fitted = [fit_task(p.tensors, p.manifest.model_config, self.model.config) for p in read]
        here = dict(self.settings.tasks)
        sizes = self.variables[SIZES_COLLECTION]["bank"]
        counts = {name: np.array(sizes[name]) for name in _COUNTS}
        for row, prompts in zip(rows, read, strict=True):
            own = prompts.manifest
            here[own.task] = dataclasses.replace(own.settings, task_id=row)
            for name in _COUNTS:
                counts[name][row] = getattr(own.prompts, name)
        added = {prompts.manifest.task: prompts.manifest for prompts in read}
        return dataclasses.replace(
            self,
            variables=self._placed(self._written(rows, fitted), counts),
            settings=dataclasses.replace(self.settings, tasks=here),
            manifests={**self.manifests, **added},
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
        check_owner(manifest, self.owner)
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

    def _written(
        self, rows: Sequence[int], fitted: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """The prompts with new rows; many are put together on the host, one is written there."""
        stacked = flatten(self.variables["prompts"])
        leaves = prompt_leaves(self.model.config)
        if len(rows) == 1:
            axes = tuple((name, leaf.task_axis) for name, leaf in leaves.items())
            everywhere = self.shardings[SIZES_COLLECTION]
            task, row = jax.device_put((dict(fitted[0]), np.int32(rows[0])), everywhere)
            shardings = tuple((name, self.shardings[name]) for name in stacked)
            written: dict[str, Any] = _compiled_write(axes, shardings)(stacked, task, row)
            return written
        stacked = {name: np.array(on_host(leaf)) for name, leaf in stacked.items()}
        for row, task in zip(rows, fitted, strict=True):
            for name, values in task.items():
                np.moveaxis(stacked[name], leaves[name].task_axis, 0)[row] = values
        return stacked

    def _placed(
        self, stacked: Mapping[str, Any], counts: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """The variables, of prompts and sizes that may be on the host."""
        placed = {
            name: values
            if isinstance(values, jax.Array)
            else jax.make_array_from_callback(
                values.shape, self.shardings[name], values.__getitem__
            )
            for name, values in stacked.items()
        }
        sizes = jax.device_put(dict(counts), self.shardings[SIZES_COLLECTION])
        return {
            "params": self.backbone.params,
            "prompts": nested(placed),
            SIZES_COLLECTION: {"bank": sizes},
        }


def empty_bank(
    config: ModelConfig,
    params: PyTree,
    fingerprint: str,
    vocabulary: Vocabulary,
    *,
    source_length: int,
    target_length: int,
    step: int,
    folder: BankFolder,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> LoadedBank:
    """A bank without tasks.

    Args:
      config: of the model, with the bank's capacity as its prompts.
      params: the backbone, placed as `engine.model_folder.variable_targets` says.
      fingerprint, vocabulary, step: the backbone's; see `checkpoints.fingerprint`.
      folder: see `LoadedBank`.
      source_length, target_length: most tokens of a history and a decoder row, of any task.
      mesh, rules: where variables lie; None: the default device.
    """
    model, rules = M6Rec(config), tuple(rules)
    targets = flatten(variable_targets(model, mesh, rules).get("prompts", {}))
    target_mesh = make_mesh(1, 1, 1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    shardings = {name: target.sharding for name, target in targets.items()}
    bank = LoadedBank(
        model=model,
        variables={"params": params},
        vocabulary=vocabulary,
        settings=InferenceSettings(source_length, target_length),
        step=step,
        backbone=Backbone(model, params, Runtime(mesh, rules), source_length, target_length),
        mesh=mesh,
        rules=rules,
        owner=Owner("the loaded bank", fingerprint, vocabulary.fingerprint, config),
        folder=folder,
        manifests={},
        shardings=shardings | {SIZES_COLLECTION: replicated(target_mesh)},
    )
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in prompt_leaves(config).items()}
    counts = {name: np.zeros(config.prompts.num_tasks, np.int32) for name in _COUNTS}
    bank = dataclasses.replace(bank, variables=bank._placed(zeros, counts))
    # Compiled now, so that no swap compiles anything.
    leaves = prompt_leaves(config)
    bank._written(
        [0], [{name: np.zeros(leaf.of_task().shape, np.float32) for name, leaf in leaves.items()}]
    )
    return bank


@functools.lru_cache(maxsize=16)
def _compiled_write(
    axes: tuple[tuple[str, int], ...], shardings: tuple[tuple[str, Any], ...]
) -> Any:
    """Puts one task into one row of the stacked prompts."""
    axis_of = dict(axes)

    def write(
        stacked: dict[str, jax.Array], task: dict[str, jax.Array], row: jax.Array
    ) -> dict[str, jax.Array]:
        return {
            name: jax.lax.dynamic_update_index_in_dim(leaf, task[name], row, axis_of[name])
            for name, leaf in stacked.items()
        }

    # Not donated: requests that have begun go on with the old arrays.
    return jax.jit(write, out_shardings=dict(shardings))

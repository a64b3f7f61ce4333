"""A bank in memory: one model, one backbone, the prompts of many tasks stacked beside it.

bank = load_bank("runs/bank", "runs/foundation")               # bank.loading
scorer = bank.scorer()
scorer.score_requests(histories, candidates, ["ctr", "stars", "ctr"])   # one batch, two tasks
bank.add("genres")             # another folder of runs/bank; nothing is compiled
bank.scorer("genres").score_requests(histories, candidates)
bank.remove("ctr")
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.bank.capacity import check_capacity
from m6rec_jax.bank.folder import BankFolder, TaskPrompts
from m6rec_jax.bank.manifest import WHAT, Owner, PromptManifest, check_owner
from m6rec_jax.checkpoints.fingerprint import on_host
from m6rec_jax.checkpoints.trees import PyTree, flatten, unflatten
from m6rec_jax.engine.loaded_model import InferenceSettings, LoadedModel, digest
from m6rec_jax.engine.model_folder import variable_targets
from m6rec_jax.engine.task_settings import TaskSettings, task_name
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.layout import fit_task, prompt_leaves
from m6rec_jax.model.prompts import SIZES_COLLECTION
from m6rec_jax.sharding import LogicalRules, make_mesh, replicated
from m6rec_jax.text.vocabulary import Vocabulary

_COUNTS = ("num_prompts", "num_options")


class LoadedBank(LoadedModel):
    """Tasks by name, over one backbone; see the module's docstring.

    Tasks may be added and removed while other threads serve. No array is changed in place, and a
    request takes its tasks' settings and the variables of one moment, so that requests of a removed
    task still end with its prompts.

    Args:
      config: of the model, with the bank's capacity as its prompts.
      params: the backbone, placed as `engine.model_folder.variable_targets` says.
      fingerprint, vocabulary, step: the backbone's; see `checkpoints.fingerprint`.
      folder: where `add` finds tasks by name; None: nowhere.
      source_length, target_length: most tokens of a history and a decoder row, of any task.
      mesh, rules: where variables lie; None: the default device.

    Attributes:
      variables: `{'params', 'prompts', 'task_sizes'}` as they are now. Engines hold this very dict,
        so they see what is added.
      tasks, manifests: by name, as they are now.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: PyTree,
        fingerprint: str,
        vocabulary: Vocabulary,
        *,
        source_length: int,
        target_length: int,
        step: int = 0,
        folder: BankFolder | None = None,
        mesh: Mesh | None = None,
        rules: LogicalRules = (),
    ) -> None:
        self.tasks: dict[str, TaskSettings] = {}
        settings = InferenceSettings(source_length, target_length, self.tasks)
        super().__init__(M6Rec(config), {"params": params}, vocabulary, settings, step, mesh, rules)
        self.folder = folder
        self.manifests: dict[str, PromptManifest] = {}
        self._specs: dict[str, Mapping[str, Any] | None] = {}
        self._owner = Owner("the loaded bank", fingerprint, vocabulary.fingerprint, config)
        self._free = deque(range(config.prompts.num_tasks))
        self._lock = threading.Lock()
        self._leaves = prompt_leaves(config)
        self._targets = variable_targets(self.model, mesh, rules).get("prompts", {})
        target_mesh = make_mesh(1, 1, 1, devices=jax.local_devices()[:1]) if mesh is None else mesh
        self._everywhere = replicated(target_mesh)
        self._counts = {name: np.zeros(config.prompts.num_tasks, np.int32) for name in _COUNTS}
        self._put({name: np.zeros(leaf.shape, np.float32) for name, leaf in self._leaves.items()})
        self._put_counts()
        self._write = self._compiled_write()

    def add(self, task: str | TaskPrompts) -> None:
        """Puts a task into a free row. Others are not touched, and nothing is compiled.

        Args:
          task: name of a task in the bank's folder, or prompts from elsewhere.

        Raises:
          ConfigError: the name is taken, there is no free row, or the task is larger than what the
            bank was loaded for.
          CheckpointError: no such task; truncated or damaged files; another backbone, vocabulary or
            model. The bank is then as it was.
        """
        self.add_all([task])

    def add_all(self, tasks: Sequence[str | TaskPrompts]) -> None:
        """Adds several tasks, or none of them where one cannot be added; see `add`."""
        read = [self._read(task) if isinstance(task, str) else task for task in tasks]
        for prompts in read:
            self._check(prompts)
        with self._lock:
            rows = self._rows_for([prompts.manifest.task for prompts in read])
            fitted = [fit_task(p.tensors, p.manifest.model_config, self.model.config) for p in read]
            if len(read) == 1:
                self._write_row(rows[0], fitted[0])
            else:
                self._put(self._stacked(rows, fitted))
            self._publish(rows, read)

    def remove(self, name: str) -> None:
        """Takes a task out; its row is free then. (Its folder stays.)

        Raises:
          ConfigError: no such task.
        """
        with self._lock:
            if name not in self.tasks:
                raise ConfigError(
                    f"the loaded bank has no task '{name}': "
                    f"{', '.join(sorted(self.tasks)) or 'none'}"
                )
            row = self.tasks.pop(name).task_id
            del self.manifests[name], self._specs[name]
            self._free.append(row)

    def fork(self) -> LoadedBank:
        """A bank with the same tasks. What is added to it or removed leaves this one as it is.

        Arrays are shared until the fork changes them, compiled programs in any case.
        """
        with self._lock:
            other = copy.copy(self)
            other.tasks = dict(self.tasks)
            other.settings = dataclasses.replace(self.settings, tasks=other.tasks)
            other.variables = dict(self.variables)
            other.manifests, other._specs = dict(self.manifests), dict(self._specs)
            other._counts = {name: values.copy() for name, values in self._counts.items()}
            other._free = deque(self._free)
        other._lock = threading.Lock()
        return other

    def dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        """See `LoadedModel`; every task of a bank has its own data set."""
        return self._specs[task_name(self.tasks, task)]

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
                "backbone": self._backbone_checksums,
                "prompts": manifest.prompts_fingerprint,
            }
        )

    def _read(self, name: str) -> TaskPrompts:
        if self.folder is None:
            raise ConfigError(f"the loaded bank has no folder to find '{name}' in")
        return self.folder.read(name)

    def _check(self, prompts: TaskPrompts) -> None:
        manifest = prompts.manifest
        check_owner(manifest, self._owner)
        check_capacity(manifest.model_config, self.model.config, manifest.task)
        for name in ("source_length", "target_length"):
            own, room = getattr(manifest.settings, name), getattr(self.settings, name)
            if own is not None and own > room:
                raise ConfigError(
                    f"'{manifest.task}' has {name} = {own}, but the bank was loaded for {room}: "
                    f"give load_bank a {name} of {own}"
                )

    def _rows_for(self, names: Sequence[str]) -> list[int]:
        """Free rows for new tasks, the one longest free first."""
        for i, name in enumerate(names):
            if name in self.tasks or name in names[:i]:
                raise ConfigError(f"the loaded bank has a task '{name}' already; remove it first")
        if len(names) > len(self._free):
            raise ConfigError(
                f"no room for '{names[len(self._free)]}': all "
                f"{self.model.config.prompts.num_tasks} rows of the loaded bank are taken; raise "
                "BankCapacity.num_tasks or remove a task"
            )
        return [self._free[i] for i in range(len(names))]

    def _publish(self, rows: Sequence[int], added: Sequence[TaskPrompts]) -> None:
        """Sizes first, names last: nobody finds a task before all of it is there."""
        for row, prompts in zip(rows, added, strict=True):
            own = prompts.manifest.prompts
            self._counts["num_prompts"][row] = own.num_prompts
            self._counts["num_options"][row] = own.num_options
        self._put_counts()
        for row, prompts in zip(rows, added, strict=True):
            name, settings = prompts.manifest.task, prompts.manifest.settings
            self._free.remove(row)
            self._specs[name] = prompts.dataset_spec
            self.manifests[name] = prompts.manifest
            self.tasks[name] = dataclasses.replace(settings, task_id=row)

    def _stacked(
        self, rows: Sequence[int], fitted: Sequence[Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The bank with new rows, in host memory: one copy for any number of them."""
        old = flatten(self.variables["prompts"])
        stacked = {name: np.array(on_host(leaf)) for name, leaf in old.items()}
        for row, task in zip(rows, fitted, strict=True):
            for name, values in task.items():
                np.moveaxis(stacked[name], self._leaves[name].task_axis, 0)[row] = values
        return stacked

    def _put(self, stacked: Mapping[str, np.ndarray]) -> None:
        targets = flatten(self._targets)
        placed = {
            name: jax.make_array_from_callback(
                values.shape, targets[name].sharding, values.__getitem__
            )
            for name, values in stacked.items()
        }
        self.variables["prompts"] = unflatten(placed, self._targets)

    def _put_counts(self) -> None:
        counts = {
            name: jax.device_put(values.copy(), self._everywhere)
            for name, values in self._counts.items()
        }
        self.variables[SIZES_COLLECTION] = {"bank": counts}

    def _compiled_write(self) -> Any:
        """A program that puts one task into one row, compiled now and never again."""
        axes = {name: leaf.task_axis for name, leaf in self._leaves.items()}

        def write(
            stacked: dict[str, jax.Array], task: dict[str, jax.Array], row: jax.Array
        ) -> dict[str, jax.Array]:
            return {
                name: jax.lax.dynamic_update_index_in_dim(leaf, task[name], row, axes[name])
                for name, leaf in stacked.items()
            }

        stacked = flatten(self._targets)
        task = {
            name: jax.ShapeDtypeStruct(leaf.of_task().shape, np.float32, sharding=self._everywhere)
            for name, leaf in self._leaves.items()
        }
        row = jax.ShapeDtypeStruct((), np.int32, sharding=self._everywhere)
        shardings = {name: target.sharding for name, target in stacked.items()}
        # Not donated: requests that have begun go on with the old arrays.
        return jax.jit(write, out_shardings=shardings).lower(stacked, task, row).compile()

    def _write_row(self, row: int, task: Mapping[str, np.ndarray]) -> None:
        placed = jax.device_put((dict(task), np.int32(row)), self._everywhere)
        written = self._write(flatten(self.variables["prompts"]), *placed)
        self.variables["prompts"] = unflatten(written, self._targets)

"""From a bank's folder and its backbone's run to a `LoadedBank`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gin
from jax.sharding import Mesh

from m6rec_jax.bank.capacity import BankCapacity
from m6rec_jax.bank.folder import BankFolder
from m6rec_jax.bank.loaded import LoadedBank, empty_variables
from m6rec_jax.bank.manifest import WHAT, check_owner
from m6rec_jax.checkpoints.fingerprint import backbone_fingerprint
from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.manifest import check_vocabulary
from m6rec_jax.checkpoints.restore import PARAMS, restore_item
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
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.model import M6Rec
from m6rec_jax.model.frozen_backbone import held_in
from m6rec_jax.sharding import LogicalRules


@gin.configurable
def load_bank(
    bank: str | Path,
    backbone: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    capacity: BankCapacity | None = None,
    step: int | None = None,
    source_length: int | None = None,
    target_length: int | None = None,
    frozen_dtype: str | None = None,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> LoadedBank:
    """Loads a bank and the backbone that its tasks share.

    Args:
      bank: the folder.
      backbone: MODEL_DIR of a run that has that backbone: the foundation, or any run tuned from it
        with a frozen one. Its `inference` folder has the vocabulary.
      tasks: which of the bank's; None: all.
      capacity: room for tasks to come; None: `BankCapacity()`.
      step: of the backbone's checkpoint; None: the newest.
      source_length, target_length: most tokens of a history and a decoder row, of any task; None:
        those of the longest task (without tasks: the backbone's).
      frozen_dtype: type that the backbone is held in ('bfloat16' halves its memory; None: float32),
        as for `training.loop.train`. Prompts stay in float32.
      mesh: devices to spread the variables over; None: the default device.
      rules: logical-axis rules, with a mesh.

    Raises:
      CheckpointError: no bank or backbone; a truncated or damaged task (name the `tasks` to load,
        or remove it); another backbone or vocabulary than the tasks were trained on.
      ConfigError: less room than the tasks need, or another `frozen_dtype`.
    """
    folder = BankFolder(bank)
    if isinstance(tasks, str):
        tasks = (tasks,)  # and not its letters
    names = folder.names() if tasks is None else list(tasks)
    read = [folder.read(name) for name in names]
    location = locate(backbone, step)
    manifest, vocabulary = read_manifest(location), read_vocabulary(backbone)
    check_vocabulary(manifest, vocabulary.fingerprint, str(location.folder))
    config = manifest.build_model_config()
    own = M6Rec(config)
    target = held_in(variable_targets(own, mesh, rules)["params"], frozen_dtype)
    params = restore_item(location, manifest, PARAMS, target, config)
    fingerprint = backbone_fingerprint(params)
    for prompts in read:
        where = f"the model in {location.folder}"
        check_owner(prompts.manifest, where, fingerprint, vocabulary.fingerprint)
    if read:
        # The tasks may have been tuned with other settings than the foundation's that change no
        # weight, such as where late interaction begins.
        first = read[0].manifest.model_config
        config = config.replace(**{name: getattr(first, name) for name in WHAT})
    room = (capacity or BankCapacity()).prompt_config([p.manifest.prompts for p in read])
    lengths = [p.manifest.settings for p in read]
    if not read:
        there = read_settings(backbone)
        lengths = [
            TaskSettings(source_length=there.source_length, target_length=there.target_length)
        ]
    model, rules = M6Rec(config.replace(prompts=room)), tuple(rules)
    source_length = source_length or max(s.source_length or 0 for s in lengths)
    target_length = target_length or max(s.target_length or 0 for s in lengths)
    variables, shardings = empty_variables(model, params, mesh, rules)
    bare = LoadedBank(
        model=model,
        variables=variables,
        vocabulary=vocabulary,
        settings=InferenceSettings(source_length, target_length),
        step=location.step,
        backbone=Backbone(model, params, Runtime(mesh, rules), source_length, target_length),
        backbone_fingerprint=fingerprint,
        folder=folder,
        manifests={},
        shardings=shardings,
    )
    return bare.with_tasks(*read) if read else bare


def load_with_bank(
    model_dir: str | Path,
    *,
    bank: str | Path | None = None,
    step: int | None = None,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> LoadedModel:
    """The model of a run, or the tasks of a bank on the run's backbone.

    The other settings of `load_bank` come from gin; arguments are as for `load_model`.

    Raises:
      CheckpointError, ConfigError: as `load_model` and `load_bank`.
    """
    if bank is None:
        return load_model(model_dir, step=step, mesh=mesh, rules=rules)
    return load_bank(bank, model_dir, step=step, mesh=mesh, rules=rules)

"""A checkpoint on disk: found in a run's folder, opened with its manifest, restored on any mesh."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from m6rec_jax.checkpoints.failures import failure
from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.manifest import (
    Manifest,
    check_tensors,
    differences,
    same_task_sizes,
    tensor_specs,
)
from m6rec_jax.checkpoints.trees import PyTree, flatten, nested, unflatten
from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.buckets import check_bucket, in_bucket
from m6rec_jax.model.config import ModelConfig

PARAMS, PROMPTS, OPTIMIZER, DATA = "params", "prompts", "optimizer", "data"
CHECKPOINTS_FOLDER = "checkpoints"
MANIFEST_ITEM = "manifest"
_MANIFEST_FILE = "metadata"  # the name Orbax's JSON handler gives it

logger = logging.getLogger(__name__)


def absolute(path: str | Path | epath.Path) -> epath.Path:
    """A local path made absolute, which Orbax insists on; a bucket address as it is, checked."""
    check_bucket(path)
    return epath.Path(path) if in_bucket(path) else epath.Path(Path(path).absolute())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A finished checkpoint, which `open_checkpoint` found: its folder, step and manifest."""

    folder: epath.Path
    step: int
    manifest: Manifest

    @property
    def manifest_file(self) -> epath.Path:
        """The file that holds its manifest, JSON."""
        return self.folder / MANIFEST_ITEM / _MANIFEST_FILE

    @property
    def config(self) -> ModelConfig:
        """Of the model; see `Manifest.build_model_config`."""
        return self.manifest.build_model_config()

    def item_folder(self, item: str) -> epath.Path:
        """Where an item of this step lies (a frozen item lies beside the step's folder).

        Raises CheckpointError if the checkpoint has no such item, or its folder is gone.
        """
        locations = self.manifest.locations
        if item not in locations:
            known = ", ".join(sorted(locations)) or "none"
            raise CheckpointError(f"{self.folder} has no item '{item}'; its items: {known}")
        relative = locations[item]
        is_beside = relative.startswith("../")
        path = self.folder.parent / relative[3:] if is_beside else self.folder / relative
        if not path.exists():
            hint = ": it lies beside the run's steps; copy it too" if is_beside else ""
            raise CheckpointError(f"{path} (item '{item}' of step {self.step}) is missing{hint}")
        return path

    def check_vocabulary(self, fingerprint: str | None) -> None:
        """Raises CheckpointError for another vocabulary than the one in use (None: not checked)."""
        saved = self.manifest.vocabulary_fingerprint
        if saved is not None and fingerprint is not None and saved != fingerprint:
            raise CheckpointError(
                f"{self.folder} was trained with another vocabulary (fingerprint {saved[:16]}…, "
                f"the one in use has {fingerprint[:16]}…), so its token ids mean other words. Use "
                "the vocabulary file of that run"
            )

    def warn_of_a_better_step(self, path: str | Path | epath.Path) -> None:
        """Warns where this is the newest of a run, not the best by `Validation.best_metric`.

        Nothing is said where the path, by which it was found, is the step's own.
        """
        best = self.manifest.extra.get("best") or {}
        if self.folder == absolute(path) or best.get("best_step") in (None, self.step):
            return
        logger.warning(
            "took step %d, the newest; by %s step %d was better (%.4g). m6rec eval, infer and "
            "prompts add take it by --gin.evaluate.step=%d, --gin.infer.step=%d and --step %d; "
            "m6rec convert and INITIAL_CHECKPOINT_PATH take RUN/checkpoints/%d",
            *(self.step, best["name"], best["best_step"], best["best"], *[best["best_step"]] * 4),
        )

    def restore(self, item: str, target: PyTree, model_config: ModelConfig | None = None) -> PyTree:
        """One item, its checksums compared.

        Args:
          item: `PARAMS`, `PROMPTS` or `OPTIMIZER`.
          target: tree of `jax.ShapeDtypeStruct` with shardings (or arrays): what to restore into,
            whatever mesh the checkpoint was saved from. Values are converted to its types.
          model_config: of the present model, whose tasks must have the sizes that they were saved
            with; makes errors say which settings differ.

        Raises:
          CheckpointError: the item is missing, has other tensors or shapes, is damaged, or cannot
            be read.
          UnreachableError: its place does not answer.
        """
        wanted, where = flatten(target), str(self.folder)
        if item not in self.manifest.tensors:
            self.item_folder(item)  # raises, with the items there are
        check_tensors(self.manifest, item, tensor_specs(wanted), where, model_config)
        if item == PROMPTS and model_config and not same_task_sizes(self.manifest, model_config):
            # What a task does not have would take part in what it computes.
            changed = "; ".join(differences(self.manifest, model_config))
            raise CheckpointError(
                f"{where}: tasks had other sizes (checkpoint -> model): {changed}"
            )
        return unflatten(self._read(item, wanted), target) if wanted else target

    def restore_matching(self, item: str, target: PyTree) -> dict[str, jax.Array]:
        """Those tensors of an item whose name and shape the target shares, by name.

        For taking over what two task banks have in common, e.g. special-token embeddings from
        pretraining into a bank with more soft prompts.
        """
        saved = self.manifest.tensors.get(item, {})
        shared = {
            name: leaf
            for name, leaf in flatten(target).items()
            if name in saved and saved[name].shape == tuple(leaf.shape)
        }
        return self._read(item, shared) if shared else {}

    def _read(self, item: str, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Reads in the saved types, compares checksums, then converts to the wanted types."""
        saved, folder = self.manifest.tensors[item], self.item_folder(item)
        tree = nested(
            {
                name: jax.ShapeDtypeStruct(
                    saved[name].shape, np.dtype(saved[name].dtype), sharding=_sharding(leaf)
                )
                for name, leaf in wanted.items()
            }
        )
        args = ocp.args.PyTreeRestore(
            item=tree,
            restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
            partial_restore=len(wanted) < len(saved),
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                restored = flatten(checkpointer.restore(folder, args=args))
        except Exception as error:  # Orbax and TensorStore raise many kinds, Exception included
            raise failure(f"{folder} could not be read", error) from error
        for name, value in checksums(restored).items():
            if saved[name].checksum not in (None, value):
                raise CheckpointError(
                    f"{folder} is damaged: the values of '{name}' have changed since they were "
                    "saved"
                )
        return {
            name: leaf if leaf.dtype == wanted[name].dtype else leaf.astype(wanted[name].dtype)
            for name, leaf in restored.items()
        }


def _sharding(leaf: jax.ShapeDtypeStruct | jax.Array) -> jax.sharding.Sharding:
    # Never the sharding in the file: it names devices that need not exist here.
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def list_steps(root: str | Path | epath.Path) -> list[int]:
    """Steps of the finished checkpoints in a `checkpoints` folder, ascending."""
    folder = epath.Path(root)
    if not folder.is_dir():
        return []
    return sorted(found.step for found in ocp.step.standard_name_format().find_all(folder))


def open_checkpoint(path: str | Path | epath.Path, step: int | None = None) -> Checkpoint:
    """The checkpoint that a path means.

    Args:
      path: MODEL_DIR, its `checkpoints` folder (then the newest step), or a step's folder.
      step: that step instead of the newest.

    Raises:
      CheckpointError: there is none (lists the steps there are), its manifest is missing or
        damaged, or the package for buckets is missing.
    """
    folder = absolute(path)
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file: if it is packed, name the run that it was made of"
        )
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: no such folder")
    if (folder / MANIFEST_ITEM).is_dir() and folder.name.isdigit():
        if step is not None and step != int(folder.name):
            raise CheckpointError(f"{folder} is step {folder.name}, not step {step}")
        if int(folder.name) not in list_steps(folder.parent):
            raise CheckpointError(f"{folder} was never finished (the save was interrupted)")
        return _opened(folder)
    root = folder / CHECKPOINTS_FOLDER if (folder / CHECKPOINTS_FOLDER).is_dir() else folder
    steps = list_steps(root)
    if not steps:
        runs = [str(own) for own in folder.iterdir() if (own / CHECKPOINTS_FOLDER).is_dir()]
        below = f"; there are runs below it: {', '.join(sorted(runs))}" if runs else ""
        raise CheckpointError(
            f"no checkpoint at {folder}: expected MODEL_DIR, its '{CHECKPOINTS_FOLDER}' folder, or "
            f"one step's folder in it{below}"
        )
    if step is not None and step not in steps:
        raise CheckpointError(
            f"no checkpoint of step {step} in {root}; there are: {', '.join(map(str, steps))}"
        )
    return _opened(root / str(steps[-1] if step is None else step))


def _opened(folder: epath.Path) -> Checkpoint:
    file = folder / MANIFEST_ITEM / _MANIFEST_FILE
    if not file.exists():
        raise CheckpointError(f"{file} is missing: not a checkpoint of m6rec, or a damaged one")
    return Checkpoint(folder, int(folder.name), Manifest.parse(file.read_bytes(), str(file)))

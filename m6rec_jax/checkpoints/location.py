"""Finding checkpoints on disk: a run's folder, its `checkpoints` folder or one step's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orbax.checkpoint as ocp
from etils import epath

from m6rec_jax.checkpoints.manifest import Manifest, parse_manifest
from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.buckets import check_bucket, in_bucket

CHECKPOINTS_FOLDER = "checkpoints"
MANIFEST_ITEM = "manifest"
_MANIFEST_FILE = "metadata"  # the name Orbax's JSON handler gives it


def absolute(path: str | Path | epath.Path) -> epath.Path:
    """A local path made absolute, which Orbax insists on; a bucket address as it is, checked."""
    check_bucket(path)
    return epath.Path(path) if in_bucket(path) else epath.Path(Path(path).absolute())


@dataclass(frozen=True, slots=True)
class StepLocation:
    """A finished checkpoint: its folder and step."""

    folder: epath.Path
    step: int

    @property
    def manifest_file(self) -> epath.Path:
        """The file that holds its manifest, JSON."""
        return self.folder / MANIFEST_ITEM / _MANIFEST_FILE

    def item_folder(self, manifest: Manifest, item: str) -> epath.Path:
        """Where an item of this step lies (a frozen item lies beside the step's folder).

        Raises CheckpointError if the checkpoint has no such item, or its folder is gone.
        """
        if item not in manifest.locations:
            known = ", ".join(sorted(manifest.locations)) or "none"
            raise CheckpointError(f"{self.folder} has no item '{item}'; its items: {known}")
        relative = manifest.locations[item]
        is_beside = relative.startswith("../")
        path = self.folder.parent / relative[3:] if is_beside else self.folder / relative
        if not path.exists():
            hint = ": it lies beside the run's steps; copy it too" if is_beside else ""
            raise CheckpointError(f"{path} (item '{item}' of step {self.step}) is missing{hint}")
        return path


def list_steps(root: str | Path | epath.Path) -> list[int]:
    """Steps of the finished checkpoints in a `checkpoints` folder, ascending."""
    folder = epath.Path(root)
    if not folder.is_dir():
        return []
    return sorted(found.step for found in ocp.step.standard_name_format().find_all(folder))


def locate(path: str | Path | epath.Path, step: int | None = None) -> StepLocation:
    """The checkpoint that a path means.

    Args:
      path: MODEL_DIR, its `checkpoints` folder (then the newest step), or a step's folder.
      step: that step instead of the newest.

    Raises:
      CheckpointError: there is none (lists the steps there are), or the package for buckets is
        missing.
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
        return StepLocation(folder, int(folder.name))
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
    chosen = steps[-1] if step is None else step
    return StepLocation(root / str(chosen), chosen)


def read_manifest(location: StepLocation) -> Manifest:
    """The manifest of a checkpoint; raises CheckpointError if it is missing or damaged."""
    path = location.manifest_file
    if not path.exists():
        raise CheckpointError(f"{path} is missing: not a checkpoint of m6rec, or a damaged one")
    return parse_manifest(path.read_bytes(), str(path))

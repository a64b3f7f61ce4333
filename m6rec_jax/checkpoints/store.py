"""The checkpoints of one run: saved asynchronously; the newest and the best one are kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from m6rec_jax.checkpoints.bytes_item import BytesItem
from m6rec_jax.checkpoints.checkpoint import DATA, MANIFEST_ITEM, absolute, open_checkpoint
from m6rec_jax.checkpoints.failures import failure
from m6rec_jax.checkpoints.fingerprint import checksums, fingerprint
from m6rec_jax.checkpoints.manifest import (
    Manifest,
    RunDescription,
    TensorSpec,
    tensor_specs,
)
from m6rec_jax.checkpoints.trees import PyTree, flatten, nested
from m6rec_jax.io.atomic import write_atomically


class CheckpointStore:
    """Writes the steps of one `checkpoints` folder.

    Args:
      folder: made when missing; may be a bucket address.
      keep: newest steps to keep (None: all).
      asynchronous: `save` returns once the values are copied off the devices; writing goes on in
        the background.

    Raises:
      CheckpointError: the folder is in a bucket, and the package for it is missing.
    """

    def __init__(
        self,
        folder: str | Path | epath.Path,
        *,
        keep: int | None = 3,
        asynchronous: bool = True,
    ) -> None:
        self.folder = absolute(folder)
        # item -> (folder, specs), of frozen items: they never change while this object lives.
        self._frozen: dict[str, tuple[str, dict[str, TensorSpec]]] = {}
        # What is kept: the newest, and the best, which `save` puts here.
        self._kept: list[Any] = [checkpoint_managers.LatestN(keep)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(self._kept),
            enable_async_checkpointing=asynchronous,
        )
        self._remove_unfinished()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest_step(self) -> int | None:
        """The newest finished checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        trees: Mapping[str, PyTree],
        *,
        data: Mapping[str, bytes],
        run: RunDescription,
        best: int | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        """Saves a step; it exists once everything of it is written (`wait`).

        Args:
          step: optimizer steps taken.
          trees: item (`params`, `prompts`, `optimizer`) → tree of arrays.
          data: iterator states of this process's shards, by name.
          run: goes to the manifest.
          best: the step that is kept although newer ones come, if any.
          frozen: items that never change in this run: written once, beside the steps.

        Raises:
          CheckpointError: an earlier asynchronous save failed (disk full, no permission).
          UnreachableError: it failed since the place does not answer.
        """
        tensors: dict[str, Mapping[str, TensorSpec]] = {}
        locations, items = {}, {}
        try:
            for item, tree in trees.items():
                flat = flatten(tree)
                if item in frozen and flat:
                    folder, tensors[item] = self._save_frozen(item, flat)
                    locations[item] = f"../{folder}"
                    continue
                tensors[item] = tensor_specs(flat, checksums(flat))
                if flat:  # Orbax refuses empty trees
                    locations[item] = item
                    items[item] = ocp.args.StandardSave(nested(flat))
            locations[DATA] = DATA
            manifest = Manifest.of(step, run, tensors, locations)
            items[DATA] = BytesItem(dict(data))
            items[MANIFEST_ITEM] = ocp.args.JsonSave(dataclasses.asdict(manifest))
            self._kept[1:] = [] if best is None else [checkpoint_managers.CustomSteps([best])]
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError, RuntimeError) as error:
            what = f"step {step} could not be saved to {self.folder}"
            raise failure(what, error) from error

    def describe(self, step: int, extra: Mapping[str, Any]) -> None:
        """Changes entries of `extra` in the manifest of a finished step; no save is under way."""
        if jax.process_index():
            return
        checkpoint = open_checkpoint(self.folder, step)
        manifest = checkpoint.manifest
        manifest = dataclasses.replace(manifest, extra={**manifest.extra, **extra})
        write_atomically(checkpoint.manifest_file, json.dumps(dataclasses.asdict(manifest)))

    def wait(self) -> None:
        """Blocks until all saves are finished; raises as `save` if one failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            what = f"a checkpoint could not be saved to {self.folder}"
            raise failure(what, error) from error

    def close(self) -> None:
        """Finishes all saves and lets go of the folder."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remove_unfinished(self) -> None:
        """Removes what a killed run left half written.

        Orbax would do it in the background, where it might meet a frozen item that is just being
        written.
        """
        if jax.process_index() == 0 and self.folder.is_dir():
            for path in self.folder.iterdir():
                if ocp.utils.is_tmp_checkpoint(path):
                    path.rmtree()

    def _save_frozen(
        self, item: str, flat: Mapping[str, Any]
    ) -> tuple[str, Mapping[str, TensorSpec]]:
        if item not in self._frozen:
            name = f"{item}-{fingerprint(flat)[:16]}"
            self._frozen[item] = name, tensor_specs(flat, checksums(flat))
            path = self.folder / name
            if not (path.exists() and ocp.utils.is_checkpoint_finalized(path)):
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.save(path, nested(flat))
        return self._frozen[item]

"""The files of a t5x checkpoint that t5x wrote through Orbax, as it does today.

checkpoint_1000000/
  state/             an Orbax item: {'target': parameters, 'state': the optimizer's}
  dataset/           the position in the data, if t5x was asked to keep it
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from m6rec_jax.checkpoints.host_tensors import read_tensors
from m6rec_jax.checkpoints.manifest import TensorSpec
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import CheckpointError

STATE_FOLDER = "state"
_TARGET = "target/"


class T5xOrbaxFiles:
    """The parameters of a t5x checkpoint (not its optimizer's state).

    Attributes:
      folder: the checkpoint's.
      found: name ('target.…') → shape and type.
    """

    def __init__(self, folder: Path) -> None:
        """Reads what there is.

        Args:
          folder: the checkpoint's.

        Raises:
          CheckpointError: damaged, or without parameters.
        """
        self.folder = folder
        self._state = folder / STATE_FOLDER
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                metadata = checkpointer.metadata(self._state.absolute()).item_metadata
            leaves = flatten(metadata.tree) if metadata is not None else {}
        except Exception as error:  # Orbax raises many kinds, plain Exception included
            raise CheckpointError(f"{self._state} is damaged: {error}") from error
        self._specs = {
            name: TensorSpec(tuple(leaf.shape), np.dtype(leaf.dtype).name)
            for name, leaf in leaves.items()
            if name.startswith(_TARGET)
        }
        if not self._specs:
            raise CheckpointError(
                f"{self._state} is damaged, or no item of t5x: it has no 'target'"
            )
        self.found = {name.replace("/", "."): spec for name, spec in self._specs.items()}

    def read(self, name: str) -> np.ndarray:
        """The values of a parameter.

        Raises:
          CheckpointError: its files are missing or damaged.
        """
        path = name.replace(".", "/")
        return read_tensors(self._state, {path: self._specs[path]}, partial=True)[path]

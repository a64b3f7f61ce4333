"""What model a t5x run is of: a file beside its checkpoints, which themselves do not say.

MODEL_DIR/m6rec.json        a manifest without tensors: model, vocabulary, what trained
MODEL_DIR/inference/        as in runs of ours, see `engine.model_folder`
"""

from __future__ import annotations

import json
from pathlib import Path

from etils import epath

from m6rec_jax.checkpoints.manifest import (
    Manifest,
    RunDescription,
    make_manifest,
    parse_manifest,
)
from m6rec_jax.errors import CheckpointError

DESCRIPTION_FILE = "m6rec.json"


def write_description(folder: str | Path | epath.Path, run: RunDescription) -> None:
    """Writes the description of the checkpoints in a folder (MODEL_DIR of t5x)."""
    path = epath.Path(folder) / DESCRIPTION_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = make_manifest(0, run, {}, {}, {})
    path.write_text(json.dumps(manifest.to_json(), indent=2) + "\n")


def read_description(checkpoint: str | Path | epath.Path) -> Manifest:
    """The description of a checkpoint, beside it or in it.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    folder = epath.Path(checkpoint)
    for place in (folder, folder.parent):
        if (place / DESCRIPTION_FILE).exists():
            path = place / DESCRIPTION_FILE
            return parse_manifest(path.read_text(), str(path))
    raise CheckpointError(
        f"neither {folder} nor {folder.parent} has a file {DESCRIPTION_FILE}, which says what "
        "model the checkpoint is of. Runs of gin_configs/t5x/ write it; copy it, too"
    )

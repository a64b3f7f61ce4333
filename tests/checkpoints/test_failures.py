"""What cannot be read or written is told as what it is: nobody is to delete what is not damaged."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.restore import PROMPTS, restore_item
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.errors import CheckpointError, M6RecError, UnreachableError

TREE = {"soft_prompts": np.arange(6, dtype=np.float32).reshape(2, 3)}


def save(folder: Path) -> None:
    with CheckpointStore(folder) as store:
        for step in (1, 2):
            store.save(step, {"prompts": TREE}, data={}, run=RunDescription())


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        # As TensorStore says it.
        (
            ValueError("ABORTED: CURL error: Could not connect to server"),
            UnreachableError,
            "not answer",
        ),
        (
            ValueError("UNAVAILABLE: Timeout was reached"),
            UnreachableError,
            "The same command again",
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB"),
            CheckpointError,
            "be read: RESOURCE",
        ),
        (PermissionError(13, "Permission denied"), CheckpointError, "could not be read"),
        (
            ValueError("DATA_LOSS: Error decoding"),
            CheckpointError,
            "Other steps there: 1. .* delete",
        ),
        (Exception("zarr: no chunk"), CheckpointError, "truncated or damaged"),
    ],
)
def test_what_is_not_damaged_is_not_to_be_deleted(
    error: Exception,
    kind: type[M6RecError],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(tmp_path)
    location = locate(tmp_path)
    manifest = read_manifest(location)

    def restore(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with pytest.raises(kind, match=told) as caught:
        restore_item(location, manifest, PROMPTS, TREE)
    is_damage = "truncated or damaged" in str(caught.value)
    assert is_damage == ("delete the folder" in str(caught.value))
    assert is_damage == ("DATA_LOSS" in str(error) or "zarr" in str(error))


@pytest.mark.parametrize(
    ("text", "kind"),
    [("UNAVAILABLE: 503", UnreachableError), ("No space left on device", CheckpointError)],
)
def test_a_bucket_that_does_not_answer_may_do_so_later(
    text: str, kind: type[M6RecError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)

    def save(*_: Any, **__: Any) -> None:
        raise ValueError("Error writing local file") from ValueError(text)

    with monkeypatch.context() as patched:
        patched.setattr(ocp.CheckpointManager, "save", save)
        with pytest.raises(kind, match=f"step 3 could not be saved to {tmp_path}"):
            store.save(3, {"prompts": TREE}, data={}, run=RunDescription())
    store.close()

"""The state of a tf.data iterator as bytes, and back.

tf.data writes iterator states only through `tf.train.Checkpoint`, that is to files. The files go
to a temporary folder and travel on as one zip archive, so that the caller decides where states
live (they are committed together with the step they belong to).
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from m6rec_jax.errors import CheckpointError

_NAME = "iterator"
_SETTINGS = "settings.json"


def save_iterator(iterator: Iterator[Any], settings: Mapping[str, Any]) -> bytes:
    """State of a tf.data iterator at the position of its last consumed element.

    Args:
      iterator: of a `tf.data.Dataset`.
      settings: JSON values that describe the pipeline; `read_settings` gives them back.

    Raises:
      CheckpointError: a step of the pipeline keeps state that cannot be saved (a stateful
        function, a Python generator).
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            tf.train.Checkpoint(iterator=iterator).write(str(Path(folder) / _NAME))
        except tf.errors.OpError as error:
            raise CheckpointError(
                f"the data pipeline cannot be saved, so a run could not resume: {error.message}. "
                "Use tf.numpy_function(..., stateful=False) and no from_generator"
            ) from error
        contents = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    contents[_SETTINGS] = json.dumps(settings, sort_keys=True).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compresslevel=1) as archive:
        for name, content in contents.items():
            # ZipInfo's fixed date keeps equal states equal bytes.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def read_settings(state: bytes, name: str) -> dict[str, Any]:
    """The settings that were saved with a state.

    Args:
      state: from `save_iterator`.
      name: what to call the state in errors.

    Raises:
      CheckpointError: the bytes are damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(state)) as archive:
            settings: dict[str, Any] = json.loads(archive.read(_SETTINGS))
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"the data state of {name} is damaged: {error}") from error
    return settings


def restore_iterator(iterator: Iterator[Any], state: bytes, name: str) -> None:
    """Moves an iterator of an equal pipeline to a saved position.

    Args:
      iterator: of the pipeline that the state was saved from, at any position.
      state: from `save_iterator`.
      name: what to call the state in errors.

    Raises:
      CheckpointError: the bytes are damaged, or the pipeline is another one.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(state)) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, OSError) as error:
            raise CheckpointError(f"the data state of {name} is damaged: {error}") from error
        try:
            checkpoint = tf.train.Checkpoint(iterator=iterator)
            checkpoint.read(str(Path(folder) / _NAME)).assert_consumed()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"the data state of {name} does not fit the present pipeline ({first_line}). It "
                "was saved by other preprocessors; start a new MODEL_DIR or restore that code"
            ) from error

"""A run is read and resumed with its own vocabulary, the copy in RUN/inference.

No other fits it, and the one beside the prepared data may have been trained anew since.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from m6rec_jax.checkpoints.checkpoint import CHECKPOINTS_FOLDER, list_steps
from m6rec_jax.engine.model_folder import ASSETS_FOLDER, VOCABULARY_FILE, assets_of
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.pipeline.locations import OWN_VOCABULARY_VARIABLE

P = ParamSpec("P")
R = TypeVar("R")


def with_own_vocabulary(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: tasks are read with the vocabulary of the run that is the argument `model_dir`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_vocabulary(signature.bind(*args, **kwargs).arguments["model_dir"]):
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def own_vocabulary(model_dir: str | Path) -> Iterator[None]:
    """Within it tasks are read with the vocabulary of a run that has a checkpoint, or of a packed
    file."""
    folder = Path(model_dir)
    has_model = folder.is_file() or (
        not in_bucket(model_dir) and list_steps(folder / CHECKPOINTS_FOLDER)
    )
    path = assets_of(folder) / ASSETS_FOLDER / VOCABULARY_FILE
    before = os.environ.get(OWN_VOCABULARY_VARIABLE)
    if has_model and path.is_file():
        os.environ[OWN_VOCABULARY_VARIABLE] = str(path.absolute())
    try:
        yield
    finally:
        os.environ.pop(OWN_VOCABULARY_VARIABLE, None)
        if before is not None:
            os.environ[OWN_VOCABULARY_VARIABLE] = before

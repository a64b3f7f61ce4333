"""Mends two gaps of t5x's checkpoint manager, for which t5x has no setting:

- where the position in the data is part of checkpoints, it takes that of
  INITIAL_CHECKPOINT_PATH, too, which is of other data;
- what `MultiOptimizer` leaves alone has no state (None), which is saved but never found again, so
  a run with a frozen backbone could not go on.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x import checkpoints, state_utils

from m6rec_jax.checkpoints.trees import nested

State = Mapping[str, Any]


def mended(restore: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpoint manager's `restore` without the two gaps.

    Args:
      restore: of `t5x.checkpoints.OrbaxCheckpointManagerInterface`.
    """

    @functools.wraps(restore)
    def restore_state(
        self: Any,
        step: int | None = None,
        path: str | None = None,
        fallback_state: State | None = None,
        state_transformation_fns: Sequence[Callable[..., State]] = (),
        **options: Any,
    ) -> Any:
        state = state_utils.flatten_state_dict(self._train_state.state_dict())
        nothing = {name: None for name, leaf in state.items() if leaf is None}
        if nothing:
            drop = functools.partial(_without, names=nothing)
            state_transformation_fns = (*state_transformation_fns, drop)
            fallback_state = state_utils.merge_state(fallback_state or {}, nested(nothing))
        keeps_position = self._should_write_dataset_ckpt
        self._should_write_dataset_ckpt = keeps_position and _is_own(self.directory, path)
        try:
            return restore(
                self,
                step=step,
                path=path,
                fallback_state=fallback_state,
                state_transformation_fns=state_transformation_fns,
                **options,
            )
        finally:
            self._should_write_dataset_ckpt = keeps_position

    return restore_state


def _without(checkpoint: State, state: State, *, names: Mapping[str, None]) -> State:
    """A checkpoint (as t5x read it, without values) without some of its names."""
    del state
    found = state_utils.flatten_state_dict(checkpoint)
    return nested({name: leaf for name, leaf in found.items() if name not in names})


def _is_own(directory: str | os.PathLike[str], path: str | None) -> bool:
    """Whether a checkpoint is of the run whose folder this is."""
    if path is None:
        return True
    folder = os.path.dirname(os.path.normpath(path))
    return os.path.abspath(folder) == os.path.abspath(directory)


_MANAGER = checkpoints.OrbaxCheckpointManagerInterface
_RESTORE = _MANAGER.restore


def mend_checkpoint_manager() -> None:
    """Puts the mended `restore` in t5x's place, once."""
    if _MANAGER.restore is _RESTORE:
        _MANAGER.restore = mended(_RESTORE)

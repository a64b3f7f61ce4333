"""What a run under t5x takes from checkpoints, its own and INITIAL_CHECKPOINT_PATH.

    utils.RestoreCheckpointConfig.state_transformation_fns = [@take_over]
    utils.RestoreCheckpointConfig.fallback_to_scratch = True
    take_over.options = %INITIAL_OPTIONS

A new task's prompts are not in the checkpoint, so t5x must be allowed to make up what is missing.
It then makes up anything, with a warning, so `take_over` checks the backbone. What `m6rec train`
computes from values (options from words, one task's prompts for every task of a bank) is refused:
t5x reads values only later, and would leave it out without a word.

`mend_checkpoint_manager` closes two gaps of t5x's checkpoint manager that have no setting:

- where the position in the data is part of checkpoints, it takes that of
  INITIAL_CHECKPOINT_PATH, too, which is of other data;
- what `MultiOptimizer` leaves alone has no state (None), which is saved but never found again, so
  a run with a frozen backbone could not resume.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
from t5x import checkpoints, state_utils

from m6rec_jax.checkpoints.trees import nested
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model.prompts import task_axis
from m6rec_jax.t5x_bridge.variables import PROMPTS
from m6rec_jax.training.initialization import INITIAL_PROMPTS

State = Mapping[str, Any]


@gin.configurable
def take_over(
    checkpoint: State,
    state: State,
    *,
    is_resuming: bool = False,
    prompts: str = "none",
    options: Sequence[str] | Mapping[str, Sequence[str]] = (),
) -> State:
    """The part of a checkpoint that a new run starts from; the rest is made anew.

    Args:
      checkpoint: as t5x read it, without values.
      state: of the new run.
      is_resuming: the run resumes from its own checkpoint: everything is taken.
      prompts: 'none', 'all', or 'matching' (those of equal name and shape; none may be there for a
        single task where the run has a bank of several).
      options: the words that options would start from in `m6rec train`; there must be none.

    Raises:
      CheckpointError: a tensor of the backbone (or, for 'all', of the prompts) is missing or has
        another shape.
      ConfigError: unknown choice of prompts, words for options, or 'matching' prompts of one task
        for a bank of several.
    """
    if prompts not in INITIAL_PROMPTS:
        raise ConfigError(
            f"take_over.prompts = {prompts!r} is not one of {', '.join(INITIAL_PROMPTS)}"
        )
    if is_resuming:
        return checkpoint
    if options:
        raise ConfigError(
            f"INITIAL_OPTIONS = {options!r}: under t5x options do not start from words. Set "
            "INITIAL_OPTIONS = () in the run file, or take the prompts of a run that m6rec train "
            "began (m6rec convert, INITIAL_PROMPTS = 'all')"
        )
    found = state_utils.flatten_state_dict(checkpoint["target"])
    taken = {}
    for name, wanted in state_utils.flatten_state_dict(state["target"]).items():
        shape = _shape(found[name]) if name in found else None
        fits = name in found and shape in (None, tuple(wanted.shape))
        of_prompts = name.startswith(f"{PROMPTS}/")
        if fits and (not of_prompts or prompts != "none"):
            taken[name] = found[name]
        elif prompts == "matching" and shape and _is_of_one_task(name, shape, wanted.shape):
            raise ConfigError(
                f"INITIAL_PROMPTS = 'matching': INITIAL_CHECKPOINT_PATH has '{name}' of one task, "
                f"{list(shape)}, for a bank of several, {list(wanted.shape)}; under t5x it is not "
                "spread over them. Set INITIAL_PROMPTS = 'none', or take the prompts of a run that "
                "m6rec train began (m6rec convert, INITIAL_PROMPTS = 'all')"
            )
        elif not of_prompts or prompts == "all":
            has = "no such tensor" if name not in found else f"it as {list(shape or ())}"
            raise CheckpointError(
                f"the model has '{name}' as {list(wanted.shape)}, but INITIAL_CHECKPOINT_PATH has "
                f"{has}; is it of another model, or of t5x's own T5 (m6rec convert)?"
            )
    return {"target": nested(taken), "state": {"step": checkpoint["state"]["step"]}}


def _is_of_one_task(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor is that of a bank but for the number of tasks, which is 1."""
    if not name.startswith(f"{PROMPTS}/"):
        return False
    axis = task_axis(name.removeprefix(f"{PROMPTS}/"))
    return shape == (*wanted[:axis], 1, *wanted[axis + 1 :])


def _shape(leaf: Any) -> tuple[int, ...] | None:
    """Of a tensor in the checkpoint; None where t5x does not say."""
    if isinstance(leaf, Mapping):
        return tuple(leaf["metadata"]["shape"])
    shape = getattr(leaf, "shape", None)
    return None if shape is None else tuple(shape)


def mended(restore: Callable[..., Any]) -> Callable[..., Any]:
    """`restore` of `t5x.checkpoints.OrbaxCheckpointManagerInterface` without the two gaps."""

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

"""What a new run takes over, and what it must not make up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from m6rec_jax.errors import CheckpointError, ConfigError
from tests.t5x_bridge.needs_t5x import REASON

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)

from m6rec_jax.t5x_bridge.restoring import mended, take_over


def state(**shapes: tuple[int, ...]) -> dict[str, Any]:
    target: dict[str, Any] = {"encoder": {"kernel": np.zeros((2, 3))}, "prompts": {"bank": {}}}
    target["prompts"]["bank"] = {name: np.zeros(shape) for name, shape in shapes.items()}
    return {"target": target, "state": {"step": 7, "param_states": {"encoder": 1}}}


def on_disk(shape: tuple[int, ...]) -> dict[str, Any]:
    """As t5x's own format names an array."""
    return {"driver": "zarr", "kvstore": {}, "metadata": {"shape": list(shape)}}


def test_prompts_are_made_anew_unless_asked_for() -> None:
    checkpoint, new = state(soft=(4, 2), head=(3,)), state(soft=(4, 2), head=(5,))
    taken = take_over(checkpoint, new)
    assert set(taken["target"]) == {"encoder"}
    assert taken["state"] == {"step": 7}  # a fresh optimizer
    matching = take_over(checkpoint, new, prompts="matching")
    assert set(matching["target"]["prompts"]["bank"]) == {"soft"}
    with pytest.raises(CheckpointError, match=r"'prompts/bank/head' as \[5\]"):
        take_over(checkpoint, new, prompts="all")
    with pytest.raises(ConfigError, match="prompts = 'some'"):
        take_over(checkpoint, new, prompts="some")


def test_prompts_of_one_task_are_not_spread_over_a_bank() -> None:
    """Only `m6rec train` does that; it must not be left out without a word."""
    checkpoint, new = state(soft=(1, 4, 2)), state(soft=(3, 4, 2))
    with pytest.raises(ConfigError, match=r"bank/soft' of one task, \[1, 4, 2\], .* \[3, 4, 2\]"):
        take_over(checkpoint, new, prompts="matching")
    assert set(take_over(checkpoint, new)["target"]) == {"encoder"}
    # More prompts, ranks or classes are another tensor, and made anew.
    other = take_over(state(soft=(1, 1, 2)), state(soft=(1, 4, 2)), prompts="matching")
    assert set(other["target"]) == {"encoder"}


def test_options_do_not_start_from_words() -> None:
    """Only `m6rec train` does that; it must not be left out without a word."""
    checkpoint, new = state(soft=(4, 2)), state(soft=(4, 2))
    for words in (("took", "loved"), {"shop_ctr": ("took", "loved")}):
        with pytest.raises(ConfigError, match=r"INITIAL_OPTIONS = .*'took', 'loved'.*= \(\)"):
            take_over(checkpoint, new, options=words)
        # Begun with an earlier version, or with values that m6rec train had made.
        assert take_over(checkpoint, new, is_resuming=True, options=words) is checkpoint
    assert take_over(checkpoint, new, options=())


def test_a_run_that_goes_on_takes_everything() -> None:
    checkpoint = state(soft=(4, 2))
    assert take_over(checkpoint, state(), is_resuming=True) is checkpoint


def test_a_backbone_that_does_not_fit_is_an_error() -> None:
    checkpoint = state()
    checkpoint["target"]["encoder"]["kernel"] = on_disk((2, 4))
    with pytest.raises(CheckpointError, match=r"'encoder/kernel' as \[2, 3\], .* as \[2, 4\]"):
        take_over(checkpoint, state())
    del checkpoint["target"]["encoder"]
    with pytest.raises(CheckpointError, match="no such tensor"):
        take_over(checkpoint, state())


def manager(folder: Path, param_states: dict[str, Any]) -> Any:
    tree = {"target": {"a": 1, "b": 2}, "state": {"step": 3, "param_states": param_states}}
    return SimpleNamespace(
        directory=folder,
        _should_write_dataset_ckpt=True,
        _train_state=SimpleNamespace(state_dict=lambda: tree),
    )


def test_the_position_in_the_data_is_of_the_own_run(tmp_path: Path) -> None:
    seen = []

    def restore(self: Any, **options: Any) -> None:
        seen.append(self._should_write_dataset_ckpt)

    own = manager(tmp_path / "mine", {})
    mended(restore)(own, path=str(tmp_path / "other" / "checkpoint_4"))
    mended(restore)(own, path=str(tmp_path / "mine" / "checkpoint_4"))
    mended(restore)(own, step=4)
    assert seen == [False, True, True]
    assert own._should_write_dataset_ckpt


def test_what_has_no_optimizer_state_is_not_looked_for(tmp_path: Path) -> None:
    """t5x saves a None that it cannot find again."""
    got: dict[str, Any] = {}

    def restore(self: Any, **options: Any) -> None:
        got.update(options)

    mended(restore)(manager(tmp_path, {"a": None, "b": {"v": 5}}), step=4)
    checkpoint = {"target": {"a": 7}, "state": {"param_states": {"a": "entry", "b": {"v": 8}}}}
    for function in got["state_transformation_fns"]:
        checkpoint = function(checkpoint, {})
    assert checkpoint == {"target": {"a": 7}, "state": {"param_states": {"b": {"v": 8}}}}
    assert got["fallback_state"] == {"state": {"param_states": {"a": None}}}

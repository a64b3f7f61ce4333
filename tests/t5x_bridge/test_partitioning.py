"""t5x's partitioner splits the bridge's training step as its rules say, over however many hosts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from m6rec_jax.text.vocabulary import Vocabulary
from tests.several_devices import free_port, result, start
from tests.t5x_bridge.needs_t5x import REASON

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)

SCRIPT = Path(__file__).with_name("partitioned_step.py")
# Kernels of attention: [layers, embed, heads, kv]; of the feed-forward part: [layers, embed, mlp].
SPLIT = {
    "token_embedder/embedding": ["model", None],
    "encoder/layers/mlp/wi_0/kernel": [None, None, "model"],
    "encoder/layers/mlp/wo/kernel": [None, "model", None],
    "decoder/layers/cross_attention/query/kernel": [None, None, "model", None],
    "decoder/layers/cross_attention/out/kernel": [None, "model", None, None],
    "decoder/layers/mlp_norm/scale": [None, None],
}


@pytest.fixture(scope="module")
def one_process(shop_vocabulary: Vocabulary) -> dict[str, Any]:
    step = start(SCRIPT, "cpu", "1", "0", "0", devices=8, **environment(shop_vocabulary))
    return result(step)


def environment(vocabulary: Vocabulary) -> dict[str, str]:
    return {"M6REC_VOCABULARY": str(vocabulary.model_file), "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def test_what_is_split(one_process: dict[str, Any]) -> None:
    assert one_process["mesh"] == {"data": 4, "model": 2}
    params = one_process["params"]
    assert {name: params[name] for name in SPLIT} == SPLIT
    prompts = {name for name in params if name.startswith("prompts/")}
    assert prompts
    assert all(not any(params[name]) for name in prompts)
    assert all(axes in (None, ["data"]) for axes in one_process["batch"].values())
    assert one_process["batch"]["encoder_input_tokens"] == ["data"]
    assert one_process["after"] == params
    # Only what trains has optimizer state, and its gradients are summed over the rows' devices.
    assert {name.rpartition("/")[0] for name in one_process["states"]} == prompts
    assert one_process["sums"]


def test_two_processes_split_it_alike(
    one_process: dict[str, Any], shop_vocabulary: Vocabulary
) -> None:
    port, more = str(free_port()), environment(shop_vocabulary)
    both = [start(SCRIPT, "cpu", "2", str(i), port, devices=4, **more) for i in (0, 1)]
    assert [result(one) for one in both] == [one_process] * 2


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_slice_of_four_hosts_splits_it_alike(
    one_process: dict[str, Any], shop_vocabulary: Vocabulary
) -> None:
    """XLA's TPU compiler takes the step for v5e-16."""
    step = start(SCRIPT, "v5e:4x4", devices=1, **environment(shop_vocabulary))
    assert result(step) == one_process | {"mesh": {"data": 8, "model": 2}}

"""The same step on one device and on eight (virtual CPU devices, in a process of their own)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.several_devices import free_port, result, start

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def eight() -> dict[str, Any]:
    return result(start(HERE / "eight_devices.py", devices=8))


def test_losses_and_metrics_equal_those_of_one_device(eight: dict[str, Any]) -> None:
    """Of all objectives and prompts; `tests/training/test_meshes.py` has the other rule sets."""
    one, many = eight["one"], eight["many"]
    assert many["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert one["losses"][0] > one["losses"][-1]
    assert many["metrics"].keys() == one["metrics"].keys()
    for name, sums in one["metrics"].items():
        assert many["metrics"][name] == pytest.approx(sums, rel=1e-4), name


def test_parameters_and_batches_are_split_as_the_rules_say(eight: dict[str, Any]) -> None:
    # The kernel is [layers 2, embed 16, mlp 32], the tokens [batch 16, source 12].
    assert eight["shards"] == {
        "data 8": [[2, 16, 32], [2, 12]],
        "fsdp 8": [[2, 2, 32], [2, 12]],
        "fsdp 2 x tensor 2 x data 2": [[2, 8, 16], [4, 12]],
    }


def test_an_uneven_dimension_is_replicated_with_a_warning(eight: dict[str, Any]) -> None:
    uneven = eight["uneven"]
    name = "params/encoder/layers/self_attention/query/kernel"
    message = next(m for m in uneven["messages"] if name in m)
    assert "axis 'heads' of 2 is not divisible by the 4 parts of mesh axis 'tensor'" in message
    assert "replicated instead" in message
    # One message an axis, with all that it concerns.
    assert "params/decoder/layers/cross_attention/out/kernel [2, 2, 8, 16]" in message
    assert sum("axis 'heads' of 2" in m for m in uneven["messages"]) == 1
    assert uneven["query"] == [None, "fsdp", None, None]
    assert uneven["mlp"] == [None, "fsdp", "tensor"]
    assert uneven["loss"] == pytest.approx(eight["one"]["losses"][0], rel=1e-5)


def test_errors_name_the_sizes(eight: dict[str, Any]) -> None:
    errors = eight["errors"]
    assert "data=3, fsdp=1, tensor=1" in errors["product"]
    assert "multiply to 3, but there are 8 devices" in errors["product"]
    assert "multiply to 3, but there are 8 devices" in errors["indivisible"]
    assert "data and fsdp must be at least 1; only one axis may be -1" in errors["two_open"]
    assert "fsdp must be at least 1" in errors["zero"]
    assert "'tokens' has 12 rows on this process" in errors["rows"]
    assert "names mesh axis 'model'; the mesh has 'data', 'fsdp', 'tensor'" in errors["rule"]
    assert "sharding rule 'embd' -> 'fsdp' splits nothing" in errors["logical"]
    assert "(did you mean 'embed'?)" in errors["logical"]


def test_two_processes_put_their_rows_together() -> None:
    port, script = str(free_port()), HERE / "two_processes.py"
    processes = [start(script, str(index), port, devices=4) for index in range(2)]
    first, second = map(result, processes)
    rows = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    total = float((rows * np.arange(16.0)[:, None]).sum())
    assert first["apart"] == [0, 2, [16, 3], total]
    assert second["apart"] == [1, 2, [16, 3], total]
    assert first["together"] == second["together"] == [0, 1, [16, 3], total]
    for found in (first, second):
        assert found["shared"] == [[16, 3], total]
        assert found["sums"] == [1, 20]
        assert "two processes share only some of their rows" in found["mixed"]

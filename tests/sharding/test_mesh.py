"""Meshes over devices of several hosts and slices that are not there."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.sharding import make_mesh, mesh


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What `make_mesh` and JAX's mesh look at; XLA sets `slice_index` per host on GPUs, too."""

    id: int
    platform: str
    device_kind: str
    process_index: int
    slice_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def gpus(hosts: int, per_host: int = 4) -> list[Any]:
    return [
        FakeDevice(i, "gpu", "NVIDIA H100", i // per_host, i // per_host)
        for i in range(hosts * per_host)
    ]


def tpus(slices: int) -> list[Any]:
    """v5e slices of 2x2, a host each."""
    return [
        FakeDevice(4 * slice_ + i, "tpu", "TPU v5 lite", slice_, slice_, (i % 2, i // 2, 0))
        for slice_ in range(slices)
        for i in range(4)
    ]


@pytest.fixture(autouse=True)
def plain_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX's own mesh takes none but real devices: their array and the sizes are looked at."""

    def made(devices: np.ndarray, names: tuple[str, ...], axis_types: Any) -> Any:
        return devices

    monkeypatch.setattr(mesh, "Mesh", made)


def ids(devices: Any) -> list[Any]:
    return np.vectorize(lambda device: device.id)(devices).tolist()


def test_parameters_are_split_over_the_gpus_of_all_hosts() -> None:
    found: Any = make_mesh(data=1, fsdp=-1, devices=gpus(hosts=2))
    assert found.shape == (1, 8, 1)
    assert ids(found)[0] == [[i] for i in range(8)]
    found = make_mesh(data=1, fsdp=-1, largest_fsdp=4, devices=gpus(hosts=4))
    assert found.shape == (4, 4, 1)
    # A copy of the parameters stays within a host where it can.
    assert [{device.process_index for device in copy.flat} for copy in found] == [
        {0},
        {1},
        {2},
        {3},
    ]


def test_tpu_slices_lie_along_data() -> None:
    found: Any = make_mesh(data=1, fsdp=-1, devices=tpus(slices=2))
    assert found.shape == (2, 4, 1)
    assert [{device.slice_index for device in copy.flat} for copy in found] == [{0}, {1}]
    with pytest.raises(ConfigError, match="4 devices of each of 2 slices"):
        make_mesh(data=1, fsdp=8, devices=tpus(slices=2))

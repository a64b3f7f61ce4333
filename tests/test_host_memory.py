"""When freed memory is kept; tests/benchmarks/test_freed_memory.py has that it really is."""

from pathlib import Path

import pytest

from m6rec_jax import host_memory
from m6rec_jax.host_memory import keep_freed_memory


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the allocator is told, without telling it, on a machine with glibc."""
    settings: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(name: int, value: int) -> int:
            settings.append((name, value))
            return 1

    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: Library)
    monkeypatch.setattr(host_memory, "_is_glibc", lambda: True)
    for name in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    return settings


def test_no_trimming_no_maps_of_their_own_one_arena(told, tmp_path: Path) -> None:
    assert keep_freed_memory(tmp_path)
    assert sorted(told) == [(-8, 1), (-4, 0), (-1, -1)]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_settings_of_the_environment_stay(told, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    assert not keep_freed_memory(tmp_path)
    assert not told


@pytest.mark.parametrize("device", ["nvidia0", "accel0", "vfio/7", "kfd"])
def test_nothing_changes_beside_accelerators_that_are_used(
    told, tmp_path: Path, monkeypatch, device: str
) -> None:
    (tmp_path / device).parent.mkdir(exist_ok=True)
    (tmp_path / device).touch()
    assert not keep_freed_memory(tmp_path)
    assert not told
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert keep_freed_memory(tmp_path)


def test_control_devices_are_no_accelerators(told, tmp_path: Path) -> None:
    (tmp_path / "vfio").mkdir()
    for name in ("nvidiactl", "vfio/vfio"):
        (tmp_path / name).touch()
    assert keep_freed_memory(tmp_path)


def test_without_glibc_nothing_changes(told, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(host_memory, "_is_glibc", lambda: False)
    assert not keep_freed_memory(tmp_path)
    assert not told

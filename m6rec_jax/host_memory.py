"""The C library's allocator: what a step frees is kept for the next one."""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# Device files of GPUs and TPUs.
_ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")


def keep_freed_memory(devices: Path = Path("/dev")) -> bool:
    """Has glibc keep freed memory in the process, where XLA is to compute on the CPU.

    There XLA allocates the buffers of a program whenever it runs. As glibc comes, large ones go
    back to the system as soon as they are freed, and every page of theirs is mapped and zeroed anew
    in the next step, which takes a good part of its time (`benchmarks/freed_memory.py`). One arena,
    because the others, which threads get for themselves, cannot hold large blocks; so it has to be
    called before there are threads. Beside accelerators, where threads that read data need arenas
    more, everything stays as it is.

    Args:
      devices: folder of device files.

    Returns:
      Whether it is so from now on: not without glibc, beside an accelerator, or where the
      environment has settings of its own (`MALLOC_...`, `GLIBC_TUNABLES`).
    """
    if _is_set(os.environ) or _has_accelerator(devices) or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return min(mallopt(name, value) for name, value in settings) == 1


def _is_set(names: Iterable[str]) -> bool:
    return any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in names)


def _has_accelerator(devices: Path) -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(next(devices.glob(pattern), None) for pattern in _ACCELERATORS)


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, OSError, ValueError):  # the name is GNU's own
        return False

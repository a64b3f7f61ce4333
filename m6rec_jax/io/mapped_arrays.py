"""Arrays in files that processes share by way of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def mapped_array(path: Path, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a new file, to be written to by way of memory."""
    array = np.lib.format.open_memmap(path, "w+", kind, shape)
    # Where there is no room left later, the system would end the process.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def open_arrays(folder: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Maps `NAME.npy` of a folder, to be read."""
    # Plain arrays: those of numpy's class for mapped files are slow to cut.
    return [np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names]

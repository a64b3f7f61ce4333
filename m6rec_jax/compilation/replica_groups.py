"""Who takes part in a collective: XLA's four ways of writing groups of devices."""

from __future__ import annotations

import math
import re

import numpy as np

_GROUPS = re.compile(
    r"replica_groups=("
    r"\{\{[\d,{}]*\}\}"  # {{0,1},{2,3}}
    r"|\{\}"  # everyone
    r"|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"  # [2,2]<=[2,2]T(1,0)
    r"|mesh\[[^\]]*\](?:,?\s*device_ids=\([^)]*\))?\s*\{[^}]*\}"  # mesh['a'=2,'b'=2] {'a'}
    r")"
)
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def replica_groups(attributes: str, num_devices: int) -> np.ndarray:
    """The groups of a collective.

    Args:
      attributes: of the instruction.
      num_devices: of the program.

    Returns:
      int64 `[groups, devices of a group]`, numbers of devices in the order of the mesh. Everyone is
      one group where the text does not tell. Pairs of a permutation are groups of two.
    """
    pairs = _PAIRS.search(attributes)
    if pairs:
        numbers = list(map(int, re.findall(r"\d+", pairs.group(1))))
        return np.array(numbers, np.int64).reshape(-1, 2)
    found = _GROUPS.search(attributes)
    everyone = np.arange(num_devices)[None]
    if found is None or found.group(1) == "{}":
        return everyone
    text = found.group(1)
    if text.startswith("{"):
        groups = re.findall(r"\{([\d,]+)\}", text)
        return np.array([list(map(int, group.split(","))) for group in groups], np.int64)
    if text.startswith("["):
        return _from_iota(text)
    return _from_mesh(text)


def _from_iota(text: str) -> np.ndarray:
    shape, source, *order = (
        tuple(map(int, part.split(","))) for part in re.findall(r"[\[(]([\d,]+)[\])]", text)
    )
    devices = np.arange(math.prod(source)).reshape(source)
    if order:
        devices = devices.transpose(order[0])
    return devices.reshape(shape)


def _from_mesh(text: str) -> np.ndarray:
    axes = re.findall(r"'([^']+)'=(\d+)", text)
    names = [name for name, _ in axes]
    sizes = [int(size) for _, size in axes]
    chosen = [
        names.index(name)
        for name in re.findall(r"'([^']+)'", text[text.rindex("{") :])
        if name in names
    ]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    others = [axis for axis in range(len(names)) if axis not in chosen]
    count = math.prod(sizes[axis] for axis in chosen)
    return devices.transpose(*others, *chosen).reshape(-1, count)

"""What devices send each other: every collective of a program, its size, its place, and whether the
device computes meanwhile.

A TPU overlaps communication with computation in two ways, which both count as asynchronous here if
something is computed between start and end:

- pairs `KIND-start` and `KIND-done` (or `async-start` of a computation);
- "async collective fusions": the collective stands in a fusion that starts it (its result goes to
  the custom call `AsyncCollectiveStart`), again in every matrix product that carries on with it,
  and in one that ends it, always with the same channel.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m6rec_jax.compilation.hlo_execution import Execution
from m6rec_jax.compilation.hlo_text import Instruction

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",
)
# What `model.stack.LayerStack.scan` is called in JAX's paths of operations.
LAYER_LOOP = "layers.scan/while"
LAYERS, OTHER_LOOP, OUTSIDE = "layer loop", "other loop", "outside"

_STARTS, _ENDS = "AsyncCollectiveStart", "AsyncCollectiveDone"
_COMPUTES = ("fusion", "dot", "convolution", "custom-call", "while", "call", "reduce", "sort")


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of `KINDS`.
      name: of the instruction.
      op_name: JAX's path.
      payload_bytes: of the whole array (gathered, or before it is scattered), per execution.
      group_size: devices that take part.
      times: executions in one run of the program.
      place: 'layer loop', 'other loop' or 'outside'.
      asynchronous: something is computed between its start and its end.
      between_slices: it crosses the network between slices.
    """

    kind: str
    name: str
    op_name: str
    payload_bytes: int
    group_size: int
    times: int
    place: str
    asynchronous: bool
    between_slices: bool = False

    @property
    def moved_bytes(self) -> int:
        """What a device sends in all executions, by the usual ring algorithms."""
        share = (self.group_size - 1) / self.group_size if self.group_size else 0.0
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "send": 1.0}
        return round(self.payload_bytes * factor.get(self.kind, share) * self.times)


def collectives(
    executed: Sequence[Execution], *, num_devices: int, num_slices: int = 1
) -> list[Collective]:
    """All collectives of a program.

    Args:
      executed: everything that runs, in order, of `hlo_execution.executions`.
      num_devices: of the program.
      num_slices: into which the devices fall, in order and equally many each.
    """
    work = np.cumsum([_computes(one) for one in executed])
    ends = _ends(executed)
    found: list[Collective] = []
    fused: dict[str, list[int]] = defaultdict(list)

    def add(index: int, asynchronous: bool) -> None:
        one = executed[index]
        groups = replica_groups(one.instruction.attributes, num_devices)
        slices = groups // max(1, num_devices // num_slices)
        found.append(
            Collective(
                kind=_kind(one),
                name=one.instruction.name,
                op_name=_op_name(one),
                payload_bytes=_payload(one),
                group_size=groups.shape[1],
                times=one.times,
                place=_place(one),
                asynchronous=asynchronous,
                between_slices=bool((slices != slices[:, :1]).any()),
            )
        )

    for index, one in enumerate(executed):
        if not _kind(one):
            continue
        channel = one.instruction.attribute("channel_id")
        if one.is_fused and channel is not None:
            fused[channel].append(index)
        elif one.instruction.opcode.endswith("-start") or one.callers:
            end = ends.get((one.computation.name, one.instruction.name))
            # An end elsewhere: the loop goes round before it is awaited.
            add(index, end is None or bool(work[end - 1] > work[index]))
        else:
            add(index, False)
    for indices in fused.values():
        users = {index: _user_target(executed[index]) for index in indices}
        start = next((index for index in indices if users[index] == _STARTS), indices[0])
        end = next((index for index in indices if users[index] == _ENDS), None)
        carried_on = any(users[index] not in (_STARTS, _ENDS) for index in indices)
        between = end is not None and bool(work[end - 1] - work[start] > 1)
        add(start, users[start] == _STARTS and (carried_on or between))
    return found


def _kind(execution: Execution) -> str:
    """Of the collective that begins here; '' for everything else."""
    opcode = execution.instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return ""
    if opcode == "all-reduce" and execution.is_fused:
        # A TPU's reduce-scatter: a fusion of an all-reduce and the slice that the device keeps.
        users = _users(execution)
        if users and all(user.opcode in ("dynamic-slice", "fusion") for user in users):
            return "reduce-scatter"
    return opcode


def _users(execution: Execution) -> list[Instruction]:
    name = execution.instruction.name
    return [one for one in execution.computation.instructions.values() if name in one.operands]


def _user_target(execution: Execution) -> str:
    """The custom call that a fused collective's result goes to; '' where none."""
    for user in _users(execution):
        if user.opcode == "custom-call":
            return user.custom_call_target
    return ""


def _payload(execution: Execution) -> int:
    one, kind = execution.instruction, _kind(execution)
    results = [buffer.num_bytes for buffer in one.buffers]
    operands = [
        buffer.num_bytes
        for operand in execution.computation.operands(one)
        for buffer in operand.buffers
    ]
    if one.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, context), of several arrays where collectives were combined: the
        # larger of the two is the whole.
        count = len(one.operands)
        return max(sum(operands), sum(results[count : 2 * count]))
    if kind == "reduce-scatter" and operands:
        return sum(operands)
    return sum(results)


def _op_name(execution: Execution) -> str:
    own = execution.instruction.op_name
    return own or next((one.op_name for one in reversed(execution.callers) if one.op_name), "")


def _place(execution: Execution) -> str:
    if not execution.loops:
        return OUTSIDE
    paths = [loop.op_name for loop in execution.loops]
    return LAYERS if any(LAYER_LOOP in path for path in paths) else OTHER_LOOP


def _computes(execution: Execution) -> bool:
    return execution.instruction.opcode in _COMPUTES and not execution.callers


def _ends(executed: Sequence[Execution]) -> dict[tuple[str, str], int]:
    """Where what was started is awaited: (computation, name of the start) → index."""
    ends: dict[tuple[str, str], int] = {}
    started: dict[tuple[str, str], str] = {}
    for index, one in enumerate(executed):
        instruction, where = one.instruction, one.computation.name
        for operand in instruction.operands:
            begun = started.get((where, operand), operand)
            if instruction.opcode.endswith("-done"):
                ends[where, begun] = index
            elif instruction.opcode == "async-update":
                started[where, instruction.name] = begun
    return ends


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
      one group where the text does not say. Pairs of a permutation are groups of two.
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

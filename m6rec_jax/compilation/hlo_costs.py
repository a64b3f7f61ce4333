"""What a program costs by its optimised HLO: floating point operations and bytes of main memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from m6rec_jax.compilation.hlo_execution import Execution
from m6rec_jax.compilation.hlo_text import Buffer, Computation, Instruction, Module

# Makes no traffic of its own: names, views, what is counted where it begins, and what is counted
# inside.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "domain"),
    *("while", "conditional", "call", "after-all", "add-dependency", "partition-id", "replica-id"),
    *("async-start", "async-update", "async-done", "copy-done", "slice-done", "dynamic-slice-done"),
    *("all-gather-done", "all-reduce-done", "collective-permute-done", "send-done", "recv-done"),
)
# Custom calls that only name or allocate.
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding")
_VIEWS = ("bitcast", "reshape", "transpose", "copy", "convert")


class Costs(NamedTuple):
    """Of one device: operations of matrix products and convolutions (two for a multiplication and
    an addition), and bytes read from and written to main memory.
    """

    product_flops: int
    memory_bytes: int


def costs(module: Module, executed: Iterable[Execution]) -> Costs:
    """Sums over everything that runs."""
    flops = moved = 0
    for one in executed:
        flops += one.times * product_flops(one.computation, one.instruction)
        if not one.is_fused:
            moved += one.times * memory_bytes(module, one.computation, one.instruction)
    return Costs(flops, moved)


def product_flops(computation: Computation, instruction: Instruction) -> int:
    """Operations of a `dot` or `convolution`; 0 of anything else.

    A TPU computes products as convolutions whose windows reach over the border and whose operands
    are dilated. As in XLA's own analysis only positions that hit an element count.
    """
    if instruction.opcode == "dot":
        left = _operand(computation, instruction, 0)
        named = instruction.attribute("lhs_contracting_dims") or ""
        contracted = [left.shape[int(axis)] for axis in re.findall(r"\d+", named)]
        return 2 * instruction.buffers[0].num_elements * math.prod(contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    return 0


def memory_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes that an instruction reads and writes in main memory; 0 for what lies on the chip.

    What is sliced out of an array counts as the slice, and so does what is written into one.
    """
    opcode = instruction.opcode
    if opcode in _FREE:
        return 0
    if opcode == "custom-call" and instruction.custom_call_target in _FREE_TARGETS:
        return 0
    if opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
        # (source, target, context) in any order: one of the two is read, the other written.
        sizes = [buffer for buffer in instruction.buffers if buffer.num_elements > 1]
        least = min((buffer.num_bytes for buffer in sizes), default=0)
        return least * sum(_in_memory(buffer) for buffer in sizes)
    if opcode == "dynamic-update-slice":
        update = _operand(computation, instruction, 1)
        return _size(update) + (update.num_bytes if _in_memory(instruction.buffers[0]) else 0)
    if opcode in ("dynamic-slice", "slice", "gather"):
        source = _operand(computation, instruction, 0)
        read = instruction.buffers[0].num_bytes if _in_memory(source) else 0
        return read + _sizes(instruction.buffers)
    if opcode == "fusion":
        inner = module.computations[instruction.called("calls")[0]]
        read = sum(
            _read_by_fusion(inner, index, buffer)
            for index, name in enumerate(instruction.operands)
            if name in computation.instructions
            for buffer in computation.instructions[name].buffers[:1]
            if buffer.shape
        )
        return read + _written_by_fusion(inner, instruction)
    operands = sum(_sizes(one.buffers) for one in computation.operands(instruction))
    return operands + _sizes(instruction.buffers)


def _convolution_flops(computation: Computation, instruction: Instruction) -> int:
    labels = instruction.attribute("dim_labels") or ""
    left_labels, right_labels, out_labels = re.split(r"_|->", labels)
    left, right = (_operand(computation, instruction, i) for i in (0, 1))
    out = instruction.buffers[0]
    window = _window(instruction.attribute("window") or "{}")
    valid = 1
    for axis in filter(str.isdigit, out_labels):
        valid *= _valid_positions(
            inputs=left.shape[left_labels.index(axis)],
            kernel=right.shape[right_labels.index(axis)],
            outputs=out.shape[out_labels.index(axis)],
            **window.get(int(axis), {}),
        )
    batch = out.shape[out_labels.index("b")]
    features_out = out.shape[out_labels.index("f")]
    features_in = right.shape[right_labels.index("i")]  # of one group already
    return 2 * batch * features_out * features_in * valid


def _window(text: str) -> dict[int, dict[str, int]]:
    """`{size=2x3 stride=1x2 pad=0_0x1_1 lhs_dilate=.. rhs_dilate=..}` by spatial axis."""
    fields = dict(re.findall(r"(\w+)=([\w\-]+)", text))
    count = len(fields.get("size", "").split("x")) if fields.get("size") else 0
    axes: dict[int, dict[str, int]] = {i: {} for i in range(count)}
    for field, name in (
        ("stride", "stride"),
        ("lhs_dilate", "input_dilation"),
        ("rhs_dilate", "kernel_dilation"),
    ):
        for i, value in enumerate(fields[field].split("x") if field in fields else ()):
            axes[i][name] = int(value)
    for i, value in enumerate(fields["pad"].split("x") if "pad" in fields else ()):
        axes[i]["padding"] = int(value.split("_")[0])
    return axes


def _valid_positions(
    inputs: int,
    kernel: int,
    outputs: int,
    stride: int = 1,
    padding: int = 0,
    input_dilation: int = 1,
    kernel_dilation: int = 1,
) -> int:
    """Pairs of an output and a kernel position that meet an element of the input."""
    dilated = (inputs - 1) * input_dilation + 1
    count = 0
    for position in range(kernel):
        offset = position * kernel_dilation - padding
        for output in range(outputs):
            place = output * stride + offset
            count += 0 <= place < dilated and place % input_dilation == 0
    return count


def _read_by_fusion(inner: Computation, index: int, buffer: Buffer) -> int:
    if not _in_memory(buffer):
        return 0
    parameter = inner.parameter(index)
    if parameter is None:
        return buffer.num_bytes
    read = 0
    pending = [parameter]
    while pending:
        source = pending.pop()
        for user in inner.instructions.values():
            if source.name not in user.operands:
                continue
            if user.opcode in ("dynamic-slice", "slice", "gather"):
                read += user.buffers[0].num_bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == source.name:
                continue  # written in place; what is written is counted as written
            elif user.opcode == "bitcast":
                pending.append(user)
            else:
                return buffer.num_bytes
    return min(read, buffer.num_bytes)


def _written_by_fusion(inner: Computation, fusion: Instruction) -> int:
    root = inner.root
    parts = list(inner.operands(root)) if root.opcode == "tuple" else [root]
    if len(parts) != len(fusion.buffers):
        return _sizes(fusion.buffers)
    written = 0
    for part, buffer in zip(parts, fusion.buffers, strict=True):
        while part.opcode in _VIEWS and part.operands[0] in inner.instructions:
            part = inner.instructions[part.operands[0]]
        if not _in_memory(buffer):
            continue
        if part.opcode == "dynamic-update-slice":
            written += _operand(inner, part, 1).num_bytes
        elif part.opcode != "parameter":
            written += buffer.num_bytes
    return written


def _operand(computation: Computation, instruction: Instruction, index: int) -> Buffer:
    return computation.instructions[instruction.operands[index]].buffers[0]


def _in_memory(buffer: Buffer) -> bool:
    return buffer.memory == 0


def _size(buffer: Buffer) -> int:
    return buffer.num_bytes if _in_memory(buffer) else 0


def _sizes(buffers: Iterable[Buffer]) -> int:
    return sum(_size(buffer) for buffer in buffers)

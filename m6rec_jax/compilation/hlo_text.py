"""Reads the text of an optimised HLO module: what XLA made of a program, as `as_text()` prints it.

Only what a report needs is kept: computations, their instructions, the arrays that these make, and
their attributes as text. The grammar is that of XLA's `HloModule::ToString`, of all backends;
layouts say in which memory an array lies (`S(1)`: a TPU's on-chip vector memory).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from m6rec_jax.errors import DataError

# Bits of an element; what is not here (tokens, opaque) takes no memory.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_HEAD = re.compile(r"\s*(ROOT\s+)?%?([\w.\-]+)\s+=\s+")
_COMPUTATION = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*\(.*\)\s*->\s*.*\{\s*$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=?]*)\](?:\{([^{}]*)\})?")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_OPERAND = re.compile(r"%?([\w.\-]+)\s*$")
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[()\[\]{}]')
_MEMORY = re.compile(r"S\((\d+)\)")


class Buffer(NamedTuple):
    """One array: its element type, its dimensions, and the memory space that its layout names."""

    dtype: str
    shape: tuple[int, ...]
    memory: int = 0

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Without the padding of a tiled layout."""
        return -(-self.num_elements * _bits(self.dtype) // 8)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without %.
      opcode: for instance 'dot', 'fusion', 'all-gather-start'.
      buffers: arrays of its result, a tuple's in order.
      operands: names.
      literal: what stands between the brackets of the opcode, for constants and parameters.
      attributes: the rest of the line.
      is_root: it is the computation's result.
    """

    name: str
    opcode: str
    buffers: tuple[Buffer, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """The value of `name=value`, up to the comma behind it; brackets are kept whole."""
        found = re.search(rf"(?:^|[\s,{{]){re.escape(name)}=", self.attributes)
        return None if found is None else _value(self.attributes, found.end())

    @property
    def op_name(self) -> str:
        """The path of JAX's operation, '' where the compiler made the instruction up."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def custom_call_target(self) -> str:
        """What a custom call calls, '' for any other instruction."""
        return (self.attribute("custom_call_target") or "").strip('"')

    def called(self, *names: str) -> list[str]:
        """Computations that the attributes of these names call."""
        values = (self.attribute(name) for name in names)
        return [part for value in values if value for part in re.findall(r"%?([\w.\-]+)", value)]


@dataclass(frozen=True, slots=True)
class Computation:
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.is_root)

    def parameter(self, index: int) -> Instruction | None:
        """The instruction of a parameter."""
        for one in self.instructions.values():
            if one.opcode == "parameter" and one.literal.strip() == str(index):
                return one
        return None

    def operands(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions whose results one takes."""
        for name in instruction.operands:
            if name in self.instructions:
                yield self.instructions[name]


@dataclass(frozen=True, slots=True)
class Module:
    """Computations by name, and which of them is the program."""

    computations: dict[str, Computation]
    entry: Computation


def parse_module(text: str) -> Module:
    """Reads a module, or several computations of it, one of them marked ENTRY.

    Raises:
      DataError: the text has no entry computation, or a line is not an instruction.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: dict[str, Instruction] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if current is None:
            if found := _COMPUTATION.match(line):
                current = {}
                computation = Computation(found.group(2), current)
                computations[computation.name] = computation
                if found.group(1):
                    entry = computation
        elif line.startswith("}"):
            current = None
        elif line.strip():
            instruction = _instruction(line, number)
            current[instruction.name] = instruction
    if entry is None:
        raise DataError("the HLO text has no ENTRY computation: give all of `as_text()`")
    return Module(computations, entry)


def _instruction(line: str, number: int) -> Instruction:
    head = _HEAD.match(line)
    if head is None:
        raise DataError(f"HLO text, line {number}: not an instruction: {line.strip()[:100]!r}")
    end_of_shape = _end_of_shape(line, head.end())
    opcode = _OPCODE.match(line, end_of_shape)
    if opcode is None:
        raise DataError(f"HLO text, line {number}: no operation after the shape: {line[:200]!r}")
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    return Instruction(
        name=head.group(2),
        opcode=opcode.group(1),
        buffers=_buffers(line[head.end() : end_of_shape]),
        operands=tuple(_operand_names(inside)) if opcode.group(1) not in _LITERALS else (),
        literal=inside if opcode.group(1) in _LITERALS else "",
        attributes=line[close + 1 :].lstrip(", "),
        is_root=head.group(1) is not None,
    )


_LITERALS = ("constant", "parameter", "iota")


def _end_of_shape(line: str, start: int) -> int:
    if line[start] == "(":
        return _closing(line, start) + 1
    found = _ARRAY.match(line, start)
    return found.end() if found else start


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes; brackets within quotes do not count."""
    depth = 0
    for found in _BRACKET.finditer(text, start):
        if found.group() in "([{":
            depth += 1
        elif found.group() in ")]}":
            depth -= 1
            if not depth:
                return found.start()
    return len(text)


def _value(text: str, start: int) -> str:
    if start < len(text) and text[start] in "{[(":
        return text[start : _closing(text, start) + 1]
    found = re.compile(r"[^,\s]*").match(text, start)
    return found.group() if found else ""


def _buffers(shape: str) -> tuple[Buffer, ...]:
    found = []
    for dtype, dimensions, layout in _ARRAY.findall(_COMMENT.sub("", shape)):
        sizes = tuple(int(size.lstrip("<=")) for size in dimensions.split(",") if size)
        memory = _MEMORY.search(layout)
        found.append(Buffer(dtype, sizes, int(memory.group(1)) if memory else 0))
    return tuple(found)


def _operand_names(inside: str) -> Iterator[str]:
    depth, start = 0, 0
    inside = _COMMENT.sub("", inside)
    for position, sign in enumerate(inside + ","):
        if sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and not depth:
            if found := _OPERAND.search(inside[start:position]):
                yield found.group(1)
            start = position + 1


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.search(r"\d+", dtype)
    return int(found.group()) if found else 0

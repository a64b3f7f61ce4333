"""Which instructions of an optimised module run, and how often: loop bodies as often as they do.

XLA's own cost analysis takes a loop's body once. Here a `while` is followed into its body with the
number of its trips, which the compiler notes (`known_trip_count`) or which follows from the
condition: a counter, where it begins, its step and its bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from m6rec_jax.compilation.hlo_text import Computation, Instruction, Module

# Pass a value on as it is.
_TRANSPARENT = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "slice-done")


class Loop(NamedTuple):
    """A `while` that an instruction runs in: its name, JAX's path of it, and how often the body
    runs, at most (None where the text does not say).
    """

    name: str
    op_name: str
    trips: int | None


class Execution(NamedTuple):
    """One place in the program.

    Attributes:
      instruction, computation: what runs, and where it stands.
      times: how often, on every device.
      loops: around it, outermost first.
      callers: the instructions through which it was reached within the innermost loop's body or
        the entry: fusions, calls and asynchronous calls.
    """

    instruction: Instruction
    computation: Computation
    times: int
    loops: tuple[Loop, ...]
    callers: tuple[Instruction, ...]

    @property
    def is_fused(self) -> bool:
        """It is part of a fusion, so that its operands and result need not be in memory."""
        return any(caller.opcode == "fusion" for caller in self.callers)


def executions(module: Module, *, unknown_trips: int = 1) -> Iterator[Execution]:
    """Every instruction that runs, loops and fusions followed.

    `unknown_trips` is how often a loop runs whose trips the text does not say.
    """
    yield from _within(module, module.entry, 1, (), (), unknown_trips)


def _within(
    module: Module,
    computation: Computation,
    times: int,
    loops: tuple[Loop, ...],
    callers: tuple[Instruction, ...],
    unknown_trips: int,
) -> Iterator[Execution]:
    for one in computation.instructions.values():
        yield Execution(one, computation, times, loops, callers)
        if one.opcode == "while":
            trips = trip_count(module, computation, one)
            body = module.computations[one.called("body")[0]]
            count = times * (unknown_trips if trips is None else trips)
            loop = Loop(one.name, one.op_name, trips)
            yield from _within(module, body, count, (*loops, loop), (), unknown_trips)
            continue
        if one.opcode in ("fusion", "call", "async-start"):
            names = one.called("calls", "to_apply")
        elif one.opcode == "conditional":
            # All branches: more than what runs, never less.
            names = one.called("branch_computations", "true_computation", "false_computation")
        else:
            continue
        for name in names:
            inner = module.computations[name]
            yield from _within(module, inner, times, loops, (*callers, one), unknown_trips)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a `while` of a computation runs its body, at most; None if unknown."""
    known = re.search(r'"?known_trip_count"?\s*:?\s*\{"?n"?\s*:\s*"?(\d+)', loop.attributes)
    if known:
        return int(known.group(1))
    names = loop.called("condition"), loop.called("body")
    if not all(names):
        return None
    condition, body = (module.computations[name[0]] for name in names)
    for compare, scope in _comparisons(module, condition):
        places = [_place(scope, name) for name in compare.operands]
        if len(places) != 2:
            continue
        bounds = [_number(scope, name) for name in compare.operands]
        direction = compare.attribute("direction")
        for place, bound, larger in ((places[0], bounds[1], "LT"), (places[1], bounds[0], "GT")):
            if place is None or direction not in (larger, larger.replace("T", "E")):
                continue
            if bound is None:
                bound = _initial(computation, loop, _place(scope, compare.operands[larger == "LT"]))
            start, step = _initial(computation, loop, place), _step(module, body, place)
            if bound is None or start is None or not step:
                continue
            span = bound - start + (direction != larger)
            return max(0, -(-span // step))
    return None


class _Scope(NamedTuple):
    """A computation, and for a fused one where its parameters come from."""

    computation: Computation
    outer: _Scope | None
    operands: tuple[str, ...]


def _comparisons(module: Module, condition: Computation) -> Iterator[tuple[Instruction, _Scope]]:
    """The comparisons that must all hold for the loop to go on."""
    pending = [(condition.root, _Scope(condition, None, ()))]
    while pending:
        one, scope = pending.pop()
        if one.opcode == "compare":
            yield one, scope
        elif one.opcode in ("and", *_TRANSPARENT):
            pending += [(operand, scope) for operand in scope.computation.operands(one)]
        elif one.opcode in ("fusion", "call"):
            inner = module.computations[one.called("calls", "to_apply")[0]]
            pending.append((inner.root, _Scope(inner, scope, one.operands)))


def _source(scope: _Scope, name: str) -> tuple[Instruction | None, _Scope]:
    """What a value is, seen through copies and the parameters of a fusion."""
    while True:
        one = scope.computation.instructions.get(name)
        if one is not None and one.opcode in _TRANSPARENT and one.operands:
            name = one.operands[0]
        elif one is not None and one.opcode == "parameter" and scope.outer is not None:
            name, scope = scope.operands[int(one.literal)], scope.outer
        else:
            return one, scope


def _number(scope: _Scope, name: str) -> int | None:
    one, _ = _source(scope, name)
    if one is None or one.opcode != "constant" or not re.fullmatch(r"-?\d+", one.literal.strip()):
        return None
    return int(one.literal)


def _place(scope: _Scope, name: str) -> int | None:
    """Which element of what the loop carries a value is."""
    one, _ = _source(scope, name)
    if one is None or one.opcode != "get-tuple-element":
        return None
    return int(one.attribute("index") or -1)


def _initial(computation: Computation, loop: Instruction, place: int | None) -> int | None:
    carried, scope = _source(_Scope(computation, None, ()), loop.operands[0])
    if place is None or carried is None or carried.opcode != "tuple":
        return None
    return _number(scope, carried.operands[place])


def _step(module: Module, body: Computation, place: int) -> int | None:
    """What the body adds to a counter."""
    root, scope = _source(_Scope(body, None, ()), body.root.name)
    if root is None or root.opcode != "tuple":
        return None
    one, scope = _source(scope, root.operands[place])
    if one is not None and one.opcode in ("fusion", "call"):
        inner = module.computations[one.called("calls", "to_apply")[0]]
        one, scope = _source(_Scope(inner, scope, one.operands), inner.root.name)
    if one is None or one.opcode != "add":
        return None
    numbers = [_number(scope, name) for name in one.operands]
    places = [_place(scope, name) for name in one.operands]
    for number, other in zip(numbers, reversed(places), strict=True):
        if number is not None and other == place:
            return number
    return None

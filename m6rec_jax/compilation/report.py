"""What is known of a compiled step: memory, operations, collectives, time to compile."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from m6rec_jax.compilation.steps import Program
from m6rec_jax.compilation.topologies import GIB

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_COLLECTIVE = re.compile(rf"\s*(?:ROOT )?\S+ = .*? ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_CHANNEL = re.compile(r"channel_id=\d+")


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step. Bytes are those of one device's main memory.

    Attributes:
      step: 'train', 'score' or 'decode'.
      flops: of the matrix products of a step on all devices, recomputation included.
      available_bytes: what a program may use; None: unknown.
      needed_bytes: the most that it holds at a time, its code included.
      argument_bytes, temporary_bytes: of these the arguments (parameters, optimizer state, batch),
        and all that is neither argument nor result.
      collectives: instructions of the compiled program by kind; one in a loop counts once.
      compile_seconds: elapsed.
      error: XLA's message where it did not compile; then sizes and collectives are unknown.
    """

    step: str
    flops: int
    available_bytes: int | None
    needed_bytes: int = 0
    argument_bytes: int = 0
    temporary_bytes: int = 0
    collectives: Mapping[str, int] = field(default_factory=dict)
    compile_seconds: float = 0.0
    error: str = ""

    @property
    def fits(self) -> bool:
        """It compiles, and memory suffices as far as is known."""
        return not self.error and self.needed_bytes <= (self.available_bytes or math.inf)

    def render(self) -> str:
        """Lines of text."""
        products = f"  products     {self.flops:.3e} FLOPs a step on all devices"
        if self.error:
            return f"{self.step}: does NOT compile: {self.error}\n{products}"
        available = self.available_bytes
        limit = "" if available is None else f" of {available / GIB:.2f}"
        kinds = (f"{count} {kind}" for kind, count in self.collectives.items())
        return "\n".join(
            (
                f"{self.step}: {'fits' if self.fits else 'does NOT fit'}",
                f"  memory       {self.needed_bytes / GIB:.2f}{limit} GiB a device (arguments "
                f"{self.argument_bytes / GIB:.2f}, temporary {self.temporary_bytes / GIB:.2f})",
                products,
                f"  collectives  {', '.join(kinds) or 'none'}",
                f"  compiled     in {self.compile_seconds:.0f} s",
            )
        )


def compile_step(name: str, program: Program, available_bytes: int | None) -> StepReport:
    """Compiles a step.

    Args:
      name: of the step.
      program: the step.
      available_bytes: of one device's main memory; None: unknown.
    """
    traced = program.trace()
    flops = product_flops(traced.jaxpr.jaxpr, program.loop_trips)
    begin = time.perf_counter()
    try:
        compiled = program.compile(traced)
    except jax.errors.JaxRuntimeError as error:
        return StepReport(name, flops, available_bytes, error=str(error).strip())
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    assert memory is not None  # CPUs, GPUs and TPUs have it
    at_once = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    # Buffers do not always fit without gaps, so what is allocated may exceed what is alive.
    needed = max(memory.peak_memory_in_bytes, at_once) + memory.generated_code_size_in_bytes
    return StepReport(
        step=name,
        flops=flops,
        available_bytes=available_bytes,
        needed_bytes=needed,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        collectives=count_collectives(compiled.as_text() or ""),
        compile_seconds=seconds,
    )


def count_collectives(hlo: str) -> dict[str, int]:
    """Collectives of a program's text by kind.

    One that a TPU runs beside several products stands in each of their fusions, always with the
    same channel, and counts once.
    """
    kinds: dict[str, str] = {}
    for number, line in enumerate(hlo.splitlines()):
        if instruction := _COLLECTIVE.match(line):
            channel = _CHANNEL.search(line)
            kinds[channel[0] if channel else f"line {number}"] = instruction[1]
    return dict(sorted(Counter(kinds.values()).items()))


def product_flops(jaxpr: Any, loop_trips: int) -> int:
    """Operations of a traced program's matrix products, two for each multiplication.

    XLA's own `cost_analysis` takes the body of a loop once, and layers are a loop.

    Args:
      jaxpr: the program.
      loop_trips: of a `while`, whose end depends on the data: the most there may be.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            summed = math.prod(shape[axis] for axis in contracted)
            total += 2 * summed * math.prod(eqn.outvars[0].aval.shape)
        inner = [
            product_flops(getattr(part, "jaxpr", part), loop_trips)
            for part in jax.tree.leaves(eqn.params, is_leaf=lambda part: hasattr(part, "eqns"))
            if hasattr(part, "eqns")
        ]
        times = {"scan": eqn.params.get("length"), "while": loop_trips}.get(eqn.primitive.name, 1)
        # One branch of several runs; here the most expensive.
        total += times * (max(inner) if eqn.primitive.name == "cond" else sum(inner))
    return total

"""What a report says of one compiled step: values that serialise to JSON and back."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from m6rec_jax.compilation.collectives import LAYERS, Collective, collectives
from m6rec_jax.compilation.hlo_costs import costs
from m6rec_jax.compilation.hlo_execution import executions
from m6rec_jax.compilation.hlo_text import parse_module
from m6rec_jax.compilation.topologies import GIB, Topology
from m6rec_jax.errors import M6RecError
from m6rec_jax.model.flops import ModelFlops


class Roofline(NamedTuple):
    """Seconds of one step.

    Attributes:
      compute: all products at the peak rate.
      memory: all bytes of main memory at its bandwidth.
      links: all bytes between chips of a slice.
      slices: all bytes between slices.
      exposed: of links and slices what is not asynchronous, so that nothing hides it.
      step: the longest of compute, memory and hidden communication, and the exposed one on top.
    """

    compute: float
    memory: float
    links: float
    slices: float
    exposed: float
    step: float

    def utilisation(self, model_flops: int, topology: Topology) -> float:
        """Model FLOPs utilisation, were this the time of a step."""
        peak = topology.num_chips * topology.chip.flops
        return model_flops / (peak * self.step) if self.step else 0.0

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "compute": self.compute,
            "memory": self.memory,
            "communication": max(self.links, self.slices),
        }
        return max(parts, key=lambda name: parts[name])


def roofline(
    topology: Topology, product_flops: int, memory_bytes: int, sent: Sequence[Collective]
) -> Roofline:
    """Times of one device's work: its products, its bytes of main memory, and what it sends."""
    chip = topology.chip
    seconds = {(place, hidden): 0.0 for place in (False, True) for hidden in (False, True)}
    for one in sent:
        if one.between_slices:
            bandwidth = chip.slice_bandwidth
        else:
            bandwidth = topology.links(one.group_size) * chip.link_bandwidth
        seconds[one.between_slices, one.asynchronous] += one.moved_bytes / bandwidth
    compute, memory = product_flops / chip.flops, memory_bytes / chip.hbm_bandwidth
    exposed = seconds[False, False] + seconds[True, False]
    hidden = max(seconds[False, True], seconds[True, True])
    return Roofline(
        compute=compute,
        memory=memory,
        links=seconds[False, False] + seconds[False, True],
        slices=seconds[True, False] + seconds[True, True],
        exposed=exposed,
        step=max(compute, memory, hidden) + exposed,
    )


if TYPE_CHECKING:
    import jax

NAMED_SYNCHRONOUS = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device's main memory.

    Attributes:
      available: what a program may use.
      needed: the most that the program holds at a time, its code included; by the compiler's error
        message where it did not fit.
      peak: the compiler's own number of that, without code and without gaps between buffers.
      temporary: all that is neither argument nor result.
      code: of the program.
      arguments: by what they are (params, prompts, optimizer, batch).
    """

    available: int
    needed: int
    peak: int = 0
    temporary: int = 0
    code: int = 0
    arguments: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of what is available."""
        return self.needed / self.available


@dataclasses.dataclass(frozen=True, slots=True)
class CollectiveGroup:
    """Collectives of equal kind, place and manner (see `Collective`): sums over all executions of a
    step.
    """

    kind: str
    place: str
    asynchronous: bool
    between_slices: bool
    executions: int
    payload_bytes: int
    moved_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class StepReport:
    """What is known of one step.

    Attributes:
      step: 'train', 'score' or 'decode'.
      memory: of one device.
      model_flops: the model's own, of a step on all devices, by part.
      executed_flops: products that all devices execute (0 where it did not compile).
      memory_bytes: that one device reads and writes.
      collectives: groups, largest first.
      synchronous: the largest collectives of the layer loop that nothing hides: kind, JAX's path,
        bytes that a device sends.
      seconds: the roofline's parts, and `step`.
      utilisation: model FLOPs utilisation at the roofline.
      bound: 'compute', 'memory' or 'communication'.
      unknown_loops: loops whose trips the program does not say.
      trace_seconds, compile_seconds: elapsed.
      compile_cpu_seconds: of all threads; on a machine that others use it says more.
      advice: what to change.
      error: why it did not compile.
    """

    step: str
    memory: Memory
    model_flops: Mapping[str, int]
    executed_flops: int = 0
    memory_bytes: int = 0
    collectives: Sequence[CollectiveGroup] = ()
    synchronous: Sequence[tuple[str, str, int]] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    utilisation: float = 0.0
    bound: str = ""
    unknown_loops: Sequence[str] = ()
    trace_seconds: float = 0.0
    compile_seconds: float = 0.0
    compile_cpu_seconds: float = 0.0
    advice: Sequence[str] = ()
    error: str = ""

    @property
    def total_model_flops(self) -> int:
        """Of all parts."""
        return sum(self.model_flops.values())

    @property
    def flops_ratio(self) -> float:
        """Executed to the model's own; 0 where nothing is known."""
        own = self.total_model_flops
        return self.executed_flops / own if own else 0.0

    @property
    def fits(self) -> bool:
        """It compiles and the memory suffices."""
        return not self.error and self.memory.needed <= self.memory.available

    @property
    def layer_bytes(self) -> int:
        """What a device sends from within the layer loop."""
        return sum(group.moved_bytes for group in self.collectives if group.place == LAYERS)

    @property
    def asynchronous_share(self) -> float:
        """Of `layer_bytes`; 1 where there are none."""
        hidden = sum(
            group.moved_bytes
            for group in self.collectives
            if group.place == LAYERS and group.asynchronous
        )
        return hidden / self.layer_bytes if self.layer_bytes else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, derived ones included."""
        derived = ("total_model_flops", "flops_ratio", "fits", "layer_bytes", "asynchronous_share")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StepReport:
        """Of `to_json`; derived values are derived anew."""
        names = {field.name for field in dataclasses.fields(cls)}
        kept = {name: value for name, value in values.items() if name in names}
        kept["memory"] = Memory(**values["memory"])
        kept["collectives"] = tuple(CollectiveGroup(**group) for group in values["collectives"])
        kept["synchronous"] = tuple(
            (kind, path, size) for kind, path, size in values["synchronous"]
        )
        return cls(**kept)


def measure(
    step: str,
    compiled: jax.stages.Compiled,
    topology: Topology,
    flops: ModelFlops,
    *,
    loop_trips: int,
    arguments: Mapping[str, int],
) -> StepReport:
    """What is known of a compiled step, without advice and times of compilation.

    Args:
      step: its name.
      compiled: for the devices of `topology`.
      topology: where it would run.
      flops: the model's own.
      loop_trips: of loops whose trips the program does not say.
      arguments: bytes of one device's arguments, by what they are.

    Raises:
      M6RecError: XLA's backend for these devices does not say what it made.
    """
    module = parse_module(program_text(compiled))
    executed = list(executions(module, unknown_trips=loop_trips))
    cost = costs(module, executed)
    sent = collectives(executed, num_devices=topology.num_chips, num_slices=topology.num_slices)
    times = roofline(topology, cost.product_flops, cost.memory_bytes, sent)
    unknown = {
        loop.name: loop.op_name for one in executed for loop in one.loops if loop.trips is None
    }
    return StepReport(
        step=step,
        memory=memory_of(compiled, topology, arguments),
        model_flops=dataclasses.asdict(flops),
        executed_flops=cost.product_flops * topology.num_chips,
        memory_bytes=cost.memory_bytes,
        collectives=group(sent),
        synchronous=_synchronous(sent),
        seconds=times._asdict(),
        utilisation=times.utilisation(flops.total, topology),
        bound=times.bound,
        unknown_loops=tuple(path or name for name, path in unknown.items()),
    )


def program_text(compiled: jax.stages.Compiled) -> str:
    """The optimised program; raises M6RecError as `measure`."""
    text = compiled.as_text()
    if text is None:
        raise M6RecError("XLA's backend for these devices has no text of what it compiled")
    return text


def memory_of(
    compiled: jax.stages.Compiled, topology: Topology, arguments: Mapping[str, int]
) -> Memory:
    """Of one device, by the compiler's own account; raises M6RecError as `measure`."""
    found = compiled.memory_analysis()
    if found is None:
        raise M6RecError("XLA's backend for these devices does not say what a program needs")
    held = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
    )
    peak = found.peak_memory_in_bytes
    return Memory(
        available=topology.chip.hbm_bytes,
        # Buffers do not always fit without gaps, so what is allocated may exceed what is alive.
        needed=max(peak, held) + found.generated_code_size_in_bytes,
        peak=peak,
        temporary=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        arguments=dict(arguments),
    )


def too_large(message: str) -> int | None:
    """Bytes that a program would need, by XLA's error message; None where it is another error."""
    for pattern in (
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
        r"\(([\d.]+)([KMGT]?)\) exceeds",
    ):
        if found := re.search(pattern, message):
            unit = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[found.group(2)]
            return round(float(found.group(1)) * unit)
    return None


def group(sent: Sequence[Collective]) -> tuple[CollectiveGroup, ...]:
    """Collectives of equal kind, place and manner added up, the largest first."""
    members: dict[tuple[str, str, bool, bool], list[Collective]] = defaultdict(list)
    for one in sent:
        members[one.kind, one.place, one.asynchronous, one.between_slices].append(one)
    groups = (
        CollectiveGroup(
            *key,
            executions=sum(one.times for one in found),
            payload_bytes=sum(one.payload_bytes * one.times for one in found),
            moved_bytes=sum(one.moved_bytes for one in found),
        )
        for key, found in members.items()
    )
    return tuple(sorted(groups, key=lambda one: -one.moved_bytes))


def _synchronous(sent: Sequence[Collective]) -> tuple[tuple[str, str, int], ...]:
    found = [one for one in sent if one.place == LAYERS and not one.asynchronous]
    found.sort(key=lambda one: -one.moved_bytes)
    return tuple((one.kind, one.op_name, one.moved_bytes) for one in found[:NAMED_SYNCHRONOUS])

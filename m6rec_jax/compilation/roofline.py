"""What a step would take on chips that reach their peaks: a bound, to compare programs by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from m6rec_jax.compilation.collectives import Collective
from m6rec_jax.compilation.topologies import Topology


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
    """Times of one device's work.

    Args:
      topology: where it runs.
      product_flops, memory_bytes: of one device, of `hlo_costs.costs`.
      sent: collectives; their bytes are those a device sends.
    """
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

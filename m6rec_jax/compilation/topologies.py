"""TPU slices by name: `v5e:16x16`, `v4:4x8x8`, or an accelerator type of Google Cloud (`v5e-16`).

A slice need not exist: XLA's TPU compiler (the package libtpu) takes a description of one. JAX is
asked for it by `devices`, in a process of its own, for a shape that no slice can have may abort it.

Figures of a chip are those of Google Cloud's documentation (TPU v4, v5e, v5p, v6e), bandwidth
between chips and between slices those of "How to Scale Your Model" (Austin et al., 2025, chapter
2), which are what the links carry in practice.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from m6rec_jax.errors import ConfigError, first_line

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Chip:
    """One generation of TPU, per chip (v4 and v5p: both cores as one device, "megacore").

    Attributes:
      name: as in a topology's name.
      flops: bfloat16 matrix products, FLOP/s.
      hbm_bytes: main memory that the compiler lets a program use; the runtime keeps the rest (a v5e
        has 16 GiB).
      hbm_bandwidth: bytes/s.
      link_bandwidth: of one link between neighbours, one way, bytes/s.
      dimensions: axes of the torus.
      slice_bandwidth: to other slices over the data centre's network, bytes/s.
    """

    name: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    dimensions: int
    slice_bandwidth: float

    @property
    def cores(self) -> int:
        """Cores of a chip, which accelerator types of v4 and v5p count."""
        return 2 if self.dimensions == 3 else 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, int(30.75 * GIB), 1.2e12, 4.5e10, 3, 6.25e9),
        Chip("v5e", 197e12, int(15.75 * GIB), 8.1e11, 4.5e10, 2, 3.125e9),
        Chip("v5p", 459e12, int(95.74 * GIB), 2.765e12, 9e10, 3, 6.25e9),
        Chip("v6e", 918e12, int(31.25 * GIB), 1.6e12, 9e10, 2, 12.5e9),
    )
}

# Shapes that Google Cloud gives slices of so many chips; other shapes are asked for by name.
_SHAPES: dict[int, dict[int, tuple[int, ...]]] = {
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
        256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8),
        256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16)},
}  # fmt: skip
_ALIASES = {"v5litepod": "v5e", "v5": "v5p"}
_BY_SHAPE = re.compile(r"(v\w+):(\d+(?:x\d+){1,2})")
_BY_COUNT = re.compile(r"(v\w+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Topology:
    """One or several equal slices.

    Attributes:
      chip: of all of them.
      shape: chips of a slice along each axis of the torus.
      num_slices: joined by the data centre's network.
    """

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def name(self) -> str:
        """As `parse_topology` reads it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """In all slices."""
        return self.num_slices * math.prod(self.shape)

    @property
    def accelerator_type(self) -> str:
        """What `gcloud` calls a slice."""
        chip = "v5litepod" if self.chip.name == "v5e" else self.chip.name
        return f"{chip}-{math.prod(self.shape) * self.chip.cores}"

    def __str__(self) -> str:
        slices = f"{self.num_slices} slices of " if self.num_slices > 1 else ""
        return f"{slices}{self.name} ({self.num_chips} chips in all)"

    def links(self, group_size: int) -> int:
        """Links of a chip that a collective of so many neighbours keeps busy, at most.

        A ring along one axis has two, and every further axis that the group needs two more. Axes
        that do not close to a ring (shorter than 16 in two dimensions, no multiple of 4 in three)
        have half.
        """
        links, covered = 0, 1
        for size in sorted(self.shape, reverse=True):
            if covered >= group_size or size == 1:
                break
            closed = size >= 16 if self.chip.dimensions == 2 else size % 4 == 0
            links += 2 if closed else 1
            covered *= size
        return max(1, links)

    def devices(self) -> list[Any]:
        """JAX's descriptions of the chips, slice by slice. Needs libtpu, but no TPU.

        Raises ConfigError if libtpu does not know such a slice. (Some it does not refuse, but
        abort.)
        """
        from jax.experimental import topologies

        settings: dict[str, Any] = {}
        if self.chip.dimensions == 3:
            settings = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
        elif math.prod(self.shape) == 1:
            settings = {"chips_per_host_bounds": (1, 1, 1)}
        if self.num_slices > 1:
            settings["num_slices"] = self.num_slices
        try:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=self.name, **settings
            )
        except Exception as error:  # JAX raises XLA's status as it comes
            raise ConfigError(f"no TPU slice is {self.name}: {first_line(error)}") from error
        return sorted(described.devices, key=lambda device: getattr(device, "slice_index", 0) or 0)


def parse_topology(name: str, num_slices: int = 1) -> Topology:
    """Reads a name.

    Args:
      name: `v5e:4x8`, `v4:4x8x8` (chips along each axis), or an accelerator type: `v5litepod-32`,
        `v5e-32`, `v6e-32` (chips), `v4-512`, `v5p-512` (cores, two a chip).
      num_slices: how many of them.

    Raises:
      ConfigError: no such generation, number of axes or standard size.
    """
    known = ", ".join(CHIPS)
    if num_slices < 1:
        raise ConfigError(f"--slices {num_slices}: at least 1")
    found = _BY_SHAPE.fullmatch(name) or _BY_COUNT.fullmatch(name)
    chip = CHIPS.get(_ALIASES.get(found.group(1), found.group(1))) if found else None
    if found is None or chip is None:
        raise ConfigError(
            f"topology {name!r}: write GENERATION:SHAPE, such as v5e:16x16 or v4:4x8x8, or an "
            f"accelerator type, such as v5litepod-256; generations: {known}"
        )
    if ":" in name:
        shape = tuple(map(int, found.group(2).split("x")))
        if len(shape) != chip.dimensions or 0 in shape:
            raise ConfigError(
                f"topology {name!r}: a slice of {chip.name} has {chip.dimensions} axes of at least "
                f"1, for instance {chip.name}:{_example(chip)}"
            )
        return Topology(chip, shape, num_slices)
    shapes = _SHAPES[chip.dimensions]
    chips, rest = divmod(int(found.group(2)), chip.cores)
    if rest or chips not in shapes:
        types = ", ".join(Topology(chip, shape).accelerator_type for shape in shapes.values())
        raise ConfigError(
            f"topology {name!r}: no standard slice has that size. There are {types}; for another "
            f"shape write for instance {chip.name}:{_example(chip)}"
        )
    return Topology(chip, shapes[chips], num_slices)


def _example(chip: Chip) -> str:
    return "4x4" if chip.dimensions == 2 else "2x2x4"

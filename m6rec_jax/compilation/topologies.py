"""TPU slices by name: `v5e:16x16`, `v4:4x8x8`, or an accelerator type of Google Cloud (`v5e-16`).

A slice need not exist: XLA's TPU compiler (the package libtpu) takes a description of one.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from m6rec_jax.errors import ConfigError, first_line

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Chip:
    """One generation of TPU (v4 and v5p: both cores of a chip are one device, "megacore").

    Attributes:
      name: as in a topology's name.
      hbm_bytes: main memory that the compiler lets a program use; the runtime keeps the rest (a v5e
        has 16 GiB).
      dimensions: axes of the torus.
    """

    name: str
    hbm_bytes: int
    dimensions: int

    @property
    def cores(self) -> int:
        """Cores of a chip, which accelerator types of v4 and v5p count."""
        return 2 if self.dimensions == 3 else 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", int(30.75 * GIB), 3),
        Chip("v5e", int(15.75 * GIB), 2),
        Chip("v5p", int(95.74 * GIB), 3),
        Chip("v6e", int(31.25 * GIB), 2),
    )
}

# Shapes that Google Cloud gives slices of so many chips; for other shapes write the shape itself.
_SHAPES: dict[int, dict[int, tuple[int, ...]]] = {
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16),
        256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8),
        256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16)},
}  # fmt: skip
_ALIASES = {"v5litepod": "v5e", "v5": "v5p"}
_NAME = re.compile(r"(v\w+)(?::(\d+(?:x\d+){1,2})|-(\d+))")


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

    def __str__(self) -> str:
        slices = f"{self.num_slices} slices of " if self.num_slices > 1 else ""
        return f"{slices}{self.name}"

    def devices(self) -> list[Any]:
        """JAX's descriptions of the chips, slice by slice. Needs libtpu, but no TPU.

        Raises ConfigError if libtpu does not know such a slice, or is not installed.
        """
        from jax.experimental import topologies

        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError(
                "--topology: XLA's TPU compiler is not installed; pip install "
                "'m6rec_jax[compile]' (it needs no TPU)"
            )
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


def use_libtpu_as_a_compiler() -> None:
    """Keeps JAX and libtpu off the TPUs of this machine, if any. Call it before JAX is imported."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        # libtpu locks the machine's TPUs, even where only its compiler is used.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # It would ask Google Cloud's metadata server what machine this is, and complain of what it
        # does not learn there.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        # Its errors come as exceptions, too.
        "TPU_STDERR_LOG_LEVEL": "3",
    }


def parse_topology(name: str, num_slices: int = 1) -> Topology:
    """Reads a name.

    Args:
      name: `v5e:4x8`, `v4:4x8x8` (chips along each axis), or an accelerator type: `v5litepod-32`,
        `v5e-32`, `v6e-32` (chips), `v4-512`, `v5p-512` (cores, two a chip).
      num_slices: how many of them.

    Raises:
      ConfigError: no such generation, number of axes or standard size.
    """
    if num_slices < 1:
        raise ConfigError(f"--slices {num_slices}: at least 1")
    parts = _NAME.fullmatch(name)
    chip = CHIPS.get(_ALIASES.get(parts[1], parts[1])) if parts else None
    if parts is None or chip is None:
        raise ConfigError(
            f"--topology {name}: write GENERATION:SHAPE, such as v5e:16x16 or v4:4x8x8, or an "
            f"accelerator type, such as v5litepod-256; generations: {', '.join(CHIPS)}"
        )
    example = f"{chip.name}:{'4x4' if chip.dimensions == 2 else '2x2x4'}"
    if parts[2]:
        shape = tuple(map(int, parts[2].split("x")))
        if len(shape) != chip.dimensions or 0 in shape:
            raise ConfigError(
                f"--topology {name}: a slice of {chip.name} has {chip.dimensions} axes of at least "
                f"1, for instance {example}"
            )
        return Topology(chip, shape, num_slices)
    sizes = {chips * chip.cores: shape for chips, shape in _SHAPES[chip.dimensions].items()}
    if int(parts[3]) not in sizes:
        raise ConfigError(
            f"--topology {name}: no standard slice has that size. There are "
            f"{', '.join(f'{chip.name}-{size}' for size in sizes)}; for another shape write it "
            f"out, for instance {example}"
        )
    return Topology(chip, sizes[int(parts[3])], num_slices)

"""Names of slices, their sizes, and what links a collective has."""

from __future__ import annotations

import pytest

from m6rec_jax.compilation.topologies import parse_topology
from m6rec_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "chip", "shape", "accelerator_type"),
    [
        ("v5e:16x16", "v5e", (16, 16), "v5litepod-256"),
        ("v5litepod-16", "v5e", (4, 4), "v5litepod-16"),
        ("v5e-8", "v5e", (2, 4), "v5litepod-8"),
        ("v6e-64", "v6e", (8, 8), "v6e-64"),
        ("v4:4x8x8", "v4", (4, 8, 8), "v4-512"),
        # Types of v4 and v5p count cores, two a chip.
        ("v4-512", "v4", (4, 8, 8), "v4-512"),
        ("v5p-8", "v5p", (2, 2, 1), "v5p-8"),
        ("v5p:2x2x3", "v5p", (2, 2, 3), "v5p-24"),
    ],
)
def test_names(name: str, chip: str, shape: tuple[int, ...], accelerator_type: str) -> None:
    topology = parse_topology(name)
    assert (topology.chip.name, topology.shape) == (chip, shape)
    assert topology.accelerator_type == accelerator_type
    assert parse_topology(topology.name) == topology
    if "-" in accelerator_type and name != "v5p:2x2x3":
        assert parse_topology(accelerator_type) == topology


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v5e:4x4x4", 1, "a slice of v5e has 2 axes"),
        ("v4:4x4", 1, "a slice of v4 has 3 axes of at least 1, for instance v4:2x2x4"),
        ("v5e:0x4", 1, "of at least 1"),
        ("v9:4x4", 1, "generations: v4, v5e, v5p, v6e"),
        ("v5e", 1, "write GENERATION:SHAPE"),
        ("gpu-8", 1, "write GENERATION:SHAPE"),
        ("v5e-12", 1, "no standard slice has that size. There are v5litepod-1, v5litepod-4"),
        ("v4-7", 1, "no standard slice has that size. There are v4-8, v4-16"),
        ("v5e:4x4", 0, "--slices 0: at least 1"),
    ],
)
def test_names_that_are_none(name: str, slices: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_topology(name, slices)


@pytest.mark.parametrize(
    ("name", "group", "links"),
    [
        # A whole side of 16 closes to a ring: two links a chip; both sides, four.
        ("v5e:16x16", 16, 2),
        ("v5e:16x16", 256, 4),
        # Shorter sides do not close.
        ("v5e:4x4", 4, 1),
        ("v5e:4x4", 16, 2),
        ("v5e:2x4", 8, 2),
        ("v4:4x8x8", 8, 2),
        ("v4:4x8x8", 256, 6),
        ("v4:2x2x1", 4, 2),
        ("v6e:1x1", 1, 1),
    ],
)
def test_links_of_a_collective(name: str, group: int, links: int) -> None:
    assert parse_topology(name).links(group) == links

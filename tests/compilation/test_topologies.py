"""Names of slices, and their sizes."""

from __future__ import annotations

import pytest

from m6rec_jax.compilation.topologies import parse_topology
from m6rec_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "chip", "shape"),
    [
        ("v5e:16x16", "v5e", (16, 16)),
        ("v5litepod-16", "v5e", (4, 4)),
        ("v5e-8", "v5e", (2, 4)),
        ("v6e-64", "v6e", (8, 8)),
        ("v4:4x8x8", "v4", (4, 8, 8)),
        # Types of v4 and v5p count cores, two a chip.
        ("v4-512", "v4", (4, 8, 8)),
        ("v5p-8", "v5p", (2, 2, 1)),
        ("v5p:2x2x3", "v5p", (2, 2, 3)),
    ],
)
def test_names(name: str, chip: str, shape: tuple[int, ...]) -> None:
    topology = parse_topology(name)
    assert (topology.chip.name, topology.shape) == (chip, shape)
    assert parse_topology(topology.name) == topology


@pytest.mark.parametrize(
    ("name", "slices", "keyword"),
    [
        ("v5e:4x4x4", 1, "2 axes"),
        ("v4:4x4", 1, "v4:2x2x4"),
        ("v5e:0x4", 1, "at least 1"),
        ("v9:4x4", 1, "v4, v5e, v5p, v6e"),
        ("v5e", 1, "GENERATION:SHAPE"),
        ("gpu-8", 1, "GENERATION:SHAPE"),
        ("v5e-12", 1, "v5e-1, v5e-4"),
        ("v4-7", 1, "v4-8, v4-16"),
        ("v5e:4x4", 0, "--slices 0"),
    ],
)
def test_names_that_are_none(name: str, slices: int, keyword: str) -> None:
    with pytest.raises(ConfigError, match=keyword):
        parse_topology(name, slices)

"""Compiled programs on disk: found without tracing, and never another function's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.engine.programs.kept_programs import KeptProgram, keep_programs, warming_up

Array = jax.Array


class Pair(NamedTuple):
    total: Array
    scaled: Array


TRACED: list[int] = []
X, FEATURES = jnp.arange(4.0), {"y": jnp.ones((2, 3))}


def scale(factor: int, x: Array, features: dict[str, Array]) -> Pair:
    TRACED.append(factor)
    return Pair(x.sum() + features["y"].sum(), x * factor)


def power(factor: int, x: Array, features: dict[str, Array]) -> Pair:
    return Pair(features["y"].sum(), x**factor)


def add(x: Array, y: Array) -> Array:
    return x + y


def sort(x: Array) -> Array:
    for _ in range(3):
        x = jnp.tanh(x @ x.T) @ x + jnp.where(x > 0, x, -x)
    return jnp.sort(x.sum(0))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    TRACED.clear()
    keep_programs(tmp_path / "programs")
    yield tmp_path / "programs"
    keep_programs(None)


def scaled(factor: int = 2, function: Any = scale) -> Pair:
    made: Pair = KeptProgram(function, (factor,))(X, FEATURES)
    return made


def test_a_program_is_found_without_tracing(folder: Path) -> None:
    first, second = scaled(), scaled()
    assert TRACED == [2]
    assert isinstance(second, Pair)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(list(folder.iterdir())) == 1


def test_its_function_values_and_shapes_tell_it_from_others(folder: Path) -> None:
    for _ in range(2):  # compiled, then read
        np.testing.assert_array_equal(scaled(2).scaled, [0, 2, 4, 6])
        np.testing.assert_array_equal(scaled(3).scaled, [0, 3, 6, 9])
        np.testing.assert_array_equal(scaled(3, power).scaled, [0, 1, 8, 27])
        program = KeptProgram(add, ())
        assert program(X, jnp.zeros(4)).shape == (4,)
        assert program(X, jnp.zeros((2, 4))).shape == (2, 4)
    assert TRACED == [2, 3]
    assert len(list(folder.iterdir())) == 5


def test_donated_memory_is_taken() -> None:
    for _ in range(2):  # compiled, then read
        x = jnp.ones(1024)
        KeptProgram(add, (), (0,))(x, jnp.ones(1024))
        assert x.is_deleted()


def test_a_damaged_file_is_made_again(folder: Path) -> None:
    scaled()
    (path,) = folder.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for _ in range(2):
        np.testing.assert_array_equal(scaled().scaled, [0, 2, 4, 6])
    assert TRACED == [2, 2]


def test_what_jax_has_read_from_its_own_cache_is_compiled_anew(folder: Path) -> None:
    """Written again, such a program runs nowhere: "Function ... not found"."""
    x = jnp.eye(32)
    expected = sort(x)
    keep_programs(None)
    KeptProgram(sort, ())(x)  # which JAX keeps in its own cache
    jax.clear_caches()
    KeptProgram(sort, ())(x)  # which JAX reads there
    for _ in range(2):  # compiled, then read
        keep_programs(folder)
        np.testing.assert_allclose(KeptProgram(sort, ())(x), expected, rtol=1e-5)
    assert len(list(folder.iterdir())) == 1


def test_a_warm_up_runs_no_program_that_is_read(folder: Path) -> None:
    for zeros in (False, True):
        program = KeptProgram(scale, (2,))
        with warming_up():
            warmed = program(X, FEATURES)
            # What is donated goes on in the results, so it is computed.
            kept = KeptProgram(add, (), (0,))(jnp.ones(4), X)
        np.testing.assert_array_equal(warmed.scaled, np.arange(4) * 2 * (not zeros))
        assert isinstance(warmed, Pair)
        np.testing.assert_array_equal(kept, [1, 2, 3, 4])
        np.testing.assert_array_equal(program(X, FEATURES).scaled, [0, 2, 4, 6])
    assert TRACED == [2]


_PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from m6rec_jax.engine.programs.kept_programs import KeptProgram, keep_programs

def run(x):
    print("traced")
    return {"y": jnp.sort(jnp.sin(x))[::-1] @ jnp.ones((64, 3))}

keep_programs(Path(sys.argv[1]))
print(KeptProgram(run, ())(jnp.arange(64.0))["y"].tolist())
"""


def test_another_process_finds_it(folder: Path) -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(folder)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert outputs[0][0] == "traced"
    assert outputs[1] == outputs[0][1:]

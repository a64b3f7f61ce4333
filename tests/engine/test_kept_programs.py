"""Compiled programs on disk: found without tracing, and never another function's."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.engine.programs.kept_programs import (
    Kept,
    all_programs_run,
    keep_programs,
    warming_up,
)

Array = jax.Array


class Pair(NamedTuple):
    total: Array
    scaled: Array


@dataclasses.dataclass
class Scaled:
    """Has a program that depends on all it has, but for `calls`."""

    factor: int
    table: np.ndarray
    calls: int = 0

    not_traced = ("calls",)

    def run(self, x: Array, features: dict[str, Array]) -> Pair:
        TRACED.append(self.factor)
        return Pair(x.sum() + features["y"].sum(), x * self.factor + self.table)


TRACED: list[int] = []
X, FEATURES = jnp.arange(4.0), {"y": jnp.ones((2, 3))}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    TRACED.clear()
    keep_programs(tmp_path / "programs")
    yield tmp_path / "programs"
    keep_programs(None)


def scaled(factor: int = 2, table: float = 0.0, calls: int = 0) -> Pair:
    owner = Scaled(factor, np.full(4, table, np.float32), calls)
    made: Pair = Kept(owner.run)(X, FEATURES)
    return made


def test_a_program_is_found_without_tracing(folder: Path) -> None:
    first, second = scaled(), scaled(calls=7)
    assert TRACED == [2]
    assert isinstance(second, Pair)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(list(folder.iterdir())) == 1


def test_what_a_function_holds_tells_it_from_others() -> None:
    np.testing.assert_array_equal(scaled(2).scaled, [0, 2, 4, 6])
    np.testing.assert_array_equal(scaled(3).scaled, [0, 3, 6, 9])
    np.testing.assert_array_equal(scaled(3, table=1.0).scaled, [1, 4, 7, 10])
    assert TRACED == [2, 3, 3]


def closure(power: int) -> Callable[..., Array]:
    return lambda x: x**power


@pytest.mark.parametrize(
    "make", [closure, lambda n: functools.partial(jnp.multiply, n), lambda n: lambda x, n=n: x + n]
)
def test_closures_partials_and_defaults_count(make: Callable[[int], Callable[..., Any]]) -> None:
    for number in (2, 3, 2):
        np.testing.assert_array_equal(Kept(make(number))(X), make(number)(X))


def test_shapes_of_later_arguments_may_change(folder: Path) -> None:
    program = Kept(lambda x, y: x.sum() + y)
    assert program(X, jnp.zeros(2)).shape == (2,)
    assert program(X, jnp.zeros(3)).shape == (3,)
    assert len(list(folder.iterdir())) == 2


def test_donated_memory_is_taken() -> None:
    def add(x: Array, y: Array) -> Array:
        return x + y

    for _ in range(2):  # compiled, then read
        x = jnp.ones(1024)
        Kept(add, donate=0)(x, jnp.ones(1024))
        assert x.is_deleted()


def test_a_damaged_file_is_made_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    scaled()
    (path,) = folder.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    np.testing.assert_array_equal(scaled().scaled, [0, 2, 4, 6])
    assert "made again" in caplog.text
    assert TRACED == [2, 2]
    scaled()
    assert TRACED == [2, 2]


def test_what_jax_has_read_from_its_own_cache_is_compiled_anew(folder: Path) -> None:
    """Written again, such a program runs nowhere: "Function ... not found"."""

    def run(x: Array) -> Array:
        for _ in range(3):
            x = jnp.tanh(x @ x.T) @ x + jnp.where(x > 0, x, -x)
        return jnp.sort(x.sum(0))

    x = jnp.eye(32)
    expected = run(x)
    keep_programs(None)
    Kept(run)(x)  # which JAX keeps in its own cache
    jax.clear_caches()
    Kept(run)(x)  # which JAX reads there
    for _ in range(2):  # compiled, then read
        keep_programs(folder)
        np.testing.assert_allclose(Kept(run)(x), expected, rtol=1e-5)
    assert len(list(folder.iterdir())) == 1


def test_programs_of_the_last_start_are_read_ahead_and_warm_up_runs_none(folder: Path) -> None:
    def add(x: Array, y: Array) -> Array:
        return x + y

    def start() -> tuple[Pair, Array, Callable[[], Pair]]:
        keep_programs(folder, "a server")
        owner = Kept(Scaled(2, np.zeros(4, np.float32)).run)
        with warming_up():
            warmed = owner(X, FEATURES)
            kept = Kept(add, donate=0)(jnp.ones(4), X)
        # What else is computed meanwhile somebody may keep.
        np.testing.assert_array_equal(scaled().scaled, [0, 2, 4, 6])
        all_programs_run()
        return warmed, kept, lambda: owner(X, FEATURES)

    for zeros in (False, True):
        warmed, kept, ask = start()
        np.testing.assert_array_equal(warmed.scaled, np.arange(4) * 2 * (not zeros))
        assert isinstance(warmed, Pair)
        assert warmed.total.dtype == jnp.float32
        # What is donated goes on in the results, so it is computed.
        np.testing.assert_array_equal(kept, [1, 2, 3, 4])
        np.testing.assert_array_equal(ask().scaled, [0, 2, 4, 6])
        # Found after the start, a program runs.
        np.testing.assert_array_equal(scaled().scaled, [0, 2, 4, 6])
    assert TRACED == [2]


_PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from m6rec_jax.engine.programs.kept_programs import Kept, all_programs_run, keep_programs

def run(x):
    print("traced")
    return {"y": jnp.sort(jnp.sin(x))[::-1] @ jnp.ones((64, 3))}

keep_programs(Path(sys.argv[1]))
print(Kept(run)(jnp.arange(64.0))["y"].tolist())
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

"""Where inference runs: jitted functions on one device or a mesh, batches of fixed shapes."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.engine.programs.kept_programs import KeptProgram
from m6rec_jax.errors import ConfigError
from m6rec_jax.sharding import (
    LogicalRules,
    axis_rules,
    place_batch,
    place_shared_batch,
    replicated,
)

LENGTH_MULTIPLE = 8
# How many later ones have been started when a batch's results are read.
_BATCHES_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Compiles and runs functions of the model on a mesh (None: the default device).

    Attributes:
      mesh: of `sharding.make_mesh`; batches are split over it, results are copies on all devices.
      rules: logical-axis rules under which the model is traced.
    """

    mesh: Mesh | None = None
    rules: LogicalRules = ()

    # More than one process uses; those of models that are gone go.
    @functools.lru_cache(maxsize=256)  # noqa: B019 - a runtime is a small value
    def program(
        self, function: Callable[..., Any], *static: Any, donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """`jax.jit` of `function(*static, ...)` with its results on every device.

        It is the same program for all that ask for equal ones. So variables are an argument, and
        whoever replaces them compiles nothing.

        Args:
          function: of a module, where its program is to be kept on disk.
          static: hashable values, such as the model.
          donate: the arguments after these whose memory the results may take.
        """
        if (mesh := self.mesh) is None:
            return KeptProgram(function, static, donate)
        partial = functools.partial(function, *static)
        compiled = jax.jit(partial, out_shardings=replicated(mesh), donate_argnums=donate)

        def call(*args: Any) -> Any:
            with jax.set_mesh(mesh), axis_rules(self.rules):
                return compiled(*args)

        return call

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's rows of a batch on the devices.

        With several processes each has rows of its own, and the batch is all of them, in the mesh's
        order of devices.
        """
        # `jax.numpy.asarray` would compile a program for each shape.
        return jax.device_put(dict(batch)) if self.mesh is None else place_batch(batch, self.mesh)

    def place_shared(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts a batch on the devices that every process has whole; rows keep their order."""
        if self.mesh is None:
            return jax.device_put(dict(batch))
        return place_shared_batch(batch, self.mesh)

    def place_whole(self, values: np.ndarray) -> jax.Array:
        """Puts an array on the devices, all of it on each."""
        if self.mesh is None:
            return jax.numpy.asarray(values)
        return jax.device_put(values, replicated(self.mesh))

    def batch_sizes(self, wanted: Iterable[int]) -> list[int]:
        """Numbers of rows, each raised to a multiple of `batch_multiple`, ascending.

        Raises:
          ConfigError: there are none, or one is below 1.
        """
        sizes, multiple = sorted(wanted), self.batch_multiple
        if not sizes or sizes[0] < 1:
            raise ConfigError(f"batch sizes {sizes} must be at least 1 (BATCH_SIZE, batch_sizes)")
        return sorted({-(-size // multiple) * multiple for size in sizes})

    @property
    def batch_multiple(self) -> int:
        """What the number of rows of a batch must be a multiple of."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]


def read_back(results: Iterable[Any]) -> Iterator[Any]:
    """Trees of results on the host, in order.

    Each is read when two more have been started: the device always has work, and holds the results
    of three batches, however many there are.

    Args:
      results: on the device, started as they are asked for.
    """
    started = collections.deque[Any]()
    for result in results:
        started.append(result)
        if len(started) > _BATCHES_AHEAD:
            yield jax.device_get(started.popleft())
    while started:
        yield jax.device_get(started.popleft())


def length_buckets(limit: int) -> tuple[int, ...]:
    """Lengths to pad to, ascending: the limit, half of it and a quarter.

    Padding every request to the longest length wastes work; a shape per request compiles forever.
    """
    lengths = {limit}
    for power in (1, 2):
        shorter = -(-limit // 2**power)
        lengths.add(min(limit, -(-shorter // LENGTH_MULTIPLE) * LENGTH_MULTIPLE))
    return tuple(sorted(lengths))


def checked_buckets(name: str, buckets: Sequence[int] | None, limit: int) -> tuple[int, ...]:
    """Lengths to pad to, ascending: those that a caller chose, or `length_buckets`.

    Raises:
      ConfigError: they do not end with the limit; the message calls them `name`.
    """
    if buckets is None:
        return length_buckets(limit)
    if isinstance(buckets, int):
        raise ConfigError(f"{name} = {buckets} is no list: write ({buckets},)")
    ordered = tuple(sorted(set(buckets)))
    if not ordered or ordered[-1] != limit:
        raise ConfigError(f"{name} = {tuple(buckets)} must end with the length {limit}")
    return ordered


def smallest_that_fits(size: int, sizes: Sequence[int]) -> int:
    """The first of the ascending `sizes` that is at least `size`, or the last one."""
    return next((option for option in sizes if option >= size), sizes[-1])


def in_buckets(
    lengths: Sequence[int], buckets: Sequence[int], batch_sizes: Sequence[int]
) -> list[tuple[int, int, list[int]]]:
    """Groups rows into batches of few shapes.

    Args:
      lengths: of each row.
      buckets: ascending lengths to pad to; the last one fits every row.
      batch_sizes: ascending numbers of rows to pad to.

    Returns:
      `(padded length, padded number of rows, row indices)` per batch. Every row is in one.
    """
    by_bucket: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_bucket.setdefault(smallest_that_fits(length, buckets), []).append(i)
    batches = []
    for bucket, members in sorted(by_bucket.items()):
        for start in range(0, len(members), batch_sizes[-1]):
            part = members[start : start + batch_sizes[-1]]
            batches.append((bucket, smallest_that_fits(len(part), batch_sizes), part))
    return batches

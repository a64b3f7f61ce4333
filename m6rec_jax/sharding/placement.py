"""Where variables and batches live: trees of `NamedSharding`, and putting arrays there."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.sharding.rules import LOGICAL_AXES, LogicalRules, MeshAxes

logger = logging.getLogger(__name__)


def variable_shardings(variables: Any, mesh: Mesh, rules: LogicalRules) -> Any:
    """A sharding for every leaf of a tree of variables.

    A dimension that its mesh axes do not divide is copied to every device, with a warning.

    Args:
      variables: arrays or `jax.ShapeDtypeStruct`s, boxed with their logical axis names as
        `model.init` (or `jax.eval_shape` of it, or an optimizer's `init` over it) gives them.
        Leaves without names, or whose names do not fit their rank (factored optimizer state), are
        replicated.
      mesh: of `make_mesh`.
      rules: of `sharding.rules`.

    Returns:
      The tree without boxes, a `NamedSharding` per leaf.

    Raises:
      ConfigError: rules that name a mesh axis or a logical axis which does not exist.
    """
    _check_rules(rules, mesh)
    uneven: dict[str, list[str]] = {}  # axes that do not divide → arrays

    def place(path: Any, leaf: Any) -> Any:
        value = _unboxed(leaf)
        if not jax.tree.leaves(value):
            return value
        names = leaf.names if _is_named(leaf) else ()
        if len(names) != value.ndim:
            return NamedSharding(mesh, PartitionSpec())
        array = f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(value.shape)}"
        axes: list[MeshAxes] = []
        spec = nn.logical_to_mesh_axes(tuple(names), tuple(rules)) or PartitionSpec()
        for size, logical, mesh_axes in zip(value.shape, names, spec, strict=True):
            parts = math.prod(mesh.shape[axis] for axis in _as_tuple(mesh_axes))
            axes.append(None if size % parts else mesh_axes)
            # 1: a stand-in, such as Adafactor's where it does not factor
            if size % parts and size > 1:
                axis = (
                    f"axis {logical!r} of {size} is not divisible by the {parts} parts of mesh "
                    f"axis {mesh_axes!r}"
                )
                uneven.setdefault(axis, []).append(array)
        return NamedSharding(mesh, PartitionSpec(*axes))

    placed = jax.tree_util.tree_map_with_path(place, variables, is_leaf=_is_named)
    for axis, arrays in uneven.items():
        logger.warning("%s; replicated instead in %s", axis, ", ".join(arrays))
    return placed


def unboxed_shapes(variables: Any) -> Any:
    """The tree without boxes, each leaf a `jax.ShapeDtypeStruct`."""
    plain = jax.tree.map(_unboxed, variables, is_leaf=_is_named)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), plain)


def placed_shapes(variables: Any, mesh: Mesh, rules: LogicalRules) -> Any:
    """`unboxed_shapes` with the shardings that `variable_shardings` gives; raises as that."""
    return jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding),
        unboxed_shapes(variables),
        variable_shardings(variables, mesh, rules),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Examples over data and fsdp, after `leading` axes that are not split (accumulation steps)."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, ("data", "fsdp")))


def check_rows(rows: int, mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Raises ConfigError unless a global batch divides over its devices, in every accumulation
    step.
    """
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = shares * accumulation_steps
    if parts < 1 or rows % parts:
        raise ConfigError(
            f"BATCH_SIZE = {rows} does not divide into {parts} parts: {shares} "
            f"{'device shares' if shares == 1 else 'devices share'} the batch (data = "
            f"{mesh.shape['data']}, fsdp = {mesh.shape['fsdp']}) in {accumulation_steps} "
            "accumulation steps. Change BATCH_SIZE, ACCUMULATION_STEPS or make_mesh"
        )


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, *, leading: int = 0
) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on the mesh, as one global array per feature.

    Args:
      batch: each `[rows, ...]` (after `leading` axes). Each process gives its own, equally many
        rows, and the global batch is all of them in the mesh's order; processes of one stream
        (`batch_reader`) give the same rows.
      mesh: of `make_mesh`.
      leading: as in `batch_sharding`.

    Raises:
      ConfigError: the rows do not divide into this process's parts of the batch.
    """
    sharding = batch_sharding(mesh, leading=leading)
    local_parts = len(_parts_of_processes(mesh)[jax.process_index()])
    placed = {}
    for name, values in batch.items():
        rows = values.shape[leading]
        if rows % local_parts:
            raise ConfigError(
                f"feature {name!r} has {rows} rows on this process, which its {local_parts} parts "
                f"of the batch (mesh: data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']}) do not "
                "divide; change BATCH_SIZE or make_mesh"
            )
        placed[name] = jax.make_array_from_process_local_data(sharding, np.asarray(values))
    return placed


def place_shared_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch that every process has whole on the mesh, each its devices' part of it.

    Unlike after `place_batch`, row i of the global batch is row i of `batch`, each `[rows, ...]`,
    as many as `Runtime.batch_sizes` allows.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(rows.shape, sharding, rows.__getitem__)
        for name, rows in ((name, np.asarray(values)) for name, values in batch.items())
    }


def batch_reader(mesh: Mesh) -> tuple[int, int]:
    """Which stream of rows this process reads: (index, number of streams).

    One stream per process, unless `tensor` spans processes: those then read the same stream.

    Raises:
      ConfigError: the mesh gives two processes some rows in common and others not.
    """
    parts = _parts_of_processes(mesh)
    streams = sorted(set(parts.values()), key=min)
    if len(frozenset().union(*streams)) != sum(map(len, streams)):
        raise ConfigError(
            f"mesh {dict(mesh.shape)} over {len(parts)} processes splits the batch so that two "
            "processes share only some of their rows; let tensor divide, or be a multiple of, the "
            "devices of a process"
        )
    return streams.index(parts[jax.process_index()]), len(streams)


def leads_stream(mesh: Mesh) -> bool:
    """Whether no process before this one reads the same rows (see `batch_reader`)."""
    parts, own = _parts_of_processes(mesh), jax.process_index()
    return own == min(process for process, held in parts.items() if held == parts[own])


def _parts_of_processes(mesh: Mesh) -> dict[int, frozenset[int]]:
    """For each process, the parts of the batch (of data · fsdp) that its devices hold."""
    by_part = mesh.devices.reshape(-1, mesh.shape["tensor"])
    parts: dict[int, set[int]] = {}
    for part, devices in enumerate(by_part):
        for device in devices:
            parts.setdefault(device.process_index, set()).add(part)
    return {process: frozenset(held) for process, held in parts.items()}


def _is_named(leaf: Any) -> bool:
    return isinstance(leaf, meta.Partitioned)


def _unboxed(leaf: Any) -> Any:
    """What is in a box: an array, or nothing (`optax.MaskedNode`) of what an optimizer masks."""
    return leaf.unbox(apply_constraint=False) if _is_named(leaf) else leaf


def _check_rules(rules: LogicalRules, mesh: Mesh) -> None:
    for logical, mesh_axes in rules:
        if logical not in LOGICAL_AXES:
            raise ConfigError(
                f"sharding rule {logical!r} -> {mesh_axes!r} splits nothing: no variable or "
                f"activation has that logical axis (there are {', '.join(LOGICAL_AXES)})"
                f"{did_you_mean(logical, LOGICAL_AXES)}"
            )
        if missing := set(_as_tuple(mesh_axes)) - mesh.shape.keys():
            raise ConfigError(
                f"sharding rule {logical!r} -> {mesh_axes!r} names mesh axis {min(missing)!r}; the "
                f"mesh has {', '.join(map(repr, mesh.shape))}"
            )


def _as_tuple(mesh_axes: MeshAxes) -> tuple[str, ...]:
    if mesh_axes is None:
        return ()
    return (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes)

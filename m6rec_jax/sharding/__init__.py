"""Device mesh, logical-axis rules, and where every array lives."""

from m6rec_jax.sharding.compiler_options import compiler_options
from m6rec_jax.sharding.mesh import MESH_AXES, make_mesh
from m6rec_jax.sharding.placement import (
    batch_reader,
    batch_sharding,
    check_rows,
    place_batch,
    place_shared_batch,
    placed_shapes,
    replicated,
    unboxed_shapes,
    variable_shardings,
)
from m6rec_jax.sharding.rules import (
    LogicalRules,
    axis_rules,
    data_parallel,
    fully_sharded,
    fully_sharded_2d,
)

__all__ = [
    "MESH_AXES",
    "LogicalRules",
    "axis_rules",
    "batch_reader",
    "batch_sharding",
    "check_rows",
    "compiler_options",
    "data_parallel",
    "fully_sharded",
    "fully_sharded_2d",
    "make_mesh",
    "place_batch",
    "place_shared_batch",
    "placed_shapes",
    "replicated",
    "unboxed_shapes",
    "variable_shardings",
]

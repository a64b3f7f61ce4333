"""How large parameters are while they train: what grows without bound shows before it does harm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from m6rec_jax.checkpoints.trees import PyTree, flatten
from m6rec_jax.sharding import replicated

PREFIX = "parameter_rms/"


def parameter_sizes(groups: PyTree, mesh: Mesh) -> dict[str, float]:
    """Root mean square of every leaf, `parameter_rms/<name>`, computed where the leaves lie.

    A stack of layers, or a bank of tasks, is one leaf.

    Args:
      groups: trees of what trains, sharded over `mesh`. Every process has to call.
      mesh: of the run.
    """
    sizes = jax.jit(_root_mean_squares, out_shardings=replicated(mesh))(groups)
    return {PREFIX + name: float(x) for name, x in flatten(jax.device_get(sizes)).items()}


# Of the module, not of the call: jax.jit keeps what it compiled by the function.
def _root_mean_squares(groups: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))), groups)

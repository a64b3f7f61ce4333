"""Run with 8 virtual CPU devices: saves on one mesh, restores on others, compares everything."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.checkpoints.fingerprint import checksums, fingerprint
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.trees import flatten


def mesh_of(count: int, fsdp: int) -> Any:
    return jax.make_mesh(
        (count // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[:count],
    )


def placed(tree: Any, mesh: Any) -> Any:
    def sharding(x: Any) -> NamedSharding:
        split = x.ndim and x.shape[0] % mesh.shape["fsdp"] == 0
        return NamedSharding(mesh, PartitionSpec("fsdp") if split else PartitionSpec())

    return jax.tree.map(lambda x: jax.device_put(x, sharding(x)), tree)


def main(folder: Path) -> None:
    assert jax.device_count() == 8
    params = {
        "kernel": jax.random.normal(jax.random.key(0), (64, 24)),
        "half": jax.random.normal(jax.random.key(1), (16,)).astype(jnp.bfloat16),
        "odd": jnp.arange(7.0),
    }
    prompts = {"soft": jax.random.normal(jax.random.key(2), (8, 4))}
    optimizer = optax.adamw(1e-3).init({"prompts": prompts})
    trees = {"params": params, "prompts": prompts, "optimizer": optimizer}
    meshes = {"1": mesh_of(1, 1), "fsdp8": mesh_of(8, 8), "data2 fsdp4": mesh_of(8, 4)}
    for saved_on, mesh in meshes.items():
        here = placed(trees, mesh)
        assert fingerprint(here) == fingerprint(trees), saved_on
        assert checksums(flatten(here)) == checksums(flatten(trees)), saved_on
        for frozen in ((), ("params",)):
            root = folder / f"{saved_on}-{len(frozen)}"
            with CheckpointStore(root) as store:
                store.save(1, here, data={}, run=RunDescription(), frozen=frozen)
            checkpoint = open_checkpoint(root)
            for restored_on, other in meshes.items():
                target = placed(trees, other)
                restored = {item: checkpoint.restore(item, target[item]) for item in target}
                for name, leaf in flatten(restored).items():
                    wanted = flatten(target)[name]
                    assert leaf.sharding == wanted.sharding, (saved_on, restored_on, name)
                    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted))
    print(json.dumps({"all": "equal"}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Run twice by test_sharding.py, `two_processes.py INDEX PORT`: 2 processes with 4 devices each."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.errors import ConfigError
from m6rec_jax.sharding import batch_reader, make_mesh, place_batch, place_shared_batch
from m6rec_jax.sharding.processes import sum_over_processes

ROWS = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)


def main(index: int, port: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    found: dict[str, object] = {}
    # In the first mesh each process has rows of its own; in the second `tensor` spans both.
    for name, sizes in (("apart", {"fsdp": 4, "tensor": 2}), ("together", {"tensor": 8})):
        mesh = make_mesh(**sizes)
        stream, streams = batch_reader(mesh)
        rows = ROWS[stream * 16 // streams : (stream + 1) * 16 // streams]
        placed = place_batch({"rows": rows}, mesh)["rows"]
        weights = jnp.arange(16.0)[:, None]
        with jax.set_mesh(mesh):
            total = jax.jit(lambda rows, weights: jnp.sum(rows * weights))(placed, weights)
        found[name] = [stream, streams, list(placed.shape), float(total)]
    # Rows that both processes have keep their places, though process 0's devices stand last.
    mesh = make_mesh(data=8, devices=jax.devices()[::-1])
    placed = place_shared_batch({"rows": ROWS}, mesh)["rows"]
    with jax.set_mesh(mesh):
        total = jax.jit(lambda rows, weights: jnp.sum(rows * weights))(placed, weights)
    found["shared"] = [list(placed.shape), float(total)]
    found["sums"] = sum_over_processes(index, 10)
    # Devices in an order that gives the two processes one part of the batch in common.
    devices = jax.devices()
    mixed = [*devices[:3], devices[4], devices[3], *devices[5:]]
    try:
        batch_reader(make_mesh(data=4, tensor=2, devices=mixed))
        found["mixed"] = "accepted"
    except ConfigError as error:
        found["mixed"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

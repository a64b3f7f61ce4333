"""Run twice by test_several_devices.py: 2 processes with 2 devices each; prints one JSON object.

python tests/engine/two_processes.py VOCABULARY INDEX PORT

The mesh does not have the devices of process 0 first, as those of TPU slices need not be.
"""

import json
import sys

import jax

from m6rec_jax.sharding import fully_sharded_2d, make_mesh
from m6rec_jax.text.vocabulary import Vocabulary
from tests.engine.eight_devices import answers, make_model


def main(vocabulary_file: str, index: int, port: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    vocabulary = Vocabulary(vocabulary_file)
    model, variables = make_model(vocabulary)
    a, b, c, d = jax.devices()
    mesh = make_mesh(1, 2, 2, devices=[c, d, a, b])
    print(json.dumps(answers(model, variables, vocabulary, mesh, fully_sharded_2d())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

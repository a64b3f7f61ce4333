"""Run twice by test_several_devices.py: 2 processes with 2 devices each; prints one JSON object.

python tests/engine/two_processes.py VOCABULARY INDEX PORT

No mesh has the devices of process 0 first and together, as those of TPU slices need not.
"""

import json
import sys

import jax

from m6rec_jax.sharding import data_parallel, fully_sharded_2d, make_mesh
from m6rec_jax.text.vocabulary import Vocabulary
from tests.engine.eight_devices import answers, make_model


def main(vocabulary_file: str, index: int, port: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    vocabulary = Vocabulary(vocabulary_file)
    model, variables = make_model(vocabulary)
    a, b, c, d = jax.devices()
    found = {
        name: answers(model, variables, vocabulary, mesh, rules)
        for name, mesh, rules in (
            ("data_parallel", make_mesh(4, 1, 1, devices=[c, a, d, b]), data_parallel()),
            ("fully_sharded_2d", make_mesh(1, 2, 2, devices=[c, d, a, b]), fully_sharded_2d()),
        )
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

"""One process of a run of several on this machine.

python tests/training/one_of_many.py PORT COUNT INDEX MODEL_DIR STEPS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax


def main() -> None:
    port, count, index = map(int, sys.argv[1:4])
    folder, steps = Path(sys.argv[4]), int(sys.argv[5])
    jax.distributed.initialize(f"localhost:{port}", count, index)
    from tests.training.toy_run import toy_train

    result, batches = toy_train(
        folder, steps, trainable="prompts", accumulation_steps=2, eval_period=steps
    )
    assert jax.process_count() == count
    assert jax.device_count() == count
    print(
        json.dumps(
            {
                "step": result.step,
                "loss": result.metrics["loss"],
                "shards": list(batches.shards),
                "batches": batches.num_batches,
            }
        )
    )


if __name__ == "__main__":
    main()

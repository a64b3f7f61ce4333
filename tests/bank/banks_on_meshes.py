"""Run twice by test_meshes.py: 2 processes with 2 devices each; prints one JSON object.

python tests/bank/banks_on_meshes.py BANK BACKBONE INDEX PORT
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from m6rec_jax.bank.loading import load_bank
from m6rec_jax.sharding import LogicalRules, fully_sharded_2d, make_mesh
from tests.bank.conftest import ROOM
from tests.pipeline import shop_rows

EXAMPLES = shop_rows.rows_of("test")["groups"][:4]
HISTORIES = [example["history"] for example in EXAMPLES]
CANDIDATES = [example["candidates"][:2] for example in EXAMPLES]


def answers(bank: str | Path, backbone: str | Path, mesh: Mesh | None, rules: LogicalRules) -> Any:
    """Of tasks that were there at first, that came together and that came alone."""
    loaded = load_bank(
        bank, backbone, tasks=["ctr", "stars"], capacity=ROOM, mesh=mesh, rules=rules
    )
    shapes: dict[str, Any] = {"batch_sizes": (5,)}  # which no mesh divides
    loaded = loaded.with_tasks("next", "titles").with_tasks("genres")
    scorer, retriever = loaded.scorer(**shapes), loaded.retriever(**shapes)
    tasks = ("ctr", "stars", "genres", "ctr")
    return {
        "probabilities": [
            row.tolist() for row in scorer.score_requests(HISTORIES, CANDIDATES, tasks)
        ],
        "users": retriever.embed_users(HISTORIES, ["next"] * 4).tolist(),
    }


def main(bank: str, backbone: str, index: str, port: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(index))
    # As on slices of TPUs, the devices of process 0 are not first.
    a, b, c, d = jax.devices()
    mesh = make_mesh(1, 2, 2, devices=[c, d, a, b])
    print(json.dumps(answers(bank, backbone, mesh, fully_sharded_2d())))


if __name__ == "__main__":
    main(*sys.argv[1:])

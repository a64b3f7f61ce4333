"""Run by test_sharded.py in a process with 8 virtual CPU devices; prints one JSON object.

python tests/server/eight_devices.py FOLDER: what a server answers whose model is split in all ways
that there are, how many programs were compiled after it was ready, and into how many parts the most
divided parameter is split.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
from fastapi.testclient import TestClient

from m6rec_jax.server.app import make_app
from m6rec_jax.server.metrics import PROGRAMS
from m6rec_jax.sharding import fully_sharded_2d, make_mesh
from tests.server import served
from tests.server.served import request


def answers(client: TestClient) -> dict[str, Any]:
    """Of all jobs, for two users and histories of several lengths."""
    found: dict[str, Any] = {}
    for number in (3, 5):
        row = request(number)
        without_candidates = {name: value for name, value in row.items() if name != "candidates"}
        rows = {"score": row, "write": row}
        for name, path, more in (
            ("score", "score", {"task": "ctr"}),
            ("likelihood", "score", {"task": "plausible"}),
            ("retrieve", "retrieve", {}),
            ("recommend", "recommend", {}),
            ("titles", "recommend", {"task": "contents", "by": "titles"}),
            ("write", "write", {"task": "titles"}),
        ):
            response = client.post(
                f"/v1/{path}", json=rows.get(path, without_candidates | {"k": 3}) | more
            )
            assert response.status_code == 200, (name, response.text)
            answer = response.json()
            found[f"{name} {number}"] = answer.get("items", answer.get("texts"))
    message = {"role": "user", "content": "Film A"}
    for path, body in (
        ("embeddings", {"model": "next", "input": ["user, likes comedy"] * 3}),
        ("chat/completions", {"model": "m6rec", "messages": [message]}),
        ("completions", {"model": "titles", "prompt": "user, likes comedy", "max_tokens": 8}),
    ):
        response = client.post(f"/v1/{path}", json=body)
        assert response.status_code == 200, (path, response.text)
        answer = response.json()
        found[path] = answer.get("data", answer.get("choices"))
    return found


def main(folder: Path) -> None:
    os.environ["M6REC_DATA_DIR"] = str(folder / "cache")
    mesh = make_mesh(2, 2, 2)
    service = served.open_service(folder, mesh=mesh, rules=fully_sharded_2d(), batch_sizes=(8,))
    server = served.make_server(service, folder)
    programs = PROGRAMS.made
    found: dict[str, Any] = {
        "answers": answers(TestClient(make_app(server), raise_server_exceptions=False))
    }
    found["compiled"] = PROGRAMS.made - programs
    found["parts"] = max(
        len({str(shard.index) for shard in leaf.addressable_shards})
        for leaf in jax.tree.leaves(service.model.variables["params"])
    )
    server.scheduler.close(10)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

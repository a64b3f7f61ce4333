"""What `m6rec edge bench` measures of an export for devices: held-out requests, in this process."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from m6rec_jax.export.device_client import HELD_OUT, EdgeModel
from m6rec_jax.export.edge_bench import milliseconds

# Of each kind, at most.
_REQUESTS = 40


def _measure(folder: Path, threads: int) -> dict[str, float]:
    begin = time.perf_counter()
    model = EdgeModel(folder, threads)
    row = {"threads": threads, "start_milliseconds": 1000 * (time.perf_counter() - begin)}
    asked = json.loads((folder / HELD_OUT).read_text("utf-8"))
    kinds = {
        kind: [one for one in asked if one["signature"] == kind][:_REQUESTS]
        for kind in ("score", "user", "generate")
    }
    for one in kinds["score"]:
        history, texts, task = one["inputs"]["history"], one["inputs"]["candidates"], one["task"]
        # As many as are scored at a time, so that none is padding.
        texts = (list(texts) * model.manifest["candidates"])[: model.manifest["candidates"]]
        one["cold"] = milliseconds(partial(model.score, history, texts, task), model.forget)
        one["warm"] = milliseconds(partial(model.score, history, texts, task))
        one["count"] = len(texts)
    if kinds["score"]:
        warm = statistics.median(one["warm"] for one in kinds["score"])
        cold = statistics.median(one["cold"] for one in kinds["score"])
        row["history_milliseconds"] = cold - warm
        row["candidate_milliseconds"] = warm / kinds["score"][0]["count"]
    if kinds["user"]:
        row["user_milliseconds"] = statistics.median(
            milliseconds(partial(model.user, one["inputs"]["history"], one["task"]))
            for one in kinds["user"]
        )
    if kinds["generate"]:
        row["token_milliseconds"] = statistics.median(
            milliseconds(partial(model.write, **one["inputs"], task=one["task"])) / model.num_steps
            for one in kinds["generate"][: _REQUESTS // 10]
        )
    row["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]))))

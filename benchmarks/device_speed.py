"""How fast a LiteRT export, a packed file or a run is on one thread of this machine.

    python -m benchmarks.device_speed exported/phone      # or: ctr.m6rec

Prints JSON: milliseconds to start, to encode a history, and for a candidate of a history that was
encoded before, the fastest of a few turns; of an export those of its held-out requests, of others
those of random tokens. Memory is the process's.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.provenance import ROOT
from m6rec_jax.engine.candidates.scoring import positive_probability, read_log_probabilities
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.export.device_client import HELD_OUT, MANIFEST, EdgeModel

_TURNS, _REQUESTS = 5, 40
_CANDIDATES, _CANDIDATE_LENGTH = 8, 16
_FIRST_WORD = 300  # ids below are bytes and special ones, for which nothing else is done either


def measured(path: Path) -> dict[str, float]:
    """Runs this script in a process of its own, whose start and memory are then the model's."""
    command = [sys.executable, "-m", "benchmarks.device_speed", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def fastest(ask: Callable[[], Any], before: Callable[[], Any] | None = None) -> float:
    """Milliseconds."""
    times = []
    for _ in range(_TURNS):
        if before is not None:
            before()
        begin = time.perf_counter()
        jax.block_until_ready(ask())
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def of_export(folder: Path) -> dict[str, float]:
    """Of the task of scoring of a LiteRT export."""
    begin = time.perf_counter()
    model = EdgeModel(folder, 1)
    start = 1000 * (time.perf_counter() - begin)
    rows = [
        row for row in json.loads((folder / HELD_OUT).read_text()) if row["signature"] == "score"
    ]
    number, cold, warm = model.manifest["candidates"], [], []
    for row in rows[:_REQUESTS]:
        # As many as are scored at a time, so that none is padding.
        texts = (row["inputs"]["candidates"] * number)[:number]
        ask = partial(model.score, row["inputs"]["history"], texts, row["task"])
        cold.append(fastest(ask, model.forget))
        warm.append(fastest(ask))
    candidates = statistics.median(warm)
    return {
        "start_milliseconds": start,
        "history_milliseconds": statistics.median(cold) - candidates,
        "candidate_milliseconds": candidates / number,
    }


def of_model(path: Path) -> dict[str, float]:
    """Of the scorer of a packed file or a run: eight candidates of one history."""
    begin = time.perf_counter()
    # XLA has a thread for each core that it finds when it starts.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    loaded = load_model(path)
    start = 1000 * (time.perf_counter() - begin)
    model, settings = loaded.model, loaded.settings
    first = min(_FIRST_WORD, model.config.vocab_size // 2)
    rng = np.random.default_rng(0)
    source = jnp.asarray(rng.integers(first, model.config.vocab_size, (1, settings.source_length)))
    length = min(_CANDIDATE_LENGTH, settings.target_length)
    texts = jnp.asarray(rng.integers(first, model.config.vocab_size, (_CANDIDATES, length)))
    tasks = jnp.zeros((_CANDIDATES, 1), jnp.int32)

    def encode(variables: Any) -> Any:
        return model.apply(variables, source, jnp.ones_like(source), tasks[:1], method=model.encode)

    def score(variables: Any, encoded: Any) -> Any:
        blocks = jnp.ones_like(texts)
        early = model.apply(variables, texts, blocks, tasks, method=model.decode_early)
        hidden = model.apply(variables, encoded, early, blocks, tasks, method=model.decode_late)
        found = read_log_probabilities(model, variables, hidden, tasks)
        return positive_probability(found, jnp.ones((_CANDIDATES, found.shape[-1])))

    encode, score = jax.jit(encode), jax.jit(score)
    encoded = encode(loaded.variables)
    jax.block_until_ready(score(loaded.variables, encoded))  # compiled by now
    return {
        "start_milliseconds": start,
        "history_milliseconds": fastest(lambda: encode(loaded.variables)),
        "candidate_milliseconds": fastest(lambda: score(loaded.variables, encoded)) / _CANDIDATES,
    }


if __name__ == "__main__":
    model_path = Path(sys.argv[1])
    is_export = (model_path / MANIFEST).is_file()
    figures = of_export(model_path) if is_export else of_model(model_path)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, "resident_mib": memory}))

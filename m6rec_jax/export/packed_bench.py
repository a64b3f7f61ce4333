"""What `m6rec edge bench` measures of a packed file: random tokens, in this process.

As a LiteRT export does, it encodes a full history once, and then scores eight candidates of it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.candidates.early_exit import exiting_scores
from m6rec_jax.engine.candidates.scoring import positive_probability, read_log_probabilities
from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.task_settings import NEVER
from m6rec_jax.export.edge_bench import milliseconds

CANDIDATES = 8
_CANDIDATE_LENGTH = 16
_FIRST_WORD = 300  # ids below are bytes and special ones, for which nothing else is done either


def measure(path: Path, threads: int) -> dict[str, float]:
    """One row of `edge_bench.bench`."""
    begin = time.perf_counter()
    # XLA has a thread for each core that it finds when it starts.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    model = load_model(path)
    row = {
        "threads": len(os.sched_getaffinity(0)),
        "start_milliseconds": 1000 * (time.perf_counter() - begin),
    }
    programs = _Programs(model)
    begin = time.perf_counter()
    encoded = programs.encode()
    kinds = {own.kind for own in model.settings.tasks.values()}
    if "scoring" in kinds:
        jax.block_until_ready(programs.score(encoded))
    row["first_milliseconds"] = 1000 * (time.perf_counter() - begin)
    row["history_milliseconds"] = _timed(programs.encode)
    if "scoring" in kinds:
        row["candidate_milliseconds"] = _timed(programs.score, encoded) / CANDIDATES
        config = model.model.config
        for depth in (1, 2) if config.exit_losses != "none" else ():
            name = f"candidate_milliseconds_{depth}_layer{'s' * (depth > 1)}"
            row[name] = _timed(programs.score_at, encoded, jnp.int32(depth)) / CANDIDATES
    if "retrieval" in kinds:
        row["user_milliseconds"] = _timed(programs.user)
    if "generation" in kinds:
        cache = programs.start(encoded)
        row["token_milliseconds"] = _timed(programs.step, cache)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables))
    row["weights_mib"] = weights / 2**20
    row["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def _timed(program: Callable[..., Any], *arguments: Any) -> float:
    run = partial(program, *arguments)
    jax.block_until_ready(run())  # compiled by now
    return milliseconds(lambda: jax.block_until_ready(run()))


class _Programs:
    """Compiled functions of one history, all of whose tokens are there."""

    def __init__(self, model: LoadedModel) -> None:
        config, self._model = model.model.config, model.model
        rng = np.random.default_rng(0)
        first = min(_FIRST_WORD, config.vocab_size // 2)

        def tokens(*shape: int) -> Any:
            return jnp.asarray(rng.integers(first, config.vocab_size, shape), jnp.int32)

        target_length = model.settings.target_length
        self._source = tokens(1, model.settings.source_length)
        self._candidates = tokens(CANDIDATES, min(_CANDIDATE_LENGTH, target_length))
        self._length = target_length - 1
        self.score, self.score_at = (
            partial(jax.jit(one), model.variables) for one in (self._score, self._score_at)
        )
        self.user = partial(jax.jit(self._user), model.variables, self._source)
        self.encode = partial(jax.jit(self._encode), model.variables, self._source)
        self.start = partial(jax.jit(self._start), model.variables)
        self.step = partial(jax.jit(self._step), model.variables)

    @property
    def _tasks(self) -> Any:
        return jnp.zeros((CANDIDATES, 1), jnp.int32)

    def _encode(self, variables: Any, source: Any) -> Any:
        ones, task = jnp.ones_like(source), self._tasks[:1]
        return self._model.apply(variables, source, ones, task, method=self._model.encode)

    def _early(self, variables: Any) -> tuple[Any, Any]:
        tokens = self._candidates
        blocks = jnp.ones_like(tokens)
        method = self._model.decode_early
        return self._model.apply(variables, tokens, blocks, self._tasks, method=method), blocks

    def _read(self, variables: Any, hidden: Any) -> Any:
        found = read_log_probabilities(self._model, variables, hidden, self._tasks)
        return positive_probability(found, jnp.ones((CANDIDATES, found.shape[-1])))

    def _score(self, variables: Any, encoded: Any) -> Any:
        early, blocks = self._early(variables)
        method = self._model.decode_late
        hidden = self._model.apply(variables, encoded, early, blocks, self._tasks, method=method)
        return self._read(variables, hidden)

    def _score_at(self, variables: Any, encoded: Any, depth: Any) -> Any:
        early, blocks = self._early(variables)
        features = {
            "decoder_block_ids": blocks,
            "task_ids": self._tasks,
            "exit_threshold": jnp.full((CANDIDATES, 1), NEVER),
            "exit_depth": jnp.broadcast_to(depth, (CANDIDATES, 1)),
        }
        read = partial(self._read, variables)
        return exiting_scores(self._model, variables, encoded, early, features, read).values

    def _user(self, variables: Any, source: Any) -> Any:
        encoded = self._encode(variables, source)
        method = self._model.user_embedding
        return self._model.apply(variables, encoded, self._tasks[:1], method=method)

    def _start(self, variables: Any, encoded: Any) -> Any:
        method, task = self._model.start_decoding, self._tasks[:1]
        return self._model.apply(variables, encoded, task, max_length=self._length, method=method)

    def _step(self, variables: Any, cache: Any) -> Any:
        model, token = self._model, self._candidates[0, :1]
        inputs = (cache, token, jnp.int32(0), self._tasks[:1])
        state, _ = model.apply(variables, *inputs, method=model.decode_step)
        return jnp.argmax(model.apply(variables, state, method=model.token_logits))


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))

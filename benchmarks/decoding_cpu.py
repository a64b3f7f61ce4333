"""Generation on a CPU: what laying weights out for single steps gains, and continuous batching.

    python -m benchmarks.decoding_cpu [--turns 5]

*Steps*: T5 1.1 small with random weights writes texts of a fixed length greedily, at batch 1 and
16, with float32 and bfloat16 products; its weights as training has them, and as
`model.decoding_layout` lays them out. Programs run in turns; a figure is that of the fastest turn.

*Arrivals*: a mini model with random weights is asked for texts of unlike lengths, which come at
random times. Batches are continuous (`engine.continuous_generation`), or static: the next one is
let in when every text of the one before has ended. Both run the same programs. Rows go to
`benchmarks/results/decoding_cpu.json`.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.command_line import errors_told
from benchmarks.efficiency import fastest
from benchmarks.results_file import Row, add_rows, results_path, told_rows
from m6rec_jax import configuration
from m6rec_jax.engine.constraints import AllowedTokens
from m6rec_jax.engine.continuous_generation import ContinuousGenerator
from m6rec_jax.engine.decoding import FREE, decode, model_step
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.generation_stream import GenerationStream
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.model.decoding_layout import for_decoding_on_cpu
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID, Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary

STEPS_FILE = "gin_configs/models/small.gin"
ARRIVALS_FILE = "gin_configs/models/mini.gin"
SOURCE_LENGTH = 64
BATCHES = (1, 16)
# Tokens of a text, of steps, and texts, of arrivals.
LENGTH, REQUESTS = 32, 64


def random_variables(model: M6Rec) -> Any:
    """Speed does not depend on what they are."""
    key = jax.random.key(0)
    init = jax.jit(lambda key: nn.meta.unbox(model.init(key, initial_features())))
    return init({"params": key, "prompts": key})


def greedy_program(model: M6Rec, length: int) -> Callable[..., Any]:
    """From variables, source `[batch, source]` to tokens `[batch, length]`; no text ends early."""
    vocab_size = model.config.vocab_size
    never_ends = jnp.ones((vocab_size,), bool).at[jnp.array([PAD_ID, EOS_ID])].set(False)

    def greedy(variables: Any, source: Any) -> Any:
        task_ids = jnp.zeros((len(source),), jnp.int32)
        encoded = model.apply(
            variables, source, jnp.ones_like(source), task_ids, method=model.encode
        )
        cache = model.apply(
            variables, encoded, task_ids, max_length=length, method=model.start_decoding
        )
        nothing = jnp.full((len(source), length), FREE, jnp.int32)
        step = model_step(model, variables, task_ids)
        return decode(step, cache, nothing, AllowedTokens(never_ends)).tokens

    return jax.jit(greedy)


def steps(
    config: ModelConfig, source_length: int, length: int
) -> dict[tuple[str, int, str], Callable[[], None]]:
    """By operands, batch and layout: a function that writes a batch of texts and waits for it."""
    found: dict[tuple[str, int, str], Callable[[], None]] = {}
    for operands in ("float32", "bfloat16"):
        model = M6Rec(config.replace(dtype="float32", matmul_dtype=operands))
        stacked = random_variables(model)
        laid_out = jax.jit(functools.partial(for_decoding_on_cpu, model.config))(stacked)

        compiled = greedy_program(model, length)
        for batch in BATCHES:
            rng = np.random.default_rng(0)
            source = rng.integers(3, config.vocab_size, (batch, source_length), np.int32)
            for layout, variables in (("as trained", stacked), ("laid out", laid_out)):

                def run(compiled: Any = compiled, arguments: Any = (variables, source)) -> None:
                    jax.block_until_ready(compiled(*arguments))

                found[operands, batch, layout] = run
    return found


def arrivals(
    generator: ContinuousGenerator,
    requests: Sequence[tuple[float, int]],
    segments: Sequence[str],
    *,
    static: bool,
) -> dict[str, float]:
    """Figures of requests that come at their times.

    Args:
      generator: warmed up; no text of it ends by itself.
      requests: when each comes, in seconds from the start, ascending, and its number of tokens.
      segments: the source of all.
      static: let the next ones in when all of those before have ended.
    """
    came, running = list(requests), list[tuple[float, GenerationStream]]()
    waiting: list[tuple[float, int]] = []
    seconds: list[float] = []
    started = time.perf_counter()
    while came or waiting or running:
        now = time.perf_counter() - started
        while came and came[0][0] <= now:
            waiting.append(came.pop(0))
        if not static or not running:
            room = generator.num_slots - len(running) if static else len(waiting)
            for at, tokens in waiting[:room]:
                running.append((at, generator.submit(segments, max_tokens=tokens)))
            waiting = waiting[room:]
        if not running:
            time.sleep(max(0.0, came[0][0] - now))
            continue
        generator.step()
        now = time.perf_counter() - started
        if not static or all(stream.finish_reason for _, stream in running):
            # Of a static batch no text is handed out before the last one has ended.
            seconds += [now - at for at, stream in running if stream.finish_reason]
            running = [one for one in running if not one[1].finish_reason]
    tokens = sum(number for _, number in requests)
    return {
        "tokens_per_second": tokens / (time.perf_counter() - started),
        "latency_p50_milliseconds": 1000 * statistics.median(seconds),
        "latency_p95_milliseconds": 1000 * float(np.quantile(seconds, 0.95)),
    }


def arrivals_study(
    generator: ContinuousGenerator, number: int, turns: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of both kinds of batches by split; medians over turns that alternate.

    Half of the texts are short and a few are long. They come all at once, or at random times at
    three quarters of the rate that continuous batches keep up with.
    """
    generator.warm_up()
    rng = np.random.default_rng(0)
    longest = generator.max_tokens
    lengths = np.minimum(2 + rng.geometric(4 / longest, number), longest).tolist()
    segments = ["a film of the year", "another one"]
    found: dict[str, dict[str, dict[str, float]]] = {}
    gaps = np.zeros(number)
    for split in ("at once", "arriving"):
        runs: dict[str, list[dict[str, float]]] = {"continuous": [], "static": []}
        requests = list(zip(np.cumsum(gaps).tolist(), lengths, strict=True))
        for _ in range(turns):
            for name, results in runs.items():
                results.append(arrivals(generator, requests, segments, static=name == "static"))
        found[split] = {
            name: {
                metric: statistics.median(run[metric] for run in results) for metric in results[0]
            }
            for name, results in runs.items()
        }
        rate = found[split]["continuous"]["tokens_per_second"]
        gaps = rng.exponential(sum(lengths) / number / (0.75 * rate), number)
    return found


def without_end(generator: ContinuousGenerator) -> ContinuousGenerator:
    """No text ends by itself: its length is what was asked for."""
    allowed = generator._any_text.allowed.at[EOS_ID].set(False)
    generator._any_text = AllowedTokens(allowed)
    return generator


def random_words(folder: Path) -> Vocabulary:
    """A vocabulary of no language."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    texts = [
        " ".join("".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(8))
        for _ in range(500)
    ]
    train_vocabulary(texts, folder / "words.model", size=1_000, split_by_whitespace=True)
    return Vocabulary(folder / "words.model")


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Time generation on a CPU.")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args(arguments)
    measured: list[Row] = []
    configuration.parse_config([STEPS_FILE], ["MODEL_DIR='unused'"])
    programs = steps(ModelConfig(), SOURCE_LENGTH, LENGTH)
    seconds = fastest(programs, options.turns)
    for operands in ("float32", "bfloat16"):
        for batch in BATCHES:
            figures = {
                layout: {
                    "step_milliseconds": 1000 * seconds[operands, batch, layout] / LENGTH,
                    "times_faster": seconds[operands, batch, "as trained"]
                    / seconds[operands, batch, layout],
                }
                for layout in ("as trained", "laid out")
            }
            measured += told_rows(
                figures,
                dataset="random histories",
                split=f"{operands}, batch {batch}",
                seed=None,
                gin_file=STEPS_FILE,
            )
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = random_words(Path(folder))
        configuration.parse_config([ARRIVALS_FILE], ["MODEL_DIR='unused'"])
        model = M6Rec(ModelConfig())
        generator = without_end(
            ContinuousGenerator(
                model,
                random_variables(model),
                vocabulary,
                EngineOptions(SOURCE_LENGTH, 64, source_buckets=(SOURCE_LENGTH,)),
                join_sizes=(1, 4, 16),
            )
        )
        for split, of_kinds in arrivals_study(generator, REQUESTS, options.turns).items():
            measured += told_rows(
                of_kinds,
                dataset="random requests",
                split=split,
                seed=None,
                gin_file=ARRIVALS_FILE,
            )
    add_rows(results_path("decoding_cpu"), measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())

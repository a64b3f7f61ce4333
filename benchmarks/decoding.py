"""What the cache saves: tokens per second of generation with it and without, in one run.

    python -m benchmarks.decoding [--gin_file FILE] [--turns 5] [--batch 16] [--length 48]

Builds the model of a gin file with random weights (speed does not depend on them), encodes random
histories and writes texts of the full length, as no `[EOS]` is allowed: greedily, and by beam
search. Without a cache each step decodes everything written so far, as training does.

All programs run in turns, so that what else the machine does meets all of them; a figure is the
fastest turn. Rows go to `benchmarks/results/decoding.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.command_line import errors_told
from benchmarks.efficiency import fastest
from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax import configuration
from m6rec_jax.engine.beam_search import beam_search
from m6rec_jax.engine.constraints import AllowedTokens
from m6rec_jax.engine.decoding import Step, decode, model_step
from m6rec_jax.model import Encoded, M6Rec, ModelConfig
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID

GIN_FILE = "gin_configs/examples/movielens_pretrain.gin"
NUM_BEAMS = 4


class Uncached(NamedTuple):
    """Nothing but the tokens so far, in place of a cache.

    Attributes:
      tokens: int32 `[rows, length]`, inputs.
      encoded: the source of every row.
    """

    tokens: Any
    encoded: Encoded

    def take_rows(self, rows: Any) -> Uncached:
        """See `beam_search.ReorderedCache`."""
        return self._replace(tokens=self.tokens[rows])


def without_cache(encoded: Encoded, length: int, rows_per_source: int = 1) -> Uncached:
    """In place of `M6Rec.start_decoding`."""
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, rows_per_source, axis=0), encoded)
    return Uncached(jnp.zeros((many.mask.shape[0], length), jnp.int32), many)


def uncached_step(model: M6Rec, variables: Mapping[str, Any], task_ids: Any) -> Step:
    """In place of `model_step`: decodes everything written so far; task_ids `[rows]`."""

    def step(cache: Uncached, tokens: Any, position: Any) -> tuple[Any, Uncached]:
        inputs = cache.tokens.at[:, position].set(tokens)
        blocks = jnp.broadcast_to(jnp.arange(inputs.shape[1]) <= position, inputs.shape)
        hidden: Any = model.apply(
            variables,
            cache.encoded,
            inputs,
            blocks.astype(jnp.int32),
            task_ids,
            method=model.decode,
        )
        logits = model.apply(variables, hidden[:, position], method=model.token_logits)
        return logits, cache._replace(tokens=inputs)

    return step


def programs(
    config: ModelConfig, batch: int, source_length: int, length: int
) -> dict[str, tuple[Callable[[], None], int]]:
    """By name: a function that writes texts and waits for them, and how many tokens it writes."""
    model = M6Rec(config)
    key = jax.random.key(0)
    init = jax.jit(lambda key: nn.meta.unbox(model.init(key, initial_features())))
    variables = init({"params": key, "prompts": key})
    source = np.random.default_rng(0).integers(3, config.vocab_size, (batch, source_length))
    task_ids = jnp.zeros((batch,), jnp.int32)
    never_ends = jnp.ones((config.vocab_size,), bool).at[jnp.array([PAD_ID, EOS_ID])].set(False)
    constraint = AllowedTokens(never_ends)
    encoded = jax.jit(lambda *args: model.apply(*args, method=model.encode))(
        variables, jnp.asarray(source, jnp.int32), jnp.ones_like(source, jnp.int32), task_ids
    )
    prefix_ids = jnp.zeros((batch, length), jnp.int32)

    def start(variables: Any, encoded: Encoded, num_beams: int, cached: bool) -> tuple[Step, Any]:
        if not cached:
            ids = jnp.repeat(task_ids, num_beams)
            return uncached_step(model, variables, ids), without_cache(encoded, length, num_beams)
        cache = model.apply(
            variables,
            encoded,
            task_ids,
            max_length=length,
            rows_per_source=num_beams,
            method=model.start_decoding,
        )
        return model_step(model, variables, task_ids), cache

    def greedy(variables: Any, encoded: Encoded, cached: bool) -> Any:
        step, cache = start(variables, encoded, 1, cached)
        return decode(step, cache, prefix_ids, constraint).tokens

    def beams(variables: Any, encoded: Encoded, cached: bool) -> Any:
        step, cache = start(variables, encoded, NUM_BEAMS, cached)
        return beam_search(step, cache, prefix_ids, constraint, num_beams=NUM_BEAMS).tokens

    found: dict[str, tuple[Callable[[], None], int]] = {}
    for name, function, rows in (
        ("greedy", greedy, batch),
        (f"{NUM_BEAMS} beams", beams, batch * NUM_BEAMS),
    ):
        for how, cached in (("cached", True), ("not cached", False)):
            compiled = jax.jit(function, static_argnames="cached")

            def run(compiled: Any = compiled, cached: bool = cached) -> None:
                jax.block_until_ready(compiled(variables, encoded, cached=cached))

            found[f"{name}, {how}"] = (run, rows * length)
    return found


def study(
    config: ModelConfig, batch: int, source_length: int, length: int, turns: int
) -> dict[str, dict[str, float]]:
    """Figures of every program, by its name in the tables."""
    made = programs(config, batch, source_length, length)
    seconds = fastest({name: run for name, (run, _) in made.items()}, turns)
    return {
        name: {
            "tokens_per_second": tokens / seconds[name],
            "step_milliseconds": 1000 * seconds[name] / length,
            "times_faster": seconds[name.replace(", cached", ", not cached")] / seconds[name],
        }
        for name, (_, tokens) in made.items()
    }


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Time generation with and without a cache.")
    parser.add_argument("--gin_file", default=GIN_FILE)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=48)
    options = parser.parse_args(arguments)
    configuration.parse_config([options.gin_file], ["MODEL_DIR='unused'"])
    source_length = configuration.macro("TASK_FEATURE_LENGTHS")["inputs"]
    found = study(ModelConfig(), options.batch, source_length, options.length, options.turns)
    measured: list[dict[str, Any]] = []
    for name, figures in found.items():
        measured += metric_rows(
            figures,
            model=name,
            dataset="random histories",
            split=f"{options.batch} rows of {options.length} tokens",
            seed=None,
            gin_file=Path(options.gin_file).as_posix(),
        )
        told = ", ".join(f"{metric} {value:.4g}" for metric, value in figures.items())
        print(f"{name}: {told}")
    add_rows(results_path("decoding"), measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How much faster models score that `m6rec compress structure` made smaller.

    python -m benchmarks.structured_pruning [--model mini] [--turns 40]

One user with a full history and four candidates, text in, probabilities out, random weights. Rows
go to `benchmarks/results/structured_pruning.json`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.decoding_cpu import random_words
from benchmarks.late_interaction import measure, random_variables, texts
from benchmarks.results_file import Row, add_rows, results_path, told_rows
from m6rec_jax.configuration import macro, parse_config
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.scoring import Scorer
from m6rec_jax.model import M6Rec, ModelConfig

TUNING = "gin_configs/tuning/option_adapter.gin"
CANDIDATES = 4
# Tokens of the history's row.
LENGTH = 384
THREADS = 1


def configs(full: ModelConfig) -> dict[str, ModelConfig]:
    """By what the tables call them."""
    narrow = full.replace(num_heads=full.num_heads // 2, mlp_dim=full.mlp_dim // 2)
    half = {name: getattr(full, name) // 2 for name in ("num_encoder_layers", "num_decoder_layers")}
    return {
        "full": full,
        "half the width": narrow,
        "half the layers": full.replace(**half),
        "half of both": narrow.replace(**half),
    }


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Time scoring by smaller models.")
    parser.add_argument("--model", default="mini", help="a file of gin_configs/models")
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args(arguments)
    # XLA has a thread for each core that it finds when it starts.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    parse_config([f"gin_configs/models/{options.model}.gin", TUNING], ["NUM_OPTIONS = 2"])
    full = macro("MODEL").config
    measured: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = random_words(Path(folder))
        for dtype in ("bfloat16", "float32"):
            models = configs(full.replace(matmul_dtype=dtype))
            scorers = {name: (_scorer(config, vocabulary), None) for name, config in models.items()}
            history, candidates = texts(vocabulary)
            found = measure(scorers, history, candidates[:CANDIDATES], options.turns)
            for name, metrics in found.items():
                measured += told_rows(
                    {f"{options.model}, {name}": metrics},
                    dataset="random histories",
                    split=f"{LENGTH} tokens, {THREADS} threads, {dtype}",
                    seed=None,
                    config=f"{models[name].num_heads} heads, {models[name].mlp_dim} columns",
                )
    add_rows(results_path("structured_pruning"), measured)
    return 0


def _scorer(config: ModelConfig, vocabulary: Any) -> Scorer:
    model = M6Rec(config)
    options = EngineOptions(
        LENGTH, 64, candidate_length=16, source_buckets=(LENGTH,), target_buckets=(64,)
    )
    return Scorer(model, random_variables(model), vocabulary, options)


if __name__ == "__main__":
    sys.exit(main())

"""What a cache of segments saves when candidates are scored: cold, warm and without one.

    python -m benchmarks.late_interaction [--turns 15]

One user with 30 behaviours and 100 candidates, text in, probabilities out, at batch 1; random
weights and random words, since speed does not depend on them. *full*: late interaction is off.
*k late*: the layers below the last k are cached, of the encoder by segment and of the decoder by
candidate. *ends*: only a candidate's end passes the late layers (`ModelConfig.cross_attention_at`).
*cold*: nobody has asked for any of it before. *3 layers*: a plain model of so many, which caches
nothing. Programs run in turns. Rows go to `benchmarks/results/late_interaction.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.random_models import random_variables, random_words
from benchmarks.results_file import Row, add_rows, results_path, told_rows
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.text.vocabulary import Vocabulary

S, T = 384, 64
LAYERS, WIDTH = 24, 256
BEHAVIOURS, CANDIDATES = 30, 100
PROMPTS = PromptConfig(num_prompts=8, num_options=2, head="option", adapter_rank=8)


def texts(vocabulary: Vocabulary, candidate_tokens: int = 9) -> tuple[list[str], list[str]]:
    """A history of some 380 tokens, and candidates of about so many each."""
    rng = np.random.default_rng(0)
    words = [vocabulary.decode([i]) for i in range(300, vocabulary.size)]
    words = [word for word in words if len(word) > 1]

    def text(tokens: int) -> str:
        found = ""
        while len(vocabulary.encode(found)) < tokens:
            found += f" {rng.choice(words)}"
        return vocabulary.decode(vocabulary.encode(found)[:tokens])

    history = [text(8), *(text(11) for _ in range(BEHAVIOURS)), text(4)]
    return history, [text(candidate_tokens) for _ in range(CANDIDATES)]


def configs(layers: int, width: int, vocab_size: int) -> dict[str, ModelConfig]:
    """By what the tables call them."""
    full = ModelConfig(
        vocab_size=vocab_size,
        embed_dim=width,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        num_heads=max(1, width // 64),
        head_dim=min(64, width),
        mlp_dim=2 * width,
        matmul_dtype="bfloat16",
        prompts=PROMPTS,
    )
    found = {"full": full}
    own = dataclasses.replace(PROMPTS, adapters_late_only=True)
    for late in (3, 1):
        late_only = full.replace(late_layers_start=layers - late, prompts=own)
        found[f"{late} late"] = late_only
        found[f"{late} late, ends"] = late_only.replace(cross_attention_at="ends")
    found["3 layers"] = full.replace(num_encoder_layers=3, num_decoder_layers=3)
    return found


def scorers(
    models: Mapping[str, ModelConfig], vocabulary: Vocabulary
) -> dict[str, tuple[Scorer, SegmentCache | None]]:
    """Each with a cache of its own, where late interaction is on."""
    found = {}
    for name, config in models.items():
        model = M6Rec(config)
        cache = None
        if config.late_layers_start:
            cache = SegmentCache(model, source_length=S, target_length=T, runtime=Runtime())
        options = EngineOptions(
            S,
            T,
            candidate_length=16,
            batch_sizes=(1, 32),
            source_buckets=(S,),
            target_buckets=(T,),
            segments=cache,
        )
        found[name] = Scorer(model, random_variables(model), vocabulary, options), cache
    return found


def measure(
    engines: Mapping[str, tuple[Scorer, SegmentCache | None]],
    history: Sequence[str],
    candidates: Sequence[str],
    turns: int,
) -> dict[str, dict[str, float]]:
    """Milliseconds of a request; programs take turns, so that all have the same neighbours."""
    warm: dict[str, list[float]] = {name: [] for name in engines}
    cold: dict[str, list[float]] = {name: [] for name in engines}

    def request(scorer: Scorer) -> float:
        started = time.perf_counter()
        scorer.score_requests([history], [candidates])
        return 1000 * (time.perf_counter() - started)

    for turn in range(turns + 1):
        for name, (scorer, cache) in engines.items():
            if cache is not None:
                cache.source.clear()
                cache.candidates.clear()
                cold[name].append(request(scorer))
            warm[name].append(request(scorer))
        if turn == 0:  # compiled by now
            for times in (*warm.values(), *cold.values()):
                times.clear()
    full = statistics.median(warm["full"])
    return {
        name: {
            "request_milliseconds": statistics.median(times),
            "request_p95_milliseconds": float(np.quantile(times, 0.95)),
            "times_faster": full / statistics.median(times),
        }
        | ({"cold_milliseconds": statistics.median(cold[name])} if cold[name] else {})
        for name, times in warm.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Time scoring with cached segments.")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = random_words(Path(folder))
        models = configs(LAYERS, WIDTH, vocabulary.size)
        found = measure(scorers(models, vocabulary), *texts(vocabulary), options.turns)
    split = f"{LAYERS} layers, width {WIDTH}"
    measured: list[Row] = []
    for name, metrics in found.items():
        measured += told_rows(
            {name: metrics},
            dataset="random histories",
            split=split,
            seed=None,
            config=f"{models[name].late_layers_start} early layers",
        )
    add_rows(results_path("late_interaction"), measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())

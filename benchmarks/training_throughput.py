"""Training throughput beside t5x's own network and Hugging Face's T5: one run, in turns.

    python -m benchmarks.training_throughput [--model small] [--batch 16] [--turns 7]

Needs t5x (docs/t5x.md) and the extra `parity` (torch, transformers) in one environment. Everyone
takes whole training steps of the same shape on the same random tokens: 256 source and 64 target
tokens a row, AdamW, dropout 0.1, no prompts, a T5 1.1 of the model file's size with random weights.
All programs run in turns, so that what else the machine does meets all of them; a figure is the
median of the turns. Rows go to `benchmarks/results/training_throughput.json`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
import torch
from t5x import losses
from t5x.examples.t5 import network
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax import configuration
from m6rec_jax.errors import M6RecError
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.pipeline.features import MODEL_FEATURES, feature_lengths
from m6rec_jax.sharding import axis_rules, data_parallel, make_mesh, place_batch
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.train_state import abstract_state
from m6rec_jax.training.train_step import make_train_step

LENGTHS = {"inputs": 256, "targets": 64}
LEARNING_RATE = 1e-4
DROPOUT_RATE = 0.1
Step = Callable[[], None]


def random_batch(rows: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Features of language modelling rows without padding, `[rows, length]`."""
    rng = np.random.default_rng(0)
    lengths = feature_lengths(LENGTHS)
    batch = {
        name: np.full((rows, lengths[name]), feature.padding, feature.dtype)
        for name, feature in MODEL_FEATURES.items()
    }
    for side in ("encoder", "decoder"):
        tokens = batch[f"{side}_input_tokens"]
        tokens[:] = rng.integers(2, vocab_size, tokens.shape)
        batch[f"{side}_block_ids"][:] = 1
    targets = batch["decoder_target_tokens"]
    targets[:] = rng.integers(2, vocab_size, targets.shape)
    batch["decoder_loss_weights"][:] = 1
    return batch


def built_in_step(config: ModelConfig, batch: Mapping[str, np.ndarray]) -> Step:
    """A step of `m6rec train`."""
    model, optimizer = M6Rec(config), adamw(LEARNING_RATE, clip_norm=None)
    mesh, rules = make_mesh(devices=jax.devices()[:1]), data_parallel()
    abstract = abstract_state(model, optimizer, mesh, rules, trainable="all")
    state = initial_state(model, optimizer, abstract, mesh, rules, trainable="all", seed=0)
    placed = place_batch(batch, mesh)
    step = make_train_step(model, optimizer, trainable="all", seed=0)
    with jax.set_mesh(mesh), axis_rules(rules):
        jitted = jax.jit(step, donate_argnums=0).lower(state, placed).compile()
    held = [state]

    def run() -> None:
        held[0], scalars = jitted(held[0], placed)
        jax.block_until_ready((held[0], scalars))

    return run


def t5x_step(config: ModelConfig, batch: Mapping[str, np.ndarray]) -> Step:
    """A step of t5x's T5 1.1 network, jitted for one device."""
    model = network.Transformer(
        network.T5Config(
            vocab_size=config.vocab_size,
            dtype="float32",
            emb_dim=config.embed_dim,
            num_heads=config.num_heads,
            num_encoder_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            head_dim=config.head_dim,
            mlp_dim=config.mlp_dim,
            mlp_activations=("gelu", "linear"),
            dropout_rate=DROPOUT_RATE,
        )
    )
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    inputs = [jax.numpy.asarray(batch[name]) for name in names]
    params = jax.jit(lambda key: model.init(key, *inputs, enable_dropout=False))(jax.random.key(0))
    params = {"params": params["params"]}
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=0.0)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        logits = model.apply(params, *inputs, rngs={"dropout": key})
        total, _, weight = losses.compute_weighted_cross_entropy(
            logits, inputs[2], weights=jax.numpy.ones(inputs[2].shape)
        )
        return total / weight

    def step(params: Any, state: Any, number: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        value, gradients = jax.value_and_grad(loss)(params, key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, number + 1, value

    jitted = jax.jit(step, donate_argnums=(0, 1))
    held = [params, optimizer.init(params), jax.numpy.zeros((), "int32")]

    def run() -> None:
        *held[:], value = jitted(*held)
        jax.block_until_ready((held, value))

    return run


def huggingface_step(
    config: ModelConfig, batch: Mapping[str, np.ndarray], *, autocast: bool
) -> Step:
    """A step of `T5ForConditionalGeneration`; autocast: products in bfloat16."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=config.vocab_size,
            d_model=config.embed_dim,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=DROPOUT_RATE,
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    source, target = (
        torch.from_numpy(batch[name]).long()
        for name in ("encoder_input_tokens", "decoder_target_tokens")
    )

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=source, labels=target).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return run


def medians(programs: Mapping[str, Step], turns: int) -> dict[str, float]:
    """Seconds of each program's median run after one to warm up, all taking turns."""
    for run in programs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, run in programs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


FLOAT32 = ("m6rec_jax, float32", "t5x, float32", "Hugging Face, float32")
BFLOAT16 = ("m6rec_jax, bfloat16", "Hugging Face, bfloat16 autocast")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small", help="of gin_configs/models")
    parser.add_argument("--batch", type=int, default=16, help="rows")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args(arguments)
    try:
        configuration.parse_config([f"gin_configs/models/{options.model}.gin"], [])
        config = ModelConfig(dropout_rate=DROPOUT_RATE, scan_unroll=0)
    except M6RecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    batch = random_batch(options.batch, config.vocab_size)
    wide = config.replace(dtype="float32", matmul_dtype=None)
    narrow = config.replace(dtype="float32", matmul_dtype="bfloat16")
    programs = {
        FLOAT32[0]: built_in_step(wide, batch),
        FLOAT32[1]: t5x_step(config, batch),
        FLOAT32[2]: huggingface_step(config, batch, autocast=False),
        BFLOAT16[0]: built_in_step(narrow, batch),
        BFLOAT16[1]: huggingface_step(config, batch, autocast=True),
    }
    seconds = medians(programs, options.turns)
    tokens = options.batch * sum(LENGTHS.values())
    for split, names in (("float32", FLOAT32), ("bfloat16", BFLOAT16)):
        best = min(seconds[name] for name in names[1:])
        for name in names:
            found = {
                "step_milliseconds": 1000 * seconds[name],
                "tokens_per_second": tokens / seconds[name],
                "throughput_ratio": best / seconds[name],
            }
            print(f"{name}: {found}", flush=True)
            rows = metric_rows(
                found,
                model=name,
                dataset="throughput",
                split=split,
                seed=None,
                config=f"{options.model}, {options.batch} rows of 256 + 64 tokens, AdamW",
            )
            add_rows(results_path("training_throughput"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

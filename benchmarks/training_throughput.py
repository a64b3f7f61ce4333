"""Training throughput beside t5x's own network and Hugging Face's T5: one run, in turns.

    python -m benchmarks.training_throughput [--model small] [--batch 16] [--turns 3]

Needs t5x (docs/t5x.md) and the extra `parity` (torch, transformers) in one environment. Everyone
takes whole training steps of the same shape on the same random tokens: 256 source and 64 target
tokens a row, AdamW, dropout 0.1, no prompts, a T5 1.1 of the model file's size with random weights.
Everyone has a process of its own, for in one JAX and torch slow each other down.
The processes take turns, so that what else the machine does meets all of them; a figure is the
median of the turns' fastest steps. Rows go to `benchmarks/results/training_throughput.json`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, results_path, told_rows
from m6rec_jax import configuration
from m6rec_jax.errors import M6RecError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.pipeline.features import MODEL_FEATURES, feature_lengths
from m6rec_jax.sharding import data_parallel, make_mesh, place_batch
from m6rec_jax.training.initialization import initial_state
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.train_state import TrainSetup
from m6rec_jax.training.train_step import compile_step, make_train_step

LENGTHS = {"inputs": 256, "targets": 64}
LEARNING_RATE = 1e-4
DROPOUT_RATE = 0.1
Step = Callable[[], Any]


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
    mesh = make_mesh(devices=jax.devices()[:1])
    setup = TrainSetup(model, optimizer, mesh, data_parallel())
    state, placed = initial_state(setup), place_batch(batch, mesh)
    step = compile_step(setup, make_train_step(setup), state, placed)
    held = [state]

    def run() -> Mapping[str, jax.Array]:
        held[0], scalars = step(held[0], placed)
        return jax.block_until_ready((held[0], scalars))[1]

    return run


def t5x_step(config: ModelConfig, batch: Mapping[str, np.ndarray]) -> Step:
    """A step of t5x's T5 1.1 network, jitted for one device."""
    # The others' libraries are imported in the process that times them.
    from t5x import losses
    from t5x.examples.t5 import network

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
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

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


OWN = "m6rec_jax, float32"
OWN_BFLOAT16 = "m6rec_jax, bfloat16 products"
T5X = "t5x, float32"
HUGGING_FACE = "Hugging Face, float32"
HUGGING_FACE_BFLOAT16 = "Hugging Face, bfloat16 autocast"
COMPARED = {
    "float32": (OWN, T5X, HUGGING_FACE),
    "bfloat16": (OWN_BFLOAT16, HUGGING_FACE_BFLOAT16),
}
STEPS_PER_TURN = 4


def make_step(name: str, model: str, rows: int) -> Step:
    """The step of one of the compared."""
    configuration.parse_config([f"gin_configs/models/{model}.gin"], [])
    # Layers in a row rather than in a loop, as the others have them; parameters are float32.
    config = ModelConfig(dropout_rate=DROPOUT_RATE, scan_unroll=0, dtype="float32")
    batch = random_batch(rows, config.vocab_size)
    if name == T5X:
        return t5x_step(config, batch)
    if name in (HUGGING_FACE, HUGGING_FACE_BFLOAT16):
        return huggingface_step(config, batch, autocast=name == HUGGING_FACE_BFLOAT16)
    return built_in_step(
        config.replace(matmul_dtype="bfloat16" if name == OWN_BFLOAT16 else None), batch
    )


def take_turn(name: str, model: str, rows: int) -> None:
    """Prints the seconds of the fastest step after one that compiles and warms up."""
    run = make_step(name, model, rows)
    run()
    seconds = []
    for _ in range(STEPS_PER_TURN):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    print(min(seconds))


def check_installed() -> None:
    """Raises M6RecError where one of the others' libraries is missing."""
    missing = [name for name in ("t5x", "torch", "transformers") if not find_spec(name)]
    if missing:
        raise M6RecError(
            f"{', '.join(missing)} cannot be imported: install t5x as docs/t5x.md says, and "
            "torch and transformers with the extra 'parity'"
        )


def seconds_of_turn(name: str, options: argparse.Namespace) -> float:
    """What `take_turn` says in a process of its own.

    Raises:
      M6RecError: it failed; what it printed says why.
    """
    command = [sys.executable, "-m", "benchmarks.training_throughput", f"--turn-of={name}"]
    command += [f"--model={options.model}", f"--batch={options.batch}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise M6RecError(f"{name} ended with status {done.returncode}")
    return float(done.stdout.split()[-1])


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small", help="of gin_configs/models")
    parser.add_argument("--batch", type=int, default=16, help="rows")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--turn-of", help="only times one of the compared, and prints seconds")
    options = parser.parse_args(arguments)
    names = [name for group in COMPARED.values() for name in group]
    if options.turn_of:
        take_turn(options.turn_of, options.model, options.batch)
        return 0
    check_installed()
    turns: dict[str, list[float]] = {name: [] for name in names}
    for _ in progress_bar(range(options.turns), unit="turn"):
        for name in names:
            turns[name].append(seconds_of_turn(name, options))
    tokens = options.batch * sum(LENGTHS.values())
    for split, group in COMPARED.items():
        seconds = {name: statistics.median(turns[name]) for name in group}
        best_peer = min(seconds[name] for name in group[1:])
        for name in group:
            found = {
                "step_milliseconds": 1000 * seconds[name],
                "tokens_per_second": tokens / seconds[name],
                "throughput_ratio": best_peer / seconds[name],
            }
            rows = told_rows(
                {name: found},
                dataset="throughput",
                split=split,
                seed=None,
                config=f"{options.model}, {options.batch} rows of 256 + 64 tokens, AdamW",
            )
            add_rows(results_path("training_throughput"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run by test_sharding.py in a process with 8 virtual CPU devices; prints one JSON object."""

import functools
import json
import logging
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.objectives import mean_loss, total_loss
from m6rec_jax.sharding import (
    axis_rules,
    data_parallel,
    fully_sharded,
    fully_sharded_2d,
    make_mesh,
    place_batch,
    variable_shardings,
)
from m6rec_jax.text.vocabulary import EOS_ID

CONFIG = ModelConfig(
    vocab_size=64,
    embed_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    late_layers_start=1,
    prompts=PromptConfig(
        num_tasks=2,
        num_prompts=4,
        num_options=2,
        head="option",
        adapter_rank=2,
        embedding_rank=2,
        pooling_rank=2,
        special_token_ids=(0, 1),
        retrieval_dim=8,
        num_segment_embeddings=3,
    ),
)


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows, source, target = 16, 12, 8
    ends = np.array([False, False, False, True] * 2)
    retrieval = (np.arange(rows) % 2).astype(np.int32)[:, None]
    return {
        "encoder_input_tokens": rng.integers(2, 64, (rows, source)).astype(np.int32),
        "encoder_block_ids": np.tile(np.repeat([1, 2, 3], 4), (rows, 1)).astype(np.int32),
        "decoder_input_tokens": np.where(ends, EOS_ID, rng.integers(2, 64, (rows, target))).astype(
            np.int32
        ),
        "decoder_target_tokens": rng.integers(2, 64, (rows, target)).astype(np.int32),
        # Uneven over the rows: a mean of per-device means would differ from the global mean.
        "decoder_loss_weights": (
            rng.random((rows, target)) < np.linspace(0, 1, rows)[:, None]
        ).astype(np.float32),
        "decoder_block_ids": np.tile(np.repeat([1, 2], 4), (rows, 1)).astype(np.int32),
        "decoder_labels": np.where(
            ends & (retrieval == 0), rng.integers(0, 2, (rows, target)), -1
        ).astype(np.int32),
        "decoder_item_ids": np.where(ends, rng.integers(0, 9, (rows, target)), -1).astype(np.int32),
        "task_ids": (np.arange(rows) % 3 == 1).astype(np.int32)[:, None],
        "retrieval": retrieval,
        "user_ids": (np.arange(rows) // 3).astype(np.int32)[:, None],
    }


@functools.cache
def initial_values() -> Any:
    return jax.device_get(nn.meta.unbox(jax.jit(M6Rec(CONFIG).init)(jax.random.key(0), batch())))


WEIGHTS = {
    "language_modelling_weight": 1.0,
    "classification_weight": 0.5,
    "contrastive_weight": 0.25,
}


def losses(mesh: jax.sharding.Mesh, rules: Any, steps: int = 2) -> dict[str, Any]:
    model, examples = M6Rec(CONFIG), batch()
    with jax.set_mesh(mesh), axis_rules(rules):
        shapes = jax.eval_shape(model.init, jax.random.key(0), examples)
        shardings = variable_shardings(shapes, mesh, rules)
        variables = jax.device_put(initial_values(), shardings)

        def step(variables: Any, features: Any) -> Any:
            def loss(variables: Any) -> Any:
                terms, metrics = total_loss(model, variables, features, **WEIGHTS)
                return mean_loss(terms), metrics

            (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(variables)
            moved = jax.tree.map(lambda v, g: v - 0.05 * g, variables, gradients)
            return moved, value, metrics

        step = jax.jit(step, out_shardings=(shardings, None, None), donate_argnums=0)
        features = place_batch(examples, mesh)
        values = []
        for _ in range(steps):
            variables, value, metrics = step(variables, features)
            values.append(float(value))
    return {
        "losses": values,
        "metrics": {name: [float(m.total), float(m.count)] for name, m in metrics.items()},
    }


def shards(mesh: jax.sharding.Mesh, rules: Any) -> list[list[int]]:
    """Shapes of a device's part of a kernel and of the tokens."""
    shapes = jax.eval_shape(M6Rec(CONFIG).init, jax.random.key(0), batch())
    placed = variable_shardings(shapes, mesh, rules)
    kernel = placed["params"]["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    tokens = place_batch(batch(), mesh)["encoder_input_tokens"]
    return [list(kernel.shard_shape((2, 16, 32))), list(tokens.addressable_shards[0].data.shape)]


def uneven() -> dict[str, Any]:
    """Two heads do not divide over tensor = 4; nothing else is uneven."""
    mesh = make_mesh(tensor=4)
    shapes = jax.eval_shape(M6Rec(CONFIG).init, jax.random.key(0), batch())
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("m6rec_jax.sharding.placement").addHandler(handler)
    rules = fully_sharded_2d()
    shardings = variable_shardings(shapes, mesh, rules)
    query = shardings["params"]["encoder"]["layers"]["self_attention"]["query"]["kernel"]
    mlp = shardings["params"]["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    # The model must still run: activations are constrained by the same rules.
    with jax.set_mesh(mesh), axis_rules(rules):
        variables = jax.device_put(initial_values(), shardings)
        forward = jax.jit(lambda v, f: mean_loss(total_loss(M6Rec(CONFIG), v, f, **WEIGHTS)[0]))
        loss = float(forward(variables, place_batch(batch(), mesh)))
    return {
        "messages": messages,
        "query": list(query.spec),
        "mlp": list(mlp.spec),
        "loss": loss,
    }


def errors() -> dict[str, str]:
    found = {}
    attempts: dict[str, Any] = {
        "product": lambda: make_mesh(data=3),
        "indivisible": lambda: make_mesh(tensor=3),
        "two_open": lambda: make_mesh(data=-1, fsdp=-1),
        "zero": lambda: make_mesh(fsdp=0),
        "rows": lambda: place_batch({"tokens": np.zeros((12, 3))}, make_mesh()),
        "rule": lambda: variable_shardings({}, make_mesh(), (("embed", "model"),)),
        "logical": lambda: variable_shardings({}, make_mesh(), (("embd", "fsdp"),)),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except ConfigError as error:
            found[name] = str(error)
    return found


def main() -> None:
    assert jax.device_count() == 8
    one = make_mesh(devices=jax.devices()[:1])
    stepped = make_mesh(fsdp=2, tensor=2)
    print(
        json.dumps(
            {
                "one": losses(one, data_parallel()),
                "many": losses(stepped, fully_sharded_2d()),
                "shards": {
                    "data 8": shards(make_mesh(), data_parallel()),
                    "fsdp 8": shards(make_mesh(data=1, fsdp=8), fully_sharded()),
                    "fsdp 2 x tensor 2 x data 2": shards(stepped, fully_sharded_2d()),
                },
                "uneven": uneven(),
                "errors": errors(),
            }
        )
    )


if __name__ == "__main__":
    main()

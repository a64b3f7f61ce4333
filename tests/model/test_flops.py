"""A model's own operations, against the products of its traced program."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from m6rec_jax.engine.scoring import class_log_probabilities
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.flops import decode_flops, score_flops, train_flops
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.objectives import total_loss
from m6rec_jax.training.parameter_table import count_parameters

ROWS, SOURCE, TARGET = 3, 12, 7
CONFIG = ModelConfig(
    vocab_size=96,
    embed_dim=16,
    num_encoder_layers=3,
    num_decoder_layers=2,
    num_heads=2,
    head_dim=12,
    mlp_dim=40,
)
OPTIONS = PromptConfig(num_prompts=4, num_options=2, head="option", adapter_rank=5)


def products(jaxpr: Any) -> int:
    """Operations of all `dot_general`s, scans as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            summed = math.prod(left[i] for i in contracted)
            total += 2 * summed * math.prod(eqn.outvars[0].aval.shape)
        for value in eqn.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * products(inner)
    return total


def features() -> dict[str, jax.ShapeDtypeStruct]:
    def ints(length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((ROWS, length), jnp.int32)

    return {
        "encoder_input_tokens": ints(SOURCE),
        "encoder_block_ids": ints(SOURCE),
        "decoder_input_tokens": ints(TARGET),
        "decoder_block_ids": ints(TARGET),
        "task_ids": ints(1),
    }


def traced(function: Any, *arguments: Any) -> int:
    return products(jax.make_jaxpr(function)(*arguments).jaxpr)


def keys_and_values_of_the_source(config: ModelConfig) -> int:
    """What the convention counts at target tokens, but is computed at source tokens."""
    layers = config.num_decoder_layers - config.first_cross_layer
    source = SOURCE + config.prompts.num_prompts
    heads, prompts = config.num_heads * config.head_dim, config.prompts
    updated = [name for name in prompts.lora_targets if name in ("key", "value")]
    size = 2 * config.embed_dim * heads
    size += len(updated) * prompts.lora_rank * (config.embed_dim + heads)
    return 2 * ROWS * layers * size * (source - TARGET)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp_activations": ("relu",)},
        {"late_layers_start": 2, "decoder_late_start": 1},
        {"embedding_rank": 6},
        {"embedding_rank": 6, "logits_via_embedding": True},
        {"prompts": OPTIONS},
        {"prompts": PromptConfig(lora_rank=3, num_options=2, head="linear")},
        {"prompts": dataclasses.replace(OPTIONS, embedding_rank=3)},
        {"prompts": dataclasses.replace(OPTIONS, pooling_rank=3)},
        {"late_layers_start": 1, "prompts": PromptConfig(adapter_rank=4, adapters_late_only=True)},
    ],
    ids=str,
)
def test_a_forward_pass_is_counted_to_the_last_product(changes: dict[str, Any]) -> None:
    config = CONFIG.replace(**changes)
    model = M6Rec(config)
    variables = nn.meta.unbox(abstract_variables(model.config))
    if config.prompts.head != "none":
        run: Any = lambda v, f: class_log_probabilities(model, v, f)  # noqa: E731
        counted = score_flops(config, ROWS, SOURCE, TARGET).total
    else:

        def run(v: Any, f: Any) -> Any:
            return model.apply(v, model.apply(v, f).hidden, method=model.token_logits)

        counted = decode_flops(config, ROWS, SOURCE, TARGET).total
    executed = traced(run, variables, features())
    assert executed == counted + keys_and_values_of_the_source(config)


def test_six_operations_a_parameter_and_token() -> None:
    """Equal lengths, so that it does not matter which tokens a parameter meets."""
    flops = train_flops(CONFIG, ROWS, SOURCE, SOURCE, trainable="all")
    count = count_parameters(CONFIG)
    matrices = sum(
        group.count for group in count.groups if group.name in ("encoder", "decoder", "head")
    )
    norms = 16 * (3 * 2 + 2 * 3 + 2)
    biases = 2 * 32 * CONFIG.num_heads
    assert flops.towers + flops.head == 6 * (matrices - norms - biases) * ROWS * SOURCE


def test_tuning_is_four_operations_and_what_trains() -> None:
    # Special tokens stand in both towers, so gradients go all the way down both.
    config = CONFIG.replace(prompts=dataclasses.replace(OPTIONS, special_token_ids=(0,)))
    whole = train_flops(config, ROWS, SOURCE, TARGET, trainable="all", language_modelling=False)
    tuned = train_flops(config, ROWS, SOURCE, TARGET, trainable="prompts", language_modelling=False)
    assert tuned.towers * 3 == whole.towers * 2
    assert (tuned.attention, tuned.prompts) == (whole.attention, whole.prompts)
    assert tuned.head == 0
    probe = CONFIG.replace(prompts=PromptConfig(num_options=2, head="linear"))
    probed = train_flops(probe, ROWS, SOURCE, TARGET, trainable="prompts", language_modelling=False)
    # Nothing trains below the head: there is no way back through the towers.
    assert probed.towers * 3 == train_flops(probe, ROWS, SOURCE, TARGET, trainable="all").towers


UNROLLED = ModelConfig(
    vocab_size=64,
    embed_dim=48,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_heads=3,
    head_dim=16,
    mlp_dim=128,
    scan_unroll=0,  # XLA's analysis takes a loop's body once
)
LATE = {"adapters_late_only": True}


@pytest.mark.parametrize(
    ("prompts", "late_layers_start"),
    [
        ({}, 0),
        ({"num_prompts": 8, "adapter_rank": 4}, 0),
        ({"adapter_rank": 4}, 0),
        ({"lora_rank": 4}, 0),
        ({"embedding_rank": 2}, 0),
        ({"pooling_rank": 2, "adapter_rank": 4}, 0),
        # Updates of the embedding stand below all layers, early ones, too.
        ({"embedding_rank": 2}, 1),
        # The lowest layer that trains is a late one; nothing goes further back.
        ({"adapter_rank": 4, **LATE}, 1),
        ({"lora_rank": 4, **LATE}, 1),
        ({"num_segment_embeddings": 4}, 1),
        # Soft prompts stand below all, wherever adapters are.
        ({"num_prompts": 8, "adapter_rank": 4, **LATE}, 1),
    ],
    ids=str,
)
def test_a_backward_pass_ends_at_the_lowest_thing_that_trains(
    prompts: dict[str, Any], late_layers_start: int
) -> None:
    """Against XLA's own analysis of a whole tuning step's gradients."""
    config = UNROLLED.replace(
        late_layers_start=late_layers_start,
        prompts=PromptConfig(num_options=2, head="linear", **prompts),
    )
    # XLA counts softmax, norms and activations as well.
    assert 1.02 < executed_share(config, "prompts", language_modelling=False) < 1.08


@pytest.mark.parametrize(
    ("prompts", "trainable"),
    [
        (PromptConfig(), "all"),
        (PromptConfig(num_options=2, head="linear", adapter_rank=4), "prompts"),
        # No way back through the towers, nor through the logits.
        (PromptConfig(num_options=2, head="linear"), "prompts"),
    ],
    ids=str,
)
def test_logits_of_a_training_step(prompts: PromptConfig, trainable: str) -> None:
    """Of so many words that they are half of the forward pass."""
    config = UNROLLED.replace(vocab_size=2048, prompts=prompts)
    assert 1.02 < executed_share(config, trainable, language_modelling=True) < 1.08


def executed_share(config: ModelConfig, trainable: str, *, language_modelling: bool) -> float:
    """Operations of a step's gradients, as XLA counts them, over our own."""
    rows, source, target = 2, 48, 40
    model = M6Rec(config)
    variables = nn.meta.unbox(abstract_variables(model.config))
    ints = {
        "encoder_input_tokens": source,
        "encoder_block_ids": source,
        "decoder_input_tokens": target,
        "decoder_target_tokens": target,
        "decoder_block_ids": target,
        "decoder_labels": target,
        "task_ids": 1,
    }
    shapes = {
        name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name, length in ints.items()
    }
    shapes["decoder_loss_weights"] = jax.ShapeDtypeStruct((rows, target), jnp.float32)
    weights = {
        "language_modelling_weight": float(language_modelling),
        "classification_weight": float(config.prompts.head != "none"),
    }
    held = dict(variables)
    name = "params" if trainable == "all" else "prompts"
    trained = {name: held.pop(name)}

    def loss(trained: Any, held: Any, features: Any) -> Any:
        return total_loss(model, {**trained, **held}, features, **weights)[0]

    compiled = jax.jit(jax.value_and_grad(loss)).lower(trained, held, shapes).compile()
    own = train_flops(
        config, rows, source, target, trainable=trainable, language_modelling=language_modelling
    )
    return float(compiled.cost_analysis()["flops"]) / own.total

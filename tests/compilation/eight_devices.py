"""Compiles the training step of a tiny model for 8 virtual CPU devices; prints reports as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import gin
import jax

from m6rec_jax.compilation.report import compile_step
from m6rec_jax.compilation.steps import StepSettings, make_program
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.sharding import (
    LogicalRules,
    data_parallel,
    fully_sharded,
    fully_sharded_2d,
    make_mesh,
)
from m6rec_jax.training.optimizers import adafactor

CONFIG = ModelConfig(
    vocab_size=256,
    embed_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    head_dim=16,
    mlp_dim=128,
    remat="dots",
)
TUNED = CONFIG.replace(
    prompts=PromptConfig(
        num_prompts=8, num_options=2, head="option", adapter_rank=4, special_token_ids=(0, 1)
    )
)
RULES: dict[str, tuple[Mapping[str, int], LogicalRules]] = {
    "data parallel": ({}, data_parallel()),
    "fully sharded": ({"fsdp": 8}, fully_sharded()),
    "2-D": ({"fsdp": 4, "tensor": 2}, fully_sharded_2d()),
}


def report(config: ModelConfig, name: str, trainable: str) -> dict[str, object]:
    sizes, rules = RULES[name]
    settings = StepSettings(
        M6Rec(config),
        {"inputs": 32, "targets": 16},
        adafactor(1e-2, clip_norm=1.0, min_dim_size_to_factor=32),
        trainable=trainable,
        rows_per_device=2,
        rules=rules,
    )
    program = make_program("train", settings, make_mesh(**sizes))
    return dataclasses.asdict(compile_step("train", program, available_bytes=None))


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # kept programs have no text
    reports = {name: report(CONFIG, name, "all") for name in RULES}
    gin.bind_parameter("total_loss.language_modelling_weight", 0.0)
    gin.bind_parameter("total_loss.classification_weight", 1.0)
    reports["tuned"] = report(TUNED, "fully sharded", "prompts")
    print(json.dumps(reports))

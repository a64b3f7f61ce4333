"""Compiles the training step of a tiny model for 8 virtual CPU devices under every rule set.

    python -m tests.compilation.eight_devices            # prints the figures as JSON
    python -m tests.compilation.eight_devices --accept   # writes accepted.json (make accept)

Run by test_hlo_diff.py, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

# Before JAX starts. Generating machine code takes nearly all of the time and changes nothing here.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# The compiler's warnings, which the test reads, come only when it compiles.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import gin
import jax
import jaxlib
from jax.sharding import Mesh

from m6rec_jax.compilation.step_report import StepReport, measure
from m6rec_jax.compilation.steps import Program, StepSettings, make_program
from m6rec_jax.compilation.topologies import parse_topology
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.sharding import (
    LogicalRules,
    data_parallel,
    fully_sharded,
    fully_sharded_2d,
    make_mesh,
)
from m6rec_jax.training.optimizers import adafactor
from tests.compilation.hlo_diff import Accepted, write_accepted

ACCEPTED = Path(__file__).with_name("accepted.json")
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
TUNED = "fully sharded, option-adapter tuning"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled: sizes of the mesh's axes, rules, and what trains for which loss."""

    sizes: Mapping[str, int]
    rules: LogicalRules
    config: ModelConfig = CONFIG
    trainable: str = "all"
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


CASES = {
    "data parallel": Case({}, data_parallel()),
    "fully sharded": Case({"fsdp": 8}, fully_sharded()),
    "2-D with tensor": Case({"fsdp": 4, "tensor": 2}, fully_sharded_2d()),
    # As in gin_configs/runs/compile_tuning.gin.
    TUNED: Case(
        {"fsdp": 8},
        fully_sharded(),
        CONFIG.replace(
            prompts=PromptConfig(
                num_prompts=8,
                num_options=2,
                head="option",
                adapter_rank=4,
                special_token_ids=(0, 1),
            )
        ),
        "prompts",
        {"language_modelling_weight": 0.0, "classification_weight": 1.0},
    ),
}


def program_of(case: Case) -> tuple[Program, Mesh]:
    """The training step, and the mesh it is for."""
    mesh = make_mesh(**case.sizes)
    settings = StepSettings(
        M6Rec(case.config),
        {"inputs": 32, "targets": 16},
        adafactor(1e-2, clip_norm=1.0, min_dim_size_to_factor=32),
        trainable=case.trainable,
        rows_per_device=2,
        rules=case.rules,
    )
    program = make_program("train", settings, mesh)
    assert isinstance(program, Program)
    return program, mesh


def report(case: Case) -> StepReport:
    """Figures of the training step."""
    gin.clear_config()
    for name, weight in case.weights.items():
        gin.bind_parameter(f"total_loss.{name}", weight)
    program, mesh = program_of(case)
    compiled = program.lower(mesh, case.rules).compile()
    # Figures of a chip are beside the point here; the shape must have as many devices.
    return measure(
        "train",
        compiled,
        parse_topology("v5e:2x4"),
        program.flops,
        loop_trips=program.loop_trips,
        arguments=program.argument_bytes,
    )


def main() -> None:
    reports = {name: report(case) for name, case in CASES.items()}
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    if "--accept" in sys.argv[1:]:
        accepted = {name: Accepted.of(one) for name, one in reports.items()}
        write_accepted(ACCEPTED, accepted, versions)
        print(f"accepted: {ACCEPTED.name}")
        return
    found = {name: one.to_json() for name, one in reports.items()}
    print(json.dumps({"reports": found}))


if __name__ == "__main__":
    main()

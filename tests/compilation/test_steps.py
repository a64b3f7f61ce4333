"""What is compiled for slices is what `m6rec train` runs."""

from __future__ import annotations

import re

import gin
import jax
import pytest

from m6rec_jax import configuration
from m6rec_jax.compilation.steps import StepSettings, make_program
from m6rec_jax.engine.programs.kept_programs import from_source
from m6rec_jax.model import M6Rec
from m6rec_jax.sharding import make_mesh
from m6rec_jax.training.optimizers import adafactor
from m6rec_jax.training.options import Step
from m6rec_jax.training.train_state import TrainSetup
from m6rec_jax.training.train_step import compile_step, make_train_step
from tests.training.toy_run import toy_config


def instructions(compiled: jax.stages.Compiled) -> str:
    """The program without the places in Python that it comes from."""
    text = compiled.as_text()
    assert text is not None
    return re.sub(r", metadata=\{[^}]*\}", "", text[text.index("\n\n%") :])


def test_the_compiled_training_step_is_the_one_that_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configuration.parse_config([], [f"{Step.__name__}.weight_bits = 8"])
    trainable, parts = "prompts", 2
    mesh = make_mesh(devices=jax.devices()[:1])
    settings = StepSettings(
        M6Rec(toy_config()),
        {"inputs": 8, "targets": 4},
        adafactor(1e-2),
        trainable=trainable,
        batch_size=4,
        accumulation_steps=parts,
    )
    program = make_program("train", settings, mesh)
    gin.clear_config()
    assert "compiled without Step.weight_bits" in caplog.text
    with from_source():
        reported = program.compile(program.trace())
    setup = TrainSetup(settings.model, settings.optimizer, mesh, settings.logical_rules, trainable)
    state, features = program.arguments
    with from_source():  # and not what was just compiled
        run = compile_step(setup, make_train_step(setup, accumulation_steps=parts), state, features)
    assert instructions(reported) == instructions(run)
    # Donation and layouts of arguments and results stand in the first line.
    first = [compiled.as_text().splitlines()[0] for compiled in (reported, run)]
    assert first[0] == first[1]
    assert first[0].startswith("HloModule jit_step")
    assert "input_output_alias" in first[0]

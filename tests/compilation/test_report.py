"""Memory, operations and collectives of compiled steps, and what the command makes of them."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from m6rec_jax import cli
from m6rec_jax.compilation import command
from m6rec_jax.compilation.report import StepReport, count_collectives, product_flops
from m6rec_jax.compilation.steps import Program
from m6rec_jax.model import M6Rec, ModelConfig
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.objectives import mean_loss, total_loss
from tests.several_devices import result, start

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
TINY = ["compile", "--model", "tiny", "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}"]


@pytest.fixture(scope="module")
def reports() -> dict[str, StepReport]:
    """Of the training step for eight devices, by sharding rules."""
    printed = result(start(Path(__file__).with_name("eight_devices.py"), devices=8))
    return {name: StepReport(**values) for name, values in printed.items()}


def test_collectives_of_the_rule_sets(reports: dict[str, StepReport]) -> None:
    # Copies of all parameters: gradients are summed, and nothing else travels.
    assert set(reports["data parallel"].collectives) == {"all-reduce"}
    # Parameters are gathered where a layer runs.
    for name in ("fully sharded", "2-D", "tuned"):
        assert reports[name].collectives["all-gather"] > 0, name
    # A frozen backbone has no gradients to sum.
    summed = {name: report.collectives["all-reduce"] for name, report in reports.items()}
    assert summed["tuned"] < summed["fully sharded"]


def test_memory_of_the_rule_sets(reports: dict[str, StepReport]) -> None:
    for report in reports.values():
        assert report.fits
        assert 0 < report.argument_bytes < report.needed_bytes
        assert 0 < report.temporary_bytes < report.needed_bytes
    whole, split = reports["data parallel"], reports["fully sharded"]
    # Of the state an eighth, some small arrays and the batch besides.
    assert whole.argument_bytes / 8 < split.argument_bytes < whole.argument_bytes / 4


def test_operations_do_not_depend_on_the_rules(reports: dict[str, StepReport]) -> None:
    assert len({reports[name].flops for name in ("data parallel", "fully sharded", "2-D")}) == 1


@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_against_xlas_own_count(remat: str) -> None:
    """XLA takes a loop's body once, so its count is asked of a program without loops."""
    config = ModelConfig(
        vocab_size=256,
        embed_dim=48,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=3,
        head_dim=16,
        mlp_dim=128,
        remat=remat,
    )
    unrolled = config.replace(scan_unroll=0)
    traced = gradients(unrolled)
    counted = product_flops(traced.jaxpr.jaxpr, 1)
    assert counted == product_flops(gradients(config).jaxpr.jaxpr, 1)
    if remat == "none":  # otherwise XLA may save what the program recomputes
        executed = traced.lower().compile().cost_analysis()["flops"]
        # XLA counts softmax, norms and activations as well.
        assert 1.02 < executed / counted < 1.08
    else:
        assert counted > product_flops(gradients(config.replace(remat="none")).jaxpr.jaxpr, 1)


def gradients(config: ModelConfig) -> jax.stages.Traced:
    """The gradients of all parameters, traced."""
    model = M6Rec(config)
    variables = nn.meta.unbox(abstract_variables(config))
    params = variables.pop("params")
    lengths = {"encoder_input_tokens": 48, "encoder_block_ids": 48, "task_ids": 1}
    for name in ("input_tokens", "target_tokens", "block_ids", "labels"):
        lengths[f"decoder_{name}"] = 40
    features = {
        name: jax.ShapeDtypeStruct((2, length), jnp.int32) for name, length in lengths.items()
    }
    features["decoder_loss_weights"] = jax.ShapeDtypeStruct((2, 40), jnp.float32)

    def loss(params: Any, others: Any, features: Any) -> Any:
        return mean_loss(total_loss(model, {"params": params, **others}, features)[0])

    return jax.jit(jax.grad(loss)).trace(params, variables, features)


def test_loops_and_branches_are_counted_at_their_longest() -> None:
    def program(x: jax.Array) -> jax.Array:
        x = jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)
        return jax.lax.cond(x[0, 0] < 2, lambda x: x, lambda x: x @ x, x)

    jaxpr = jax.make_jaxpr(program)(jnp.ones((4, 4))).jaxpr
    assert product_flops(jaxpr, 5) == (5 + 1) * 2 * 4**3


def test_a_collective_counts_once() -> None:
    """A TPU's stands in each fusion that it runs beside; a pair of start and done is one."""
    hlo = """
  %all-gather.1 = bf16[768,128]{1,0:T(8,128)} all-gather(%a), channel_id=7, dimensions={0}
  %all-gather.2 = bf16[768,128]{1,0:T(8,128)} all-gather(%b), channel_id=7, dimensions={0}
  %s = ((f32[4]), (f32[32]), /*index=2*/u32[]) all-gather-start(%c), channel_id=8
  %d = f32[32] all-gather-done(%s)
  ROOT %all-reduce.9 = f32[8]{0} all-reduce(%d), replica_groups={}, to_apply=%add
  %all-reduce.10 = f32[8]{0} all-reduce(%d), replica_groups={}, to_apply=%add
  %fusion = f32[8]{0} fusion(%all-reduce.9), calls=%all-reduce-scatter
"""
    assert count_collectives(hlo) == {"all-gather": 2, "all-reduce": 2}


def test_the_command_for_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(TINY) == 0
    out = capsys.readouterr().out
    for words in ("train: fits", "score: not compiled", "decode: fits"):
        assert words in out


def test_a_step_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_local_memory", lambda: 1000)
    assert cli.main([*TINY, "--steps", "decode"]) == 1
    assert "decode: does NOT fit" in capsys.readouterr().out


def test_a_step_that_xla_refuses_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_decoding_only(program: Program, traced: jax.stages.Traced) -> Any:
        if program.loop_trips == 1:
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no layout")
        return traced.lower().compile()

    monkeypatch.setattr(Program, "compile", compile_decoding_only)
    assert cli.main(TINY) == 1
    out = capsys.readouterr().out
    assert "train: does NOT compile: INVALID_ARGUMENT: no layout" in out
    assert "decode: fits" in out


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        (TINY[:1], "--model"),
        ([*TINY, "--steps", "trian"], "train, score, decode"),
        ([*TINY, "--steps", "score"], "PromptConfig.head"),
        ([*TINY, "--topology", "v5e:4"], "GENERATION:SHAPE"),
    ],
)
def test_what_cannot_be_compiled(
    capsys: pytest.CaptureFixture[str], arguments: list[str], keyword: str
) -> None:
    assert cli.main(arguments) == 2
    assert keyword in capsys.readouterr().err


@needs_libtpu
def test_a_slice_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--topology", "v5e:2x2", "--steps", "train"]) == 0
    out = capsys.readouterr().out
    assert "train: fits" in out
    assert "of 15.75 GiB" in out
    assert "all-gather" in out
    assert cli.main([*TINY, "--topology", "v5e:3x5"]) == 2


@pytest.fixture(autouse=True)
def _clear_gin() -> Any:
    yield
    gin.clear_config()


def test_a_report_without_a_limit_fits() -> None:
    report = StepReport("train", 1, available_bytes=None, needed_bytes=10)
    assert report.fits
    assert not dataclasses.replace(report, available_bytes=9).fits

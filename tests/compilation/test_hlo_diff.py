"""The compiled training step sends and holds no more than was accepted.

A change for the worse that is meant is accepted by `make accept`, which writes accepted.json anew.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jaxlib
import pytest

from m6rec_jax.compilation.step_report import StepReport
from tests.compilation.hlo_diff import (
    Accepted,
    read_accepted,
    regressions,
)

HERE = Path(__file__).resolve().parent
ACCEPTED = HERE / "accepted.json"
SETS = ("data parallel", "fully sharded", "2-D with tensor")
TUNED = "fully sharded, option-adapter tuning"


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "eight_devices.py")],
        capture_output=True,
        text=True,
        cwd=HERE.parent.parent,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Involuntary full rematerialization" not in done.stderr, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def compiled(told: dict[str, Any]) -> dict[str, StepReport]:
    return {name: StepReport.from_json(one) for name, one in told["reports"].items()}


@pytest.mark.parametrize("rules", [*SETS, TUNED])
def test_no_worse_than_accepted(compiled: dict[str, StepReport], rules: str) -> None:
    accepted, versions = read_accepted(ACCEPTED)
    here = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    if here != versions:
        pytest.skip(f"accepted figures are of {versions}, this is {here}")
    worse = regressions(accepted[rules], Accepted.of(compiled[rules]))
    assert not worse, (
        f"the training step of {rules!r} got worse:\n  "
        + "\n  ".join(worse)
        + "\nIf that is meant: make accept"
    )


def test_what_each_rule_set_sends(compiled: dict[str, StepReport]) -> None:
    """Every rule set has the collectives it is made of, and no other kind in the layer loop."""
    kinds = {
        rules: {group.kind for group in report.collectives if group.place == "layer loop"}
        for rules, report in compiled.items()
        if rules != TUNED
    }
    assert kinds["data parallel"] == {"all-reduce"}
    for rules in SETS[1:]:
        assert kinds[rules] == {"all-gather", "all-reduce"}
    # Nothing is computed twice: the same products, however they are split.
    products = {compiled[rules].executed_flops for rules in SETS}
    assert len(products) == 1
    # Split eight ways, the state takes an eighth, and activations stay.
    held = {rules: report.memory.arguments["params"] for rules, report in compiled.items()}
    assert held["fully sharded"] == pytest.approx(held["data parallel"] / 8, rel=0.05)
    peak = {rules: report.memory.peak for rules, report in compiled.items()}
    assert peak["fully sharded"] < peak["data parallel"] / 4


def test_a_frozen_backbone_has_no_gradients(compiled: dict[str, StepReport]) -> None:
    tuned, whole = compiled[TUNED], compiled["fully sharded"]

    def summed(report: StepReport) -> int:
        return sum(
            group.moved_bytes
            for group in report.collectives
            if group.kind == "all-reduce" and group.place == "layer loop"
        )

    # Of prompts alone, in the layers those of adapters.
    assert summed(tuned) < summed(whole) / 50
    assert 1.0 <= tuned.flops_ratio < 1.2
    assert tuned.executed_flops < whole.executed_flops * 0.9
    arguments = tuned.memory.arguments
    assert max(arguments["optimizer"], arguments["prompts"]) < arguments["params"] / 20


def test_gradients_of_data_parallel_are_summed_once(compiled: dict[str, StepReport]) -> None:
    report = compiled["data parallel"]
    summed = sum(group.payload_bytes for group in report.collectives if group.kind == "all-reduce")
    params = report.memory.arguments["params"]
    # On top (sizes are those of eight_devices.CONFIG, in float32): the table once more, for either
    # tower's look-ups are summed alone, ...
    table = 4 * 256 * 64
    # ... and position biases, in both layers of both towers as they meet the 4 heads' scores.
    biases = 4 * 4 * (2 * 32**2 + 2 * 16**2)
    # The biases' own parameters follow from those sums; metrics and norms are a few numbers more.
    assert summed == pytest.approx(params + table + biases, rel=0.005)

"""Compares what a step sends and holds with what was accepted before.

A change of the model, of the rules or of JAX can make XLA gather what it scattered, or keep what it
let go, without any value changing. Figures of a small step are therefore kept in a file, and a test
fails when they get worse.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from m6rec_jax.compilation.step_report import StepReport

# Layouts and fusions move a few bytes from one release of XLA to the next.
TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """Figures of one step.

    Attributes:
      memory_bytes: alive at a time on a device, at most.
      sent: for each kind of collective and place, such as 'all-gather, layer loop': executions, and
        bytes that a device sends.
    """

    memory_bytes: int
    sent: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, report: StepReport) -> Accepted:
        """What a report has of them; asynchronous or not is the scheduler's choice, not counted."""
        sent: dict[str, tuple[int, int]] = {}
        for group in report.collectives:
            key = f"{group.kind}, {group.place}"
            executions, moved = sent.get(key, (0, 0))
            sent[key] = executions + group.executions, moved + group.moved_bytes
        return cls(report.memory.peak, dict(sorted(sent.items())))


def regressions(accepted: Accepted, now: Accepted) -> list[str]:
    """What got worse, in words; empty where nothing did."""
    found = []
    if _worse(accepted.memory_bytes, now.memory_bytes):
        found.append(f"memory: {accepted.memory_bytes:,} -> {now.memory_bytes:,} bytes a device")
    for key in sorted({*accepted.sent, *now.sent}):
        before, after = accepted.sent.get(key, (0, 0)), now.sent.get(key, (0, 0))
        if after[0] > before[0]:
            found.append(f"{key}: executed {before[0]} -> {after[0]} times a step")
        if _worse(before[1], after[1]):
            found.append(f"{key}: {before[1]:,} -> {after[1]:,} bytes sent a device")
    return found


def write_accepted(path: Path, steps: Mapping[str, Accepted], versions: Mapping[str, str]) -> None:
    """Writes steps by name, and versions of what compiled them."""
    named = {name: dataclasses.asdict(step) for name, step in steps.items()}
    path.write_text(json.dumps({"versions": versions, "steps": named}, indent=2) + "\n")


def read_accepted(path: Path) -> tuple[dict[str, Accepted], dict[str, str]]:
    """What `write_accepted` was given."""
    values = json.loads(path.read_text())
    steps = {
        name: Accepted(step["memory_bytes"], {key: tuple(v) for key, v in step["sent"].items()})
        for name, step in values["steps"].items()
    }
    return steps, values["versions"]


def _worse(before: int, after: int) -> bool:
    return after > before * (1 + TOLERANCE)

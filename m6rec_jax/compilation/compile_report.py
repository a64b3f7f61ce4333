"""The report of `m6rec compile`: one topology, one run, several steps; as JSON and as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from m6rec_jax.compilation.advice import COMFORTABLE
from m6rec_jax.compilation.step_report import StepReport
from m6rec_jax.compilation.topologies import GIB, Topology


@dataclasses.dataclass(frozen=True, slots=True)
class CompileReport:
    """Everything that was found out.

    Attributes:
      topology: name, slices, chips and chip.
      run: model, gin files, bindings, mesh, rules, batch, lengths, compiler options.
      made: versions, processor, the machine's load.
      steps: a report per step.
      left_out: steps that the run does not have, and why.
      warnings: what the run was warned of, such as axes that are copied to every device.
    """

    topology: Mapping[str, Any]
    run: Mapping[str, Any]
    made: Mapping[str, Any]
    steps: Sequence[StepReport]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def fits(self) -> bool:
        """All steps do."""
        return all(step.fits for step in self.steps)

    def to_json(self) -> str:
        """The text of `m6rec compile --json`."""
        values = {
            "topology": dict(self.topology),
            "run": dict(self.run),
            "made": dict(self.made),
            "steps": [step.to_json() for step in self.steps],
            "left_out": dict(self.left_out),
            "warnings": list(self.warnings),
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def render(self) -> str:
        """The report for people."""
        run = self.run
        mesh = ", ".join(f"{axis} {size}" for axis, size in run["mesh"].items())
        head = [
            f"{self.topology['text']}, {run['name']}: {run['rows']} rows of "
            f"{run['source_length']} + {run['target_length']} tokens, trains {run['trainable']}",
            f"mesh {mesh}; rules {_rules(run['rules'])}",
            *(f"warning: {text}" for text in self.warnings),
        ]
        parts = ["\n".join(head), *(render_step(step) for step in self.steps)]
        parts += [f"{name}: left out, {why}" for name, why in self.left_out.items()]
        return "\n\n".join(parts)


def describe_topology(topology: Topology) -> dict[str, Any]:
    """The entry `topology` of a report."""
    return {
        "text": str(topology),
        "name": topology.name,
        "accelerator_type": topology.accelerator_type,
        "slices": topology.num_slices,
        "chips": topology.num_chips,
        "chip": dataclasses.asdict(topology.chip),
    }


def render_step(report: StepReport) -> str:
    """What is known of a step, as lines of text."""
    memory = report.memory
    spare = 1 - memory.share
    if report.error:
        lines = [f"{report.step}: does NOT compile: {report.error}"]
        if not memory.needed:  # nothing is known of it
            return "\n".join([*lines, *_advice(report)])
    else:
        verdict = "fits" if report.fits else "does NOT fit"
        lines = [f"{report.step}: {verdict}"]
    lines.append(
        _line(
            "memory",
            f"{memory.needed / GIB:.2f} of {memory.available / GIB:.2f} GiB a device, "
            + (f"{spare:.0%} to spare" if spare >= 0 else f"{-spare:.0%} too much")
            + ("" if spare >= 1 - COMFORTABLE else f" (less than {1 - COMFORTABLE:.0%})"),
        )
    )
    held = [f"{name} {size / GIB:.2f}" for name, size in memory.arguments.items() if size]
    lines.append(_line("", f"{', '.join(held)} GiB; temporary {memory.temporary / GIB:.2f} GiB"))
    own = report.total_model_flops
    if report.error:
        return "\n".join([*lines, *_advice(report)])
    parts = ", ".join(
        f"{name} {part / own:.0%}" for name, part in report.model_flops.items() if part
    )
    lines += [
        _line(
            "products",
            f"{report.executed_flops:.3e} executed, {own:.3e} the model's own ({parts}): "
            f"{report.flops_ratio:.2f} times",
        ),
        _line("main memory", f"{report.memory_bytes / 1e9:.1f} GB read and written a device"),
    ]
    lines += _communication(report)
    times = report.seconds
    lines += [
        _line(
            "roofline",
            f"{1e3 * times['step']:.1f} ms a step, bound by {report.bound}, utilisation "
            f"{report.utilisation:.0%}",
        ),
        _line(
            "",
            f"compute {1e3 * times['compute']:.1f}, memory {1e3 * times['memory']:.1f}, links "
            f"{1e3 * times['links']:.1f}, between slices {1e3 * times['slices']:.1f} ms; nothing "
            f"hides {1e3 * times['exposed']:.1f} ms",
        ),
        _line(
            "compiled",
            f"in {report.compile_seconds:.0f} s ({report.compile_cpu_seconds:.0f} s of processor "
            f"time), traced in {report.trace_seconds:.0f} s",
        ),
    ]
    for path in report.unknown_loops:
        lines.append(_line("loop", f"counted at its longest, it may end early: {path}"))
    return "\n".join([*lines, *_advice(report)])


def _communication(report: StepReport) -> list[str]:
    if not report.collectives:
        return [_line("collectives", "none")]
    lines = [
        _line(
            "collectives",
            f"{sum(group.moved_bytes for group in report.collectives) / 1e9:.2f} GB sent a device; "
            f"in the layer loop {report.layer_bytes / 1e9:.2f} GB, "
            f"{report.asynchronous_share:.0%} of it asynchronous",
        )
    ]
    for group in report.collectives:
        network = " between slices" if group.between_slices else ""
        manner = "asynchronous" if group.asynchronous else "synchronous"
        lines.append(
            _line(
                "",
                f"{group.moved_bytes / 1e6:10.1f} MB  {group.executions:5d} × {group.kind}"
                f"{network}, {group.place}, {manner}",
            )
        )
    for kind, path, size in report.synchronous:
        lines.append(_line("", f"not asynchronous: {size / 1e6:.1f} MB {kind} {_short(path)}"))
    return lines


def _advice(report: StepReport) -> list[str]:
    return [_line("change" if not i else "", text) for i, text in enumerate(report.advice)]


def _line(title: str, text: str) -> str:
    return f"  {title:12} {text}"


def _short(path: str) -> str:
    return path if len(path) <= 90 else "…" + path[-89:]


def _rules(rules: Sequence[Sequence[Any]]) -> str:
    def axes(value: Any) -> str:
        return "+".join(value) if isinstance(value, list | tuple) else str(value)

    return ", ".join(f"{logical} → {axes(mesh)}" for logical, mesh in rules)

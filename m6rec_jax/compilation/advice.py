"""What to change in a run, by what its compiled step takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from m6rec_jax.compilation.step_report import StepReport
from m6rec_jax.compilation.topologies import GIB

# A step is said to be comfortable with that much memory left: batches differ, runtimes reserve.
COMFORTABLE = 0.75
# Beyond that ratio of executed to own operations, something is computed twice or more.
LEAST_WASTE = 1.4
LEAST_ASYNCHRONOUS = 0.8
# Of a step: what waits for less is not worth a change.
LEAST_EXPOSED = 0.05
LOGITS_SHARE = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """What of a run can be changed.

    Attributes:
      mesh: sizes of its axes.
      rows: of a step on all devices.
      accumulation_steps, remat, trainable, frozen_dtype: as of the run.
      logits_bytes: of the vocabulary logits of one device and part, if they are made at once, else
        0.
      shards_parameters: no device holds all of them.
    """

    mesh: Mapping[str, int]
    rows: int
    accumulation_steps: int
    remat: str
    trainable: str
    frozen_dtype: str | None
    logits_bytes: int
    shards_parameters: bool


def advise(report: StepReport, setup: Setup) -> tuple[str, ...]:
    """Sentences, the most promising change first; none where all is well."""
    return (*_memory(report, setup), *_time(report, setup))


def _memory(report: StepReport, setup: Setup) -> Iterator[str]:
    memory = report.memory
    if memory.share <= COMFORTABLE:
        return
    alone = math.prod(setup.mesh.values()) == 1
    state = sum(size for name, size in memory.arguments.items() if name != "batch")
    if state > memory.available / 4:
        held = ", ".join(
            f"{name} {size / GIB:.1f} GiB"
            for name, size in memory.arguments.items()
            if name != "batch" and size
        )
        if alone:
            yield (
                f"the chip holds {held}: take a slice of several chips, and split them with "
                "--gin_file gin_configs/sharding/fully_sharded.gin"
            )
        elif not setup.shards_parameters:
            yield (
                f"every device holds {held}: split them with "
                "--gin_file gin_configs/sharding/fully_sharded.gin"
            )
        elif setup.mesh["data"] > 1:
            yield (
                f"a device holds {held} although data = {setup.mesh['data']}: give fsdp more "
                "devices (make_mesh.largest_fsdp)"
            )
        else:
            yield f"a device holds {held} with all devices sharing: take a larger slice"
        if setup.trainable == "prompts" and setup.frozen_dtype is None:
            yield "hold the frozen backbone in half the bytes: FROZEN_DTYPE = 'bfloat16'"
    if report.step != "train":
        if setup.rows > setup.mesh["data"] * setup.mesh["fsdp"]:
            yield "lower BATCH_SIZE, or take a larger slice"
        return
    if setup.logits_bytes > LOGITS_SHARE * memory.available:
        yield (
            f"vocabulary logits take {setup.logits_bytes / GIB:.1f} GiB a copy: make a few "
            "positions at a time with language_modelling_loss.chunk_length"
        )
    stronger = {"none": "dots", "dots": "full"}.get(setup.remat)
    if stronger:
        yield (
            f"let the backward pass recompute more: ModelConfig.remat = {stronger!r} (now "
            f"{setup.remat!r})"
        )
    in_a_part = setup.rows // (setup.mesh["data"] * setup.mesh["fsdp"] * setup.accumulation_steps)
    if in_a_part > 1:
        yield (
            f"a device computes {in_a_part} rows at a time: ACCUMULATION_STEPS = "
            f"{2 * setup.accumulation_steps} halves that, or lower BATCH_SIZE"
        )
    layers = "" if alone else ", or split layers as well: gin_configs/sharding/fully_sharded_2d.gin"
    yield f"take a larger slice{layers}"


def _time(report: StepReport, setup: Setup) -> Iterator[str]:
    if report.executed_flops and report.step == "train" and report.flops_ratio > LEAST_WASTE:
        cause = (
            "ModelConfig.remat = 'dots' would recompute less"
            if setup.remat == "full"
            else "look for computation that devices repeat: rules that leave large arrays whole"
        )
        yield (f"{report.flops_ratio:.2f} times the model's own operations are executed: {cause}")
    waits = report.seconds.get("exposed", 0) > LEAST_EXPOSED * report.seconds.get("step", 0)
    if waits and report.layer_bytes and report.asynchronous_share < LEAST_ASYNCHRONOUS:
        kind, path, size = report.synchronous[0]
        yield (
            f"only {report.asynchronous_share:.0%} of the bytes sent in the layer loop move while "
            f"something is computed; the largest that does not: {kind}, {size / 1e6:.0f} MB, {path}"
        )
    if report.bound == "communication":
        yield (
            "devices wait for one another: more rows a device, or fewer devices that share "
            "parameters (make_mesh.fsdp smaller, data larger)"
        )

"""Known-good configurations on TPUs: compiles them all, for slices that need not be there.

    python -m benchmarks.tpu_compile [--only NAME ...]

Runs `m6rec compile` for every entry of `CONFIGURATIONS` and adds its figures to
`benchmarks/results/compile.json`, from which `make results` renders `docs/tpu.md`. An entry that
has rows there, of the same command, is not compiled again unless `--only` names it. Needs libtpu
(the extra `compile`), but no TPU.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.command_line import errors_told
from benchmarks.results_file import add_rows, metric_rows, read_results, results_path
from m6rec_jax.compilation.command import compile_run
from m6rec_jax.compilation.compile_report import CompileReport
from m6rec_jax.compilation.step_report import StepReport
from m6rec_jax.compilation.topologies import GIB
from m6rec_jax.errors import M6RecError


@dataclass(frozen=True, slots=True)
class Configuration:
    """Arguments of `m6rec compile`.

    Attributes:
      name: in the table.
      topology, slices, model, tuning, bindings: see `compile_run`.
      step: which to compile; each takes minutes.
    """

    name: str
    topology: str
    model: str
    slices: int = 1
    tuning: str | None = None
    bindings: tuple[str, ...] = ()
    step: str = "train"

    @property
    def command(self) -> str:
        """What a user types."""
        words = ["m6rec compile", f"--topology {self.topology}"]
        words += [f"--slices {self.slices}"] if self.slices > 1 else []
        words += [f"--model {self.model}"]
        words += [f"--tuning {self.tuning}"] if self.tuning else []
        words += [f"--steps {self.step}"]
        return " ".join([*words, *(f"--gin.{binding}" for binding in self.bindings)])


# Gradients are scattered over 8 devices (96 columns each), and summed whole over 16 (48 columns).
BASE_MESH = "make_mesh.largest_fsdp=8"
BASE = ("BATCH_SIZE=256", BASE_MESH)
TUNED = "xl, option-adapter tuning, v5e-16"
CONFIGURATIONS = (
    Configuration("mini, one v5e", "v5e:1x1", "mini"),
    Configuration("small, v5e-4", "v5e:2x2", "small"),
    Configuration("base, v5e-16", "v5e:4x4", "base", bindings=BASE),
    Configuration("large, v5e-16", "v5e:4x4", "large"),
    Configuration(TUNED, "v5e:4x4", "xl", tuning="option_adapter"),
    Configuration("xl, v5e-256", "v5e:16x16", "xl", bindings=("BATCH_SIZE=1024",)),
    Configuration(
        "xl, 256 chips of v4",
        "v4:4x8x8",
        "xl",
        bindings=("BATCH_SIZE=1024", "SCOPED_VMEM_KIB=14336", "SUMS_BESIDE_PRODUCTS='false'"),
    ),
    Configuration(
        "base, two slices of v5e-16",
        "v5e:4x4",
        "base",
        slices=2,
        # Over 8 devices, as within one slice, XLA refuses a reduce-scatter that it has made itself
        # (libtpu 0.0.42: RET_CHECK of its verifier, shard_count = 1).
        bindings=("BATCH_SIZE=512",),
    ),
    Configuration(TUNED, "v5e:4x4", "xl", tuning="option_adapter", step="score"),
    Configuration("base, v5e-16", "v5e:4x4", "base", bindings=BASE, step="decode"),
)


def figures(step: StepReport, report: CompileReport) -> dict[str, float]:
    """A step's figures by metric."""
    found = {
        "chips": report.topology["chips"],
        "rows_per_step": report.run["rows"],
        "memory_gib": step.memory.needed / GIB,
        "memory_spare_percent": 100 * (1 - step.memory.share),
        "flops_ratio": step.flops_ratio,
        "sent_gigabytes": sum(group.moved_bytes for group in step.collectives) / 1e9,
        "roofline_milliseconds": 1e3 * step.seconds["step"],
        "roofline_utilisation_percent": 100 * step.utilisation,
        "compile_seconds": step.compile_seconds,
        "compile_processor_seconds": step.compile_cpu_seconds,
    }
    if step.layer_bytes:
        found["asynchronous_percent"] = 100 * step.asynchronous_share
    return found


def rows(configuration: Configuration, report: CompileReport) -> list[dict[str, Any]]:
    """Rows of the result file.

    Raises:
      M6RecError: a step did not compile, so that there are no figures.
    """
    found: list[dict[str, Any]] = []
    for step in report.steps:
        if step.error:
            raise M6RecError(f"{configuration.name}: {step.step}: {step.error}")
        mesh = " × ".join(f"{axis} {size}" for axis, size in report.run["mesh"].items() if size > 1)
        found += metric_rows(
            figures(step, report),
            model=configuration.name,
            dataset="tpu",
            split=step.step,
            seed=None,
            config=f"`{configuration.command}`: {mesh}",
        )
    return found


@errors_told
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 on an error."""
    parser = argparse.ArgumentParser(description="Compile the known-good configurations.")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="of CONFIGURATIONS; they are compiled again",
    )
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(configuration.name for configuration in CONFIGURATIONS))
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"unknown {', '.join(sorted(unknown))}; there are {'; '.join(names)}")
    path = results_path("compile")
    made = {(row["model"], row["split"]): row["config"] for row in read_results(path).rows}
    for one in CONFIGURATIONS:
        if options.only and one.name not in options.only:
            continue
        is_made = made.get((one.name, one.step), "").startswith(f"`{one.command}`:")
        if is_made and not options.only:
            print(f"{one.name}, {one.step}: has rows already")
            continue
        report = compile_run(
            one.topology,
            slices=one.slices,
            model=one.model,
            tuning=one.tuning,
            bindings=one.bindings,
            steps=(one.step,),
        )
        add_rows(path, rows(one, report))
        print(report.render() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every size has a known-good configuration, and a kept report is of its command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks import render_results, tpu_compile
from benchmarks.results_file import add_rows
from benchmarks.tpu_compile import CONFIGURATIONS, Configuration
from m6rec_jax.compilation.command import gin_files_of
from m6rec_jax.compilation.compile_report import CompileReport, describe_topology
from m6rec_jax.compilation.step_report import CollectiveGroup, Memory, StepReport
from m6rec_jax.compilation.topologies import GIB, parse_topology

MODELS = Path(__file__).parents[2] / "gin_configs" / "models"
ENTRY = Configuration("base, v5e-16", "v5e:4x4", "base", bindings=("BATCH_SIZE=256",))


def test_every_size_has_a_training_configuration() -> None:
    # `edge` is for phones.
    sizes = {file.stem for file in MODELS.glob("*.gin")} - {"architecture", "tiny", "edge"}
    trained = {one.model for one in CONFIGURATIONS if "train" in one.steps and one.tuning is None}
    assert trained == sizes
    for one in CONFIGURATIONS:
        parse_topology(one.topology, one.slices)
    made = {(one.name, tuple(one.steps)) for one in CONFIGURATIONS}
    assert len(made) == len(CONFIGURATIONS)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was compiled, by a stand-in that compiles nothing."""
    calls: list[dict[str, Any]] = []

    def compile_run(topology: str, *, steps: Any, **settings: Any) -> CompileReport:
        calls.append({"topology": topology, "steps": steps, **settings})
        files = gin_files_of(
            settings["model"], settings["tuning"], settings["sharding"], (), settings["slices"]
        )
        run = {
            "name": settings["model"],
            "gin_files": files,
            # As `m6rec compile` notes those of the command line.
            "bindings": [binding.replace("=", " = ") for binding in settings["bindings"]],
            "rows": 256,
            "mesh": {"data": 1, "fsdp": 16, "tensor": 1},
        }
        gathered = CollectiveGroup("all-gather", "layer loop", True, False, 12, 3000, 900)
        report = StepReport(
            "train",
            Memory(16 * GIB, 4 * GIB),
            {"towers": 10},
            executed_flops=11,
            collectives=(gathered,),
            seconds={"step": 0.1},
        )
        reports = tuple(dataclasses.replace(report, step=step) for step in steps)
        described = describe_topology(parse_topology(topology, settings["slices"]))
        return CompileReport(described, run, {}, reports)

    monkeypatch.setattr(tpu_compile, "compile_run", compile_run)
    return calls


@pytest.mark.parametrize(
    "change",
    [
        {"topology": "v5e:4x8"},
        {"slices": 2},
        {"model": "large"},
        {"tuning": "option_adapter"},
        {"sharding": "data_parallel"},
        {"bindings": ("BATCH_SIZE=512",)},
    ],
    ids=str,
)
def test_a_changed_entry_is_compiled_anew(
    compiled: list[dict[str, Any]], tmp_path: Path, change: dict[str, Any]
) -> None:
    for _ in range(2):
        tpu_compile._report(ENTRY, tmp_path)
    assert len(compiled) == 1
    changed = dataclasses.replace(ENTRY, **change)
    for _ in range(2):
        report = tpu_compile._report(changed, tmp_path)
    assert len(compiled) == 2
    assert report.run["bindings"] == [b.replace("=", " = ") for b in changed.bindings]


def test_only_what_was_compiled_stands_in_the_table(
    compiled: list[dict[str, Any]], tmp_path: Path
) -> None:
    report = tpu_compile._report(ENTRY, tmp_path)
    results = tmp_path / "results"
    results.mkdir()
    add_rows(results / "compile.json", tpu_compile.rows(ENTRY, report))
    template = (render_results.RESULTS / "compile.md").read_text()
    (results / "compile.md").write_text(template)
    pages, _ = render_results.render(results, tmp_path / "results.md")
    (page,) = [text for path, text in pages.items() if path.name == "tpu.md"]
    assert "| base, v5e-16 | 16 | 256 |" in page
    assert "small, v5e-4" not in page

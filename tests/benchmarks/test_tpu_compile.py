"""Every size has a known-good configuration, and one that has rows is not compiled again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks import render_results, tpu_compile
from benchmarks.results_file import add_rows
from benchmarks.tpu_compile import CONFIGURATIONS, Configuration
from m6rec_jax.compilation.compile_report import CompileReport, describe_topology
from m6rec_jax.compilation.step_report import CollectiveGroup, Memory, StepReport
from m6rec_jax.compilation.topologies import GIB, parse_topology

MODELS = Path(__file__).parents[2] / "gin_configs" / "models"
ENTRY = Configuration("base, v5e-16", "v5e:4x4", "base", bindings=("BATCH_SIZE=256",))


def test_every_size_has_a_training_configuration() -> None:
    # `edge` is for phones.
    sizes = {file.stem for file in MODELS.glob("*.gin")} - {"architecture", "tiny", "edge"}
    trained = {one.model for one in CONFIGURATIONS if one.step == "train" and one.tuning is None}
    assert trained == sizes
    for one in CONFIGURATIONS:
        parse_topology(one.topology, one.slices)
    made = {(one.name, one.step) for one in CONFIGURATIONS}
    assert len(made) == len(CONFIGURATIONS)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was compiled, by a stand-in that compiles nothing."""
    calls: list[dict[str, Any]] = []

    def compile_run(topology: str, *, steps: Any, **settings: Any) -> CompileReport:
        calls.append({"topology": topology, "steps": steps, **settings})
        run = {"rows": 256, "mesh": {"data": 1, "fsdp": 16, "tensor": 1}}
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
    monkeypatch.setattr(CompileReport, "render", lambda report: "")
    return calls


def test_a_changed_entry_is_compiled_anew(
    compiled: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tpu_compile, "results_path", lambda name: tmp_path / f"{name}.json")
    changed = dataclasses.replace(ENTRY, bindings=("BATCH_SIZE=512",))
    for entry in (ENTRY, ENTRY, changed):
        monkeypatch.setattr(tpu_compile, "CONFIGURATIONS", (entry,))
        assert tpu_compile.main([]) == 0
    assert [call["bindings"] for call in compiled] == [ENTRY.bindings, changed.bindings]
    assert tpu_compile.main(["--only", ENTRY.name]) == 0
    assert len(compiled) == 3


def test_only_what_was_compiled_stands_in_the_table(
    compiled: list[dict[str, Any]], tmp_path: Path
) -> None:
    report = tpu_compile.compile_run("v5e:4x4", steps=("train",), slices=1)
    results = tmp_path / "results"
    results.mkdir()
    add_rows(results / "compile.json", tpu_compile.rows(ENTRY, report))
    template = (render_results.RESULTS / "compile.md").read_text()
    (results / "compile.md").write_text(template)
    pages, _ = render_results.render(results, tmp_path / "results.md")
    (page,) = [text for path, text in pages.items() if path.name == "tpu.md"]
    assert "| base, v5e-16 | 16 | 256 |" in page
    assert "small, v5e-4" not in page

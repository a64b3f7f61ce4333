"""Memory kept between steps: whole turns on a tiny model, and what rows say of them."""

import pytest

from benchmarks import freed_memory, results_file
from m6rec_jax import host_memory


@pytest.mark.skipif(not host_memory._is_glibc(), reason="the allocator is not glibc's")
def test_steps_map_no_page_anew(tmp_path, monkeypatch):
    """At this size a step's buffers are too large for glibc to keep them by itself."""
    monkeypatch.setattr(freed_memory, "results_path", lambda name: tmp_path / f"{name}.json")
    for name in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX"):
        monkeypatch.delenv(name, raising=False)
    arguments = ["--model_file=gin_configs/models/mini.gin", "--batch=8", "--turns=1"]
    assert freed_memory.main(arguments) == 0
    rows = results_file.read_results(tmp_path / "freed_memory.json").rows
    found = {(row["model"], row["metric"]): row["value"] for row in rows}
    kept, returned = (
        {name: found[model, name] for name in ("page_faults", "times_faster", "step_milliseconds")}
        for model in (freed_memory.KEPT, freed_memory.RETURNED)
    )
    assert kept["page_faults"] * 100 < returned["page_faults"]
    assert returned["times_faster"] == 1.0
    ratio = returned["step_milliseconds"] / kept["step_milliseconds"]
    assert kept["times_faster"] == pytest.approx(ratio, rel=1e-3)


def test_another_loss_is_an_error(tmp_path, monkeypatch, capsys):
    losses = iter([2.5, 2.5, 2.5, 2.25])
    monkeypatch.setattr(freed_memory, "results_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(
        freed_memory,
        "turn_of",
        lambda *_: {"seconds": 1.0, "faults": 1.0, "mib": 1.0, "loss": next(losses)},
    )
    assert freed_memory.main(["--turns=2"]) == 2
    assert "changes what is computed: losses are" in capsys.readouterr().err
    assert not (tmp_path / "freed_memory.json").exists()

"""Huge pages: what rows say of turns, and that a turn is a training step's."""

from typing import Any

import pytest

from benchmarks import freed_memory, results_file


@pytest.fixture
def turns(tmp_path, monkeypatch) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Turns by environment and processors, instead of real ones."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}

    def turn_of(name: str, processors: str, options: Any) -> dict[str, float]:
        return found[name, processors].pop(0)

    monkeypatch.setattr(freed_memory, "turn_of", turn_of)
    monkeypatch.setattr(freed_memory, "results_path", lambda name: tmp_path / f"{name}.json")
    return found


def turn(seconds: float, faults: float = 0.0, loss: float = 2.5) -> dict[str, float]:
    return {"seconds": seconds, "faults": faults, "mib": 100.0, "loss": loss}


def test_ratios_are_to_glibc_as_it_comes_on_the_same_processors(turns, tmp_path) -> None:
    plain, huge = freed_memory.ENVIRONMENTS
    turns[plain, "one"] = [turn(4.0, 8.0), turn(6.0, 9.0), turn(4.0, 7.0)]
    turns[huge, "one"] = [turn(2.0), turn(2.0), turn(9.0)]
    # Sums are split otherwise over more threads.
    turns[plain, "all"] = [turn(3.0, 5.0, 2.25)] * 3
    turns[huge, "all"] = [turn(2.0, 0.0, 2.25)] * 3
    assert freed_memory.main([]) == 0
    rows = results_file.read_results(tmp_path / "freed_memory.json").rows
    found = {(row["model"], row["split"], row["metric"]): row["value"] for row in rows}
    assert found[huge, "one", "times_faster"] == 2.0
    assert found[huge, "all", "times_faster"] == 1.5
    assert found[plain, "one", "times_faster"] == 1.0
    assert found[plain, "one", "page_faults"] == 7.0
    assert found[plain, "one", "step_milliseconds"] == 4000.0


def test_another_loss_is_an_error(turns, tmp_path, capsys) -> None:
    plain, huge = freed_memory.ENVIRONMENTS
    turns[plain, "one"], turns[huge, "one"] = [turn(1.0)], [turn(1.0, loss=2.75)]
    assert freed_memory.main(["--turns=1"]) == 2
    assert "changes what is computed: losses are" in capsys.readouterr().err
    assert not (tmp_path / "freed_memory.json").exists()

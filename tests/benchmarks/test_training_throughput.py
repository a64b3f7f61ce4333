"""Throughput beside others: our own step is a training step, and rows follow from the turns."""

import numpy as np
import pytest

from benchmarks import results_file
from benchmarks import training_throughput as throughput
from m6rec_jax import configuration
from m6rec_jax.model import ModelConfig


def test_our_own_step_learns_the_batch():
    """What is timed updates the parameters: the loss of a batch seen again and again falls."""
    configuration.parse_config(["gin_configs/models/tiny.gin"], [])
    config = ModelConfig(dropout_rate=0.0, dtype="float32")
    run = throughput.built_in_step(config, throughput.random_batch(2, config.vocab_size))
    losses = [float(run()["loss"]) for _ in range(8)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "check_installed", lambda: None)
    monkeypatch.setattr(throughput, "results_path", lambda name: tmp_path / f"{name}.json")
    return tmp_path / "training_throughput.json"


def test_ratios_are_to_the_faster_of_the_others(results, monkeypatch):
    turns = {
        throughput.OWN: [2.0, 9.0, 2.0],
        throughput.T5X: [8.0] * 3,
        throughput.HUGGING_FACE: [4.0] * 3,
        throughput.OWN_BFLOAT16: [2.0] * 3,
        throughput.HUGGING_FACE_BFLOAT16: [1.0] * 3,
    }
    monkeypatch.setattr(throughput, "seconds_of_turn", lambda name, _: turns[name].pop())
    assert throughput.main(["--batch", "10"]) == 0
    rows = results_file.read_results(results)
    found = {(row["model"], row["metric"]): row["value"] for row in rows}
    assert found[throughput.OWN, "throughput_ratio"] == 2.0
    assert found[throughput.T5X, "throughput_ratio"] == 0.5
    assert found[throughput.OWN_BFLOAT16, "throughput_ratio"] == 0.5
    assert found[throughput.OWN, "step_milliseconds"] == 2000
    assert found[throughput.OWN, "tokens_per_second"] == 10 * 320 / 2


def test_missing_libraries_are_named(monkeypatch, capsys):
    monkeypatch.setattr(throughput, "find_spec", lambda name: None if name == "t5x" else object())
    assert throughput.main([]) == 2
    assert "t5x cannot be imported: install t5x as docs/t5x.md says" in capsys.readouterr().err

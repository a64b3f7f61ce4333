"""The demo over seeds: what is run and kept."""

import json
from pathlib import Path

import pytest

from benchmarks import demo_seeds, results_file
from m6rec_jax.errors import DataError


def metrics(auc: float, **changes: float) -> dict[str, float]:
    return {
        "ctr.auc": auc,
        "ctr.log_loss": 0.56,
        "ctr.baselines.popularity.auc": 0.67,
        "ctr.baselines.smoothed_mean.auc": 0.736,
        "ctr.baselines.user_and_item_mean.auc": 0.73,
        "retrieval.hit_rate@10": 0.24,
        "retrieval.baselines.two_towers.hit_rate@10": 0.15,
        "retrieval.baselines.popularity.hit_rate@10": 0.06,
        "trainable_share": 0.0103,
        "seconds": 700.0,
    } | changes


def test_a_missing_figure_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    bad = metrics(0.7)
    del bad["retrieval.hit_rate@10"]
    path.write_text(json.dumps(bad))
    with pytest.raises(DataError, match=r"retrieval\.hit_rate@10"):
        demo_seeds.demo_rows(0, path)


def test_study_writes_rows_and_does_not_run_a_seed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def m6rec(command: str, _: str, seed: int, option: str, output: Path) -> None:
        assert (command, option) == ("demo", "--output")
        ran.append(seed)
        output.mkdir(parents=True)
        (output / "metrics.json").write_text(json.dumps(metrics(0.76 + 0.001 * seed)))

    monkeypatch.setattr(demo_seeds, "m6rec", m6rec)
    monkeypatch.setattr(demo_seeds, "results_path", lambda name: tmp_path / f"{name}.json")
    arguments = ["--seeds", "0", "1", "--output", str(tmp_path / "runs")]
    assert demo_seeds.main(arguments) == 0
    assert demo_seeds.main(arguments) == 0
    assert ran == [0, 1]
    rows = results_file.read_results(tmp_path / "demo.json")
    aucs = {(r["model"], r["seed"]): r["value"] for r in rows if r["metric"] == "auc"}
    assert aucs == {
        ("M6-Rec mini", 0): 0.76,
        ("M6-Rec mini", 1): 0.761,
        ("popularity", None): 0.67,
        ("smoothed mean", None): 0.736,
        ("user mean + item mean", None): 0.73,
    }
    found = {(r["model"], r["seed"]): r["value"] for r in rows if r["metric"] == "hit_rate@10"}
    assert found[("M6-Rec mini, hybrid", 1)] == 0.24
    assert found[("M6-Rec mini", 1)] == 0.15
    assert found[("popularity", None)] == 0.06

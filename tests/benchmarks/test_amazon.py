"""Baselines and the hybrid on a folder of sequences."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import amazon, amazon_towers, results_file, sasrec
from benchmarks.baselines import retrieval
from benchmarks.documented_path import commands_of
from m6rec_jax import cli


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty items in three kinds; users stay with one."""
    monkeypatch.setattr(sasrec, "_ROWS", 32)
    monkeypatch.setattr(sasrec, "_PLACES", 64)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    rng = np.random.default_rng(0)
    folder = tmp_path / "bath"
    folder.mkdir()
    kinds = ["soap", "comb", "towel"]
    items = "".join(f"i{n}\tA{n}\tbrand{n % 5} {kinds[n % 3]}\n" for n in range(30))
    (folder / "items.tsv").write_text("item_id\tasin\ttext\n" + items)
    lines = []
    for user in range(90):
        own = user % 3 + 3 * rng.permutation(10)[: 4 + user % 4]
        lines.append(" ".join([f"u{user}", *(f"i{item}" for item in own)]))
    (folder / "sequences.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_the_documented_path_has_other_names_and_seeds(tmp_path: Path) -> None:
    page = commands_of(*amazon_towers.PAGE)
    assert [command[1] for command in page[-4:]] == ["train", "train", "calibrate", "eval"]
    found = [amazon_towers.with_names(command, tmp_path / "games", 2) for command in page]
    words = [word for command in found for word in command]
    assert not [word for word in words if "beauty" in word]
    assert words.count("--gin.MODEL_DIR=runs/next_item-2") == 3
    assert words.count("--gin.train.seed=2") == 1  # the foundation is trained once
    for command in found:
        cli._parser().parse_known_args(command[1:])


def test_ease_is_the_regression_that_the_other_table_has(folder: Path) -> None:
    task = amazon.Task.read(folder, cold=False)
    seen = np.zeros((90, 30), np.float32)
    for user, items in enumerate(task.training):
        seen[user, items] = 1.0
    past = [own[:-1] for own in task.sequences]
    history = np.zeros_like(seen)
    for user, items in enumerate(past):
        history[user, list(items)] = 1.0
    expected = retrieval.ease(seen, history, penalty=250.0)
    np.testing.assert_allclose(amazon.ease(task)(past), expected, atol=1e-5)


def test_texts_alone_take_the_ratio_that_validation_prefers(folder: Path) -> None:
    task = amazon.Task.read(folder, cold=False)

    class Encoder:
        """Knows nothing."""

        @staticmethod
        def score(past):
            return np.tile(np.linspace(1, 0, len(task.texts), dtype=np.float32), (len(past), 1))

    score, ratio = amazon.texts_alone(task, Encoder())
    assert ratio == "0.8 : 0.2"
    words = amazon.on_validation(task, amazon.tf_idf(task))
    assert words / 2 < amazon.on_validation(task, score) <= words


def test_all_models_are_measured_and_new_items_are_found_by_text(folder: Path) -> None:
    models = [*amazon.BASELINES, *amazon.SASREC, "hybrid, no towers"]
    amazon.main([str(folder), "--models", *models])
    amazon.main([str(folder), "--cold", "--models", *models, "hybrid, candidates as LIGER"])
    rows = json.loads((folder.parent / "results" / "amazon.json").read_text())["rows"]
    found = {(row["model"], row["split"], row["metric"]): row["value"] for row in rows}
    whole, cold = "leave_one_out", "leave_one_out-cold5%"
    assert {model for model, *_ in found} == {*models, "hybrid, candidates as LIGER"}
    assert found["hybrid, no towers", whole, "coverage@30"] == 1.0
    # Kinds are told apart by words and by what goes together, not by popularity.
    for model in models[1:]:
        assert found[model, whole, "hit_rate@10"] > found["popularity", whole, "hit_rate@10"]
    assert found["hybrid, no towers", cold, "held_out/num_examples"] > 0
    of_new = "held_out/hit_rate@5"
    as_liger = found["hybrid, candidates as LIGER", cold, of_new]
    assert as_liger >= found["TF-IDF", cold, of_new]  # the same order of fewer
    assert found["hybrid, no towers", cold, of_new] > found["co-occurrence", cold, of_new] + 0.1

"""Variants of the foundation: equal time, the same rows, and bindings that exist."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import foundation_variants as variants
from benchmarks.provenance import ROOT
from benchmarks.results_file import read_results
from m6rec_jax import configuration
from m6rec_jax.data import sources
from m6rec_jax.errors import DataError


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Calls of `m6rec`, which trains two rows a second and evaluates one task."""
    made: list[tuple[str, ...]] = []

    def m6rec(*arguments: object) -> None:
        texts = tuple(map(str, arguments))
        made.append(texts)
        bindings = dict(text.removeprefix("--gin.").split("=", 1) for text in texts if "=" in text)
        folder = Path(bindings.get("MODEL_DIR", "").strip("'"))
        if texts[0] == "train":
            folder.mkdir(parents=True)
            (folder / "config.gin").write_text("BATCH_SIZE = 4\n")
            line = {"examples_per_second": 2.0, "tokens_per_second": 50.0}
            (folder / "metrics.jsonl").write_text((json.dumps(line) + "\n") * 3)
        if texts[0] == "eval":
            figures = {"talk/loss": 2.0, "talk/num_tokens": 10.0 * variants.EVAL_ROWS}
            Path(bindings["evaluate.output"].strip("'")).write_text(json.dumps(figures))

    monkeypatch.setattr(variants, "m6rec", m6rec)
    monkeypatch.setattr(variants, "Vocabulary", lambda path: SimpleNamespace(size=6144))
    monkeypatch.setattr(variants, "results_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path / "data"))
    return made


def test_steps_fill_the_minutes_and_rows_are_made_once(calls, tmp_path):
    arguments = ["--minutes", "10", "--variants", "deeper", "small_vocabulary"]
    arguments += ["--output", str(tmp_path / "runs")]
    assert variants.main(arguments) == 0
    trained = [call for call in calls if call[0] == "train"]
    steps = [re.findall(r"TRAIN_STEPS=(\d+)", " ".join(call))[0] for call in trained]
    # Ten minutes of steps of two seconds.
    assert steps == [str(variants.PACE_STEPS), "300"] * 2
    assert "--gin.ModelConfig.num_encoder_layers=4" in trained[1]
    (vocabulary,) = (call for call in calls if call[0] == "vocab")
    assert "--gin.train_vocabulary.size=6000" in vocabulary
    evaluated = [call for call in calls if call[0] == "eval"]
    assert "--gin.VOCAB_SIZE=6144" in evaluated[1]
    assert not any("VOCAB_SIZE" in text for text in evaluated[0])
    rows = read_results(tmp_path / "foundation_variants.json").rows
    found = {(row["model"], row["metric"]): row["value"] for row in rows}
    assert found["4 + 4 layers", "nats_a_text"] == 20.0
    assert found["4 + 4 layers", "steps"] == 300
    made = len(calls)
    assert variants.main(arguments) == 0
    assert len(calls) == made


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_bindings_are_of_the_recipe(name):
    """A name that no gin file knows would be found out after minutes only."""
    import gin

    bindings = ["MODEL_DIR='x'", *variants.VARIANTS[name].bindings]
    try:
        configuration.parse_config([ROOT / variants.pretrain_file(variants.NAME)], bindings)
    finally:
        gin.clear_config()


def test_a_text_without_language_tasks():
    with pytest.raises(DataError, match="no loss"):
        variants.nats_a_text({"auc": 0.5}, 10)
    figures = {"a/loss": 1.0, "a/num_tokens": 20.0, "b/loss": 3.0, "b/num_tokens": 10.0}
    assert variants.nats_a_text(figures, 10) == pytest.approx((2.0 + 3.0) / 2)

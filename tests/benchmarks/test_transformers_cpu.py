"""The study's own jobs answer; what they say is compared; ratios are to Hugging Face's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import transformers_cpu as study
from m6rec_jax.errors import M6RecError
from m6rec_jax.model import ModelConfig


@pytest.fixture
def folder(shop_vocabulary: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study, "LENGTH", 4)
    monkeypatch.setattr(study, "SOURCE_LENGTH", 5)
    monkeypatch.setattr(study, "LATE_LAYERS", (1,))
    requests = ["a film", "another one"], ["Film A", "Film B", "Another Film"]
    monkeypatch.setattr(study, "user_and_candidates", lambda vocabulary: requests)
    config = ModelConfig(
        vocab_size=shop_vocabulary.size,
        embed_dim=8,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=4,
        mlp_dim=16,
    )
    study.write_model(config, tmp_path / "model")
    (tmp_path / "words.model").write_bytes(Path(shop_vocabulary.model_file).read_bytes())
    return tmp_path


def test_own_jobs(folder: Path) -> None:
    found = {name: job() for name, job in study.own_jobs(folder, "float32").items()}
    assert [len(found[name]) for name in ("scoring", "scoring; 1 late, cached")] == [3, 3]
    for batch in study.BATCHES:
        texts = found[f"generation, batch {batch}"]
        assert texts.shape == (batch, 4)
        assert texts.min() > 1  # neither padding nor an end


@pytest.mark.parity
def test_programs_agree(folder: Path) -> None:
    for name in ("torch", "transformers", "ctranslate2"):
        pytest.importorskip(name, reason=f"needs {name}: make parity")
    vocab_size = study.read_huggingface(folder / "model").config.vocab_size
    study.write_ctranslate2(folder, vocab_size)
    makers = (study.own_jobs, study.huggingface_jobs, study.ctranslate2_jobs)
    programs = [make(folder, "float32") for make in makers]
    for job in programs[1]:
        study.check_agreement(job, [jobs[job]() for jobs in programs])


def test_results_that_differ_are_no_comparison() -> None:
    scores = np.array([-1.0, -2.0])
    study.check_agreement("scoring", [scores, scores + 1e-5])
    with pytest.raises(M6RecError, match="differ"):
        study.check_agreement("scoring", [scores, scores + 0.01])
    with pytest.raises(M6RecError, match="differ"):
        study.check_agreement("generation, batch 1", [np.array([[3, 4]]), np.array([[3, 5]])])


def test_ratios() -> None:
    theirs, own = "Hugging Face, float32", "m6rec_jax, bfloat16"
    found = study.figures(
        {
            (theirs, "scoring"): [4.0, 6.0, 5.0],
            (own, "scoring"): [1.0],
            (own, "scoring; 1 late, cached"): [0.5],
        }
    )
    assert found["scoring"][theirs] == {
        "request_milliseconds": 5000,
        "fastest_milliseconds": 4000,
        "times_faster": 1,
    }
    assert found["scoring"][own]["times_faster"] == 5
    assert found["scoring"][f"{own}, 1 late, cached"]["times_faster"] == 10

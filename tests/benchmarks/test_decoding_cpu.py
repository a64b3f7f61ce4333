"""The study's programs run; continuous and static batches answer the same requests."""

from typing import Any

import pytest

from benchmarks import decoding_cpu
from m6rec_jax.engine.continuous_generation import ContinuousGenerator
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.model import M6Rec, ModelConfig


def config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        embed_dim=8,
        num_encoder_layers=1,
        num_decoder_layers=2,
        num_heads=1,
        head_dim=8,
        mlp_dim=8,
        logits_via_embedding=True,
    )


def test_every_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_cpu, "BATCHES", (1,))
    found = decoding_cpu.steps(config(32), source_length=3, length=4)
    assert len(found) == 4
    for run in found.values():
        run()


def test_continuous_batches_answer_what_static_ones_do(shop_vocabulary: Any) -> None:
    model = M6Rec(config(shop_vocabulary.size))
    generator = decoding_cpu.without_end(
        ContinuousGenerator(
            model,
            decoding_cpu.random_variables(model),
            shop_vocabulary,
            EngineOptions(16, 16, source_buckets=(16,)),
            num_slots=3,
            row_counts=(3,),
            join_sizes=(3,),
        )
    )
    found = decoding_cpu.arrivals_study(generator, 7, turns=1)
    assert list(found) == ["at once", "arriving"]
    for kinds in found.values():
        for figures in kinds.values():
            assert 0 < figures["latency_p50_milliseconds"] <= figures["latency_p95_milliseconds"]

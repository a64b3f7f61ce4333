"""The study's programs run, and name what they are compared with."""

from benchmarks.decoding import study
from m6rec_jax.model import ModelConfig


def test_every_program_has_figures() -> None:
    config = ModelConfig(
        vocab_size=32,
        embed_dim=8,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_heads=1,
        head_dim=8,
        mlp_dim=8,
        logits_via_embedding=True,
    )
    found = study(config, batch=2, source_length=3, length=4, turns=1)
    assert list(found) == [
        "greedy, cached",
        "greedy, not cached",
        "4 beams, cached",
        "4 beams, not cached",
    ]
    for figures in found.values():
        tokens = figures["tokens_per_second"] * figures["step_milliseconds"] / 1000
        assert round(tokens) in (2, 8)
    assert found["4 beams, not cached"]["times_faster"] == 1

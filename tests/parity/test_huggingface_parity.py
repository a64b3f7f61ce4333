"""Logits equal those of Hugging Face's `T5ForConditionalGeneration`, both ways, for all its kinds.

Needs torch and transformers (the extra `parity`): `make parity`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.checkpoints.huggingface import read_huggingface, write_huggingface
from m6rec_jax.checkpoints.t5_weights import Weights
from m6rec_jax.checkpoints.trees import nested
from m6rec_jax.model import M6Rec

torch = pytest.importorskip("torch", reason="parity needs torch: make parity")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: make parity")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.parity

# Of the largest absolute logit, in float32.
TOLERANCE = 1e-4

# Sizes small, but what differs between the kinds is as published: vocabulary (its padding too),
# depth of the towers, activation, head.
KINDS: dict[str, dict[str, Any]] = {
    "t5_1_0": {"model_type": "t5", "feed_forward_proj": "relu", "vocab_size": 32128},
    "t5_1_1": {
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 32128,
        "tie_word_embeddings": False,
    },
    "flan_t5": {
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 32128,
        "num_heads": 6,  # times d_kv is not d_model, as in small
        "num_decoder_layers": 4,
        "tie_word_embeddings": False,
    },
    "mt5": {
        "model_type": "mt5",
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 250112,
        "tie_word_embeddings": False,
    },
    "umt5": {
        "model_type": "umt5",
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 256384,
        "tie_word_embeddings": False,
    },
}
SIZES = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 3, "num_heads": 4}
# Beyond the last bucket of distances (128), with rows that end where a bucket does.
SOURCE_LENGTHS, TARGET_LENGTHS = (150, 65, 17, 1), (140, 33, 9, 2)


def make_reference(values: dict[str, Any]) -> Any:
    """A model with random weights: no norm is 1, no bias small enough to hide."""
    config = transformers.AutoConfig.for_model(**values)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(like: Any) -> Any:
        return torch.randn(like.shape, generator=generator)

    if values.get("tie_word_embeddings") is False:
        # Transformers 5.24 ties the head of every T5 that it makes, whatever its config says.
        head = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        model.lm_head.weight = head
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "embed" in name or "bias" in name else 0.3
            base = 1.0 if "layer_norm" in name else 0.0
            parameter.copy_(base + scale * noise(parameter))
    return model


def save_reference(model: Any, values: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    if values.get("tie_word_embeddings") is not False:
        copies.add("lm_head.weight")
    tensors = {name: t.contiguous() for name, t in model.state_dict().items() if name not in copies}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values))


def padded(lengths: tuple[int, ...], vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and where they are; what is padding is 0, which T5 starts targets with too."""
    rng = np.random.default_rng(seed)
    blocks = np.stack([np.arange(max(lengths)) < length for length in lengths]).astype(np.int32)
    tokens = np.where(blocks, rng.integers(1, vocab_size, blocks.shape), 0).astype(np.int32)
    return tokens, blocks


def compare(weights: Weights, reference: Any) -> float:
    """The largest difference over the largest absolute logit, where there are tokens."""
    source, source_blocks = padded(SOURCE_LENGTHS, weights.config.vocab_size, 1)
    target, target_blocks = padded(TARGET_LENGTHS, weights.config.vocab_size, 2)
    target[:, 0] = 0
    model = M6Rec(weights.config)
    variables = {"params": nested(weights.leaves)}
    features = {
        "encoder_input_tokens": source,
        "encoder_block_ids": source_blocks,
        "decoder_input_tokens": target,
        "decoder_block_ids": target_blocks,
    }

    @jax.jit
    def logits(variables: Any) -> jax.Array:
        return model.apply(
            variables, model.apply(variables, features).hidden, method=model.token_logits
        )

    ours = np.asarray(logits(variables))
    with torch.no_grad():
        theirs = reference(
            input_ids=torch.from_numpy(source).long(),
            attention_mask=torch.from_numpy(source_blocks).long(),
            decoder_input_ids=torch.from_numpy(target).long(),
            decoder_attention_mask=torch.from_numpy(target_blocks).long(),
        ).logits.numpy()
    seen = target_blocks == 1
    largest = np.abs(theirs[seen]).max()
    assert largest > 1, "logits this small would prove little"
    return float(np.abs(ours[seen] - theirs[seen]).max() / largest)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_equal(
    kind: str, tmp_path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**SIZES, **KINDS[kind]}
    reference = make_reference(values)
    save_reference(reference, values, tmp_path / "theirs")
    weights = read_huggingface(tmp_path / "theirs")
    error = compare(weights, reference)
    record_property("relative_error", error)
    with capsys.disabled():
        print(f"\n{kind}: {error:.1e} of the largest logit")
    assert error < TOLERANCE

    # And the other way: transformers loads what we write, and computes the same.
    write_huggingface(weights, tmp_path / "ours")
    loaded, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(loaded) is type(reference)
    assert compare(weights, loaded.eval()) < TOLERANCE

    # What it then saves says that the head is tied, whether it is or not.
    loaded.save_pretrained(tmp_path / "resaved")
    resaved = read_huggingface(tmp_path / "resaved")
    assert resaved.config == weights.config
    for name, leaf in weights.leaves.items():
        np.testing.assert_array_equal(resaved.leaves[name], leaf, err_msg=name)


def test_a_model_that_transformers_has_saved_itself(tmp_path: Path) -> None:
    """It ties T5 1.1's head and keeps its logits unscaled."""
    values = {**SIZES, **KINDS["t5_1_1"]}
    reference = make_reference(values)
    reference.lm_head.weight = reference.shared.weight
    reference.save_pretrained(tmp_path)
    assert compare(read_huggingface(tmp_path), reference) < TOLERANCE

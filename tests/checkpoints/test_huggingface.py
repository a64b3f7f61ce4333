"""Hugging Face folders: what is read, what is written, and every way in which one can be wrong."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from m6rec_jax.checkpoints.huggingface import (
    read_huggingface,
    write_huggingface,
)
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model import ModelConfig
from tests.checkpoints.t5_weights import (
    CONFIGS,
    T5_1_0,
    T5_1_1,
    UMT5,
    assert_same_leaves,
    random_weights,
)

Tensors = dict[str, np.ndarray]
LAST_KEY = "encoder.block.2.layer.0.SelfAttention.k.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_huggingface(random_weights(T5_1_1), tmp_path / "model")
    return tmp_path / "model"


def edit_tensors(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def split(folder: Path) -> None:
    """As transformers saves large models."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for part in range(2):
        file = f"model-{part + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[part::2]}, folder / file)
        weight_map |= dict.fromkeys(names[part::2], file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def edit_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    values = {name: value for name, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_round_trip(config: ModelConfig, tmp_path: Path) -> None:
    weights = random_weights(config)
    write_huggingface(weights, tmp_path / "model")
    for _ in range(2):
        again = read_huggingface(tmp_path / "model")
        assert again.config == config
        assert_same_leaves(again, weights)
        if (tmp_path / "model" / "model.safetensors").exists():
            split(tmp_path / "model")


def test_names_and_layouts(folder: Path) -> None:
    """Spelled out by hand, once, from published checkpoints."""
    tensors = load_file(folder / "model.safetensors")
    leaves = random_weights(T5_1_1).leaves
    assert len(tensors) == 2 + 3 * 9 + 2 * 14 + 4
    np.testing.assert_array_equal(tensors["shared.weight"], leaves["token_embedder/embedding"])
    np.testing.assert_array_equal(tensors["lm_head.weight"], leaves["logits_head/kernel"].T)
    # [heads · kv, embed]: heads vary slowest.
    query = leaves["decoder/layers/cross_attention/query/kernel"][1]
    np.testing.assert_array_equal(
        tensors["decoder.block.1.layer.1.EncDecAttention.q.weight"][4 * 2 + 3], query[:, 2, 3]
    )
    out = leaves["encoder/layers/self_attention/out/kernel"][2]
    np.testing.assert_array_equal(
        tensors["encoder.block.2.layer.0.SelfAttention.o.weight"][:, 4 * 1 + 2], out[1, 2]
    )
    np.testing.assert_array_equal(
        tensors["decoder.block.0.layer.2.DenseReluDense.wi_1.weight"],
        leaves["decoder/layers/mlp/wi_1/kernel"][0].T,
    )
    np.testing.assert_array_equal(
        tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
        leaves["encoder/relative_bias/embedding"],
    )
    np.testing.assert_array_equal(
        tensors["decoder.block.1.layer.1.layer_norm.weight"],
        leaves["decoder/layers/cross_attention_norm/scale"][1],
    )
    np.testing.assert_array_equal(
        tensors["decoder.final_layer_norm.weight"], leaves["decoder/final_norm/scale"]
    )


def test_half_precision_is_widened_exactly(folder: Path) -> None:
    kind = jnp.bfloat16

    def halve(tensors: Tensors) -> None:
        for name, values in tensors.items():
            tensors[name] = values.astype(kind)

    edit_tensors(folder, halve)
    head = read_huggingface(folder).leaves["logits_head/kernel"]
    expected = random_weights(T5_1_1).leaves["logits_head/kernel"].astype(kind)
    assert head.dtype == np.float32
    np.testing.assert_array_equal(head, expected.astype(np.float32))


def test_copies_and_leftovers_of_other_versions(folder: Path) -> None:
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

    def add(tensors: Tensors) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
        tensors[name] = np.zeros((32, 3), np.float32)

    edit_tensors(folder, add)
    weights = read_huggingface(folder)
    assert_same_leaves(weights, random_weights(T5_1_1))
    assert any("encoder.embed_tokens.weight" in note for note in weights.notes)
    assert any(name in note for note in weights.notes)


# --- where the logits come from -------------------------------------------------------------------


def test_without_the_setting_the_head_itself_decides(folder: Path, tmp_path: Path) -> None:
    edit_config(folder, tie_word_embeddings=...)
    assert not read_huggingface(folder).config.logits_via_embedding
    write_huggingface(random_weights(T5_1_0), tmp_path / "tied")
    edit_config(tmp_path / "tied", tie_word_embeddings=...)
    assert read_huggingface(tmp_path / "tied").config.logits_via_embedding


def test_a_tied_head_without_scale_becomes_a_head_of_its_own(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    edit_config(folder, tie_word_embeddings=True, scale_decoder_outputs=False)
    weights = read_huggingface(folder)
    assert not weights.config.logits_via_embedding
    np.testing.assert_array_equal(
        weights.leaves["logits_head/kernel"], weights.leaves["token_embedder/embedding"].T
    )


def test_contradictions_about_the_head(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' differs from 'shared.weight'"):
        read_huggingface(folder)
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head.weight', wanted \[128, 8\]"):
        read_huggingface(folder)
    edit_config(folder, model_type="mt5", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="depends on the version of transformers"):
        read_huggingface(folder)


# --- tensors and files that do not fit -----------------------------------------------------------


def test_every_tensor_that_does_not_fit_is_named(folder: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        del tensors["decoder.block.1.layer.2.DenseReluDense.wo.weight"]
        tensors["encoder.block.7.layer.0.layer_norm.weight"] = np.ones(8, np.float32)
        tensors[LAST_KEY] = np.ones((8, 12), np.float32)
        tensors["encoder.final_layer_norm.weight"] = np.ones(8, np.int32)

    edit_tensors(folder, spoil)
    with pytest.raises(CheckpointError) as caught:
        read_huggingface(folder)
    for part in (
        "no tensor 'decoder.block.1.layer.2.DenseReluDense.wo.weight', wanted [8, 10] for "
        "decoder/layers/mlp/wo/kernel[1]",
        "tensor 'encoder.block.7.layer.0.layer_norm.weight' [8] has no place in the model",
        f"tensor '{LAST_KEY}' is [8, 12], wanted [12, 8] for "
        "encoder/layers/self_attention/key/kernel[2]",
        "tensor 'encoder.final_layer_norm.weight' is int32, not one of float32",
    ):
        assert part in str(caught.value)


def test_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing, truncated"):
        read_huggingface(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        read_huggingface(tmp_path / "nowhere")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Pickled weights"):
        read_huggingface(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        read_huggingface(folder)


def test_missing_parts(folder: Path) -> None:
    split(folder)
    part = folder / "model-00001-of-00002.safetensors"
    part.unlink()
    with pytest.raises(CheckpointError, match=rf"{part.name} is missing"):
        read_huggingface(folder)


# --- config.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, "model_type 'bart' is not one of t5, mt5, umt5"),
        ({"d_model": ..., "d_kv": ...}, "does not say 'd_model'"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj 'gelu' is not one of gated-gelu"),
        ({"num_layers": 0}, "num_encoder_layers = 0 must be"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_huggingface(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (T5_1_1.replace(mlp_activations=("tanh", "linear")), "mlp_activations"),
        (T5_1_1.replace(share_layers=True), "share_layers"),
        (T5_1_1.replace(embedding_rank=2), "embedding_rank = 2"),
    ],
)
def test_models_that_cannot_be_written(config: ModelConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_huggingface(random_weights(config), tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "model_type", "written", "architecture"),
    [
        (T5_1_1, None, "t5", "T5ForConditionalGeneration"),
        (T5_1_1, "mt5", "mt5", "MT5ForConditionalGeneration"),
        (UMT5, None, "umt5", "UMT5ForConditionalGeneration"),
    ],
)
def test_a_model_keeps_its_type(
    config: ModelConfig, model_type: str | None, written: str, architecture: str, tmp_path: Path
) -> None:
    """By it transformers' Auto classes choose the model's class and its tokenizer's."""
    weights = dataclasses.replace(random_weights(config), model_type=model_type)
    write_huggingface(weights, tmp_path / "model")
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (values["model_type"], values["architectures"]) == (written, [architecture])
    assert read_huggingface(tmp_path / "model").model_type == written


@pytest.mark.parametrize(
    ("config", "model_type", "fitting"),
    [(T5_1_1, "umt5", "t5"), (UMT5, "mt5", "umt5"), (T5_1_0, "mt5", "t5")],
)
def test_types_that_would_compute_something_else(
    config: ModelConfig, model_type: str, fitting: str, tmp_path: Path
) -> None:
    weights = dataclasses.replace(random_weights(config), model_type=model_type)
    with pytest.raises(ConfigError, match=f"write it as '{fitting}'"):
        write_huggingface(weights, tmp_path / "model")
    assert not list(tmp_path.iterdir())

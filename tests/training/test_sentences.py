"""A sentence encoder's folder, and its tokens of the blocks of a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from m6rec_jax.checkpoints.bert import read_bert
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.bert import BertConfig, sentence_vectors, weight_shapes
from m6rec_jax.objectives.sentences import SENTENCE_VECTORS, SentenceDistillation
from m6rec_jax.training.sentences import SentenceEncoder, add_sentences

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "liked",
    "film",
    "##s",
    "a",
    "b",
    ",",
    "2",
    "days",
    "ago",
]
CONFIG = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)


def write_encoder(tmp_path: Path, weights: Callable[[tuple[int, ...]], np.ndarray]) -> Path:
    """The folder of a tiny encoder, whose weights are of the shapes asked for."""
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 16, "type_vocab_size": 2}
    values = {"model_type": "bert", "intermediate_size": 12, **sizes, **vars(CONFIG)}
    (tmp_path / "config.json").write_text(json.dumps(values))
    shapes = weight_shapes(CONFIG, len(WORDS), 16, 2, 12)
    made = {f"bert.{name}": weights(shape).astype(np.float16) for name, shape in shapes.items()}
    save_file(made, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path, np.ones)


def test_blocks_become_sentences_once(folder: Path, shop_vocabulary: Any) -> None:
    settings = SentenceDistillation(str(folder), max_sentences=3, max_tokens=8)
    asked: list[list[str]] = []

    class Encoder:
        width = 2

        def __call__(self, texts: list[str]) -> np.ndarray:
            asked.append(texts)
            return np.array([[len(text), 1.0] for text in texts], np.float32).reshape(-1, 2)

    texts = ["Liked Films A, 2 days ago", "zebra", "zebra", "a fourth"]
    ids = [shop_vocabulary.encode(text) for text in texts]
    blocks = np.repeat(np.arange(1, 5), [len(own) for own in ids])
    masked = np.array([*ids[0], shop_vocabulary.sentinel_ids[0], *ids[1]])
    tokens = np.zeros((2, len(blocks)), np.int32)
    numbers = np.zeros((2, len(blocks)), np.int32)
    tokens[0], numbers[0] = np.concatenate(ids), blocks
    tokens[1, : len(masked)] = masked
    numbers[1, : len(masked)] = [1] * (len(ids[0]) + 1) + [2] * len(ids[1])
    # Packed: the second document of the first row counts its blocks from 1 again.
    documents = 1 + (numbers > 2)
    numbers = np.where(documents == 2, numbers - 2, numbers)
    add = add_sentences(settings, Encoder(), shop_vocabulary)  # type: ignore[arg-type]
    batch = {"encoder_input_tokens": tokens, "encoder_block_ids": numbers}
    batch["encoder_segment_ids"] = documents
    expected = [[[25, 1], [5, 1], [5, 1]], [[0, 0], [5, 1], [0, 0]]]
    for _ in range(2):
        np.testing.assert_array_equal(add(batch)[SENTENCE_VECTORS], expected)
    assert asked == [texts[:2], []]


def test_texts_are_encoded_by_the_folder(folder: Path) -> None:
    rng = np.random.default_rng(0)
    write_encoder(folder, lambda shape: rng.normal(size=shape))
    config, weights = read_bert(folder)
    encoder = SentenceEncoder(folder, 16)
    tokens = {
        "Liked Films A, 2 days ago": [2, 4, 5, 6, 7, 9, 10, 11, 12, 3],
        "zebra": [2, 1, 3],
        "": [],
    }
    texts = ["zebra", *tokens] * 12  # more than fit into the smaller shape
    found = encoder(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = np.array([tokens[text]])
        expected = sentence_vectors(config, weights, ids, ids > 0) if text else np.zeros((1, 8))
        np.testing.assert_allclose(vector, expected[0], atol=1e-5)
    np.testing.assert_allclose(encoder(["zebra"])[0], found[0], atol=1e-6)
    with pytest.raises(CheckpointError, match="has 16 positions"):
        SentenceEncoder(folder, 17)

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
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.bert import BertConfig, weight_shapes
from m6rec_jax.objectives import total_loss
from m6rec_jax.objectives.sentences import SENTENCE_TOKENS, SentenceDistillation
from m6rec_jax.sharding import make_mesh
from m6rec_jax.training.sentences import add_sentences, with_sentence_encoder

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


def test_blocks_become_sentences(folder: Path, shop_vocabulary: Any) -> None:
    settings = SentenceDistillation(str(folder), max_sentences=3, max_tokens=8)
    texts = ["Liked Films A, 2 days ago", "zebra", ""]
    ids = [shop_vocabulary.encode(text) for text in texts]
    ids[2] = [shop_vocabulary.sentinel_ids[0]]
    blocks = np.repeat(np.arange(1, 4), [len(own) for own in ids])
    tokens = np.concatenate(ids).astype(np.int32)
    batch = {"encoder_input_tokens": tokens[None], "encoder_block_ids": blocks[None]}
    found = add_sentences(settings, shop_vocabulary)(batch)[SENTENCE_TOKENS]
    np.testing.assert_array_equal(
        found, [[[2, 4, 5, 6, 7, 9, 10, 3], [2, 1, 3, 0, 0, 0, 0, 0], [0] * 8]]
    )


def test_a_folder_is_read_and_named(folder: Path) -> None:
    settings = SentenceDistillation(str(folder), max_tokens=16)
    run, mesh = RunDescription(extra={"seed": 0}), make_mesh()
    _, fixed, described = with_sentence_encoder(total_loss, settings, run, mesh)
    (weights,) = fixed.values()
    assert {leaf.dtype for leaf in weights.values()} == {np.dtype(np.float32)}
    assert set(described.extra) == {"seed", "sentence_encoder"}
    settings = SentenceDistillation(str(folder), max_tokens=17)
    with pytest.raises(CheckpointError, match="has 16 positions"):
        with_sentence_encoder(total_loss, settings, run, mesh)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta' is not one of bert"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"num_hidden_layers": 2}, "tensor 'encoder.layer.1.* is missing"),
        ({"vocab_size": 99}, r"tensor 'embeddings.word_embeddings.weight' is \[13, 8\], wanted"),
        ({"hidden_size": None}, "does not say 'hidden_size'"),
    ],
)
def test_other_models_are_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text()) | change
    file.write_text(
        json.dumps({name: value for name, value in values.items() if value is not None})
    )
    with pytest.raises(CheckpointError, match=message):
        read_bert(folder)


def test_damage_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_bert(folder)

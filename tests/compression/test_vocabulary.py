"""Fewer pieces: the same texts, and the same model for texts whose pieces are left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from m6rec_jax.compression import structure
from m6rec_jax.compression import vocabulary as compression
from m6rec_jax.compression.vocabulary import compress_vocabulary, kept_pieces
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.model import M6Rec
from m6rec_jax.pipeline.locations import OWN_VOCABULARY_VARIABLE
from m6rec_jax.text.vocabulary import Vocabulary
from tests.engine.tiny_model import make_model
from tests.serving import served_films
from tests.tasks.shop import shop_texts

SIZE = 384


def tokens(vocabulary: Vocabulary, text: str) -> dict[str, Any]:
    text_ids = vocabulary.encode(text)
    ids = np.array([[vocabulary.source_bos_id, *text_ids, vocabulary.eos_id]], np.int32)
    names = ("encoder_input_tokens", "decoder_input_tokens")
    blocks = [name.replace("input_tokens", "block_ids") for name in names]
    return dict.fromkeys(names, ids) | dict.fromkeys(blocks, np.ones_like(ids))


@pytest.fixture(scope="module")
def smaller(shop_vocabulary: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """The model before and after, and counts of pieces."""
    folder = tmp_path_factory.mktemp("compress")
    model, variables = make_model(shop_vocabulary, embedding_rank=8)
    served_films.write_model(folder / "run", model, variables, shop_vocabulary)
    settings = (
        "vocabulary_file.shared = \\\n    'shop'\nMODEL/ModelConfig.vocab_size = 640\nA = 1\n"
    )
    (folder / "run" / CONFIG_FILE).write_text(settings)
    ids = np.concatenate([shop_vocabulary.encode_array(text) for text in shop_texts()])
    counts = np.bincount(ids, minlength=shop_vocabulary.num_pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "_counts", lambda *_: counts)
        made = compress_vocabulary(folder / "run", folder / "small", SIZE)
        with pytest.raises(CheckpointError, match="small"):
            compress_vocabulary(folder / "run", folder / "small", SIZE)
    loaded = load_model(folder / "small")
    assert loaded.vocabulary == made
    assert (folder / "small" / CONFIG_FILE).read_text().split("\n") == [
        "A = 1",
        "",
        f"VOCAB_SIZE = {SIZE}",
        "ModelConfig.vocab_size = %VOCAB_SIZE",
        f"PromptConfig.special_token_ids = {made.special_ids}",
        "import m6rec_jax.pipeline.locations",
        f"vocabulary_file.path = {made.model_file!r}",
        "",
    ]
    return load_model(folder / "run"), loaded, counts


def test_what_is_left(smaller: tuple[Any, Any, Any]) -> None:
    """Frequent pieces; every text as before; the same states and logits."""
    before, after, counts = smaller
    old, new = before.vocabulary, after.vocabulary
    assert after.model.config.vocab_size == new.size == SIZE < old.size
    rows = [old.pieces(range(old.size)).index(piece) for piece in new.pieces(range(new.num_pieces))]
    assert rows == sorted(rows)
    gone = np.setdiff1d(np.arange(old.num_pieces), rows)
    assert len(gone) > 30
    assert counts[gone].mean() < counts[rows[259:]].mean()
    texts = shop_texts()
    assert sum(len(new.encode(text)) for text in texts) < 1.5 * counts.sum()
    for text in texts:
        assert new.decode(new.encode(text)) == old.decode(old.encode(text))

    piece = max(new.frequent_ids(100).tolist(), key=lambda id_: len(new.pieces([id_])[0]))
    text = new.decode([piece])
    assert old.pieces(old.encode(text)) == new.pieces(new.encode(text))
    outputs, logits = [], []
    for loaded in (before, after):
        model, variables = M6Rec(loaded.model.config), loaded.variables
        found = model.apply(variables, tokens(loaded.vocabulary, text))
        outputs.append(found.hidden)
        logits.append(np.asarray(model.apply(variables, found.hidden, method=model.token_logits)))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(logits[1][..., : len(rows)], logits[0][..., rows], atol=1e-6)
    controls = [compression._control_ids(loaded.vocabulary) for loaded in (before, after)]
    np.testing.assert_allclose(logits[1][..., controls[1]], logits[0][..., controls[0]], atol=1e-6)
    assert after.model.config.prompts.special_token_ids == new.special_ids
    jax.tree.map(
        np.testing.assert_array_equal, after.variables["prompts"], before.variables["prompts"]
    )


@settings(max_examples=200)
@given(text=st.text(max_size=30))
def test_any_text_survives(smaller: tuple[Any, Any, Any], text: str) -> None:
    old, new = (loaded.vocabulary for loaded in smaller[:2])
    assert new.decode(new.encode(text)) == old.decode(old.encode(text))
    assert set(new.encode(text)).isdisjoint({*compression._control_ids(new), new.unk_id})


def test_data_are_read_with_the_vocabulary_of_the_run(
    smaller: tuple[Any, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one beside the data may have been trained anew since."""
    file = Path(smaller[0].vocabulary.model_file)

    def batches(*_: Any) -> Iterator[Any]:
        raise DataError(f"read with {os.environ.get(OWN_VOCABULARY_VARIABLE)}")
        yield

    for module in (compression, structure):
        monkeypatch.setattr(module, "training_batches_of", batches)
    run, output = file.parents[1], tmp_path / "out"
    with pytest.raises(DataError, match=f"read with {file}"):
        compress_vocabulary(run, output, SIZE)
    with pytest.raises(DataError, match=f"read with {file}"):
        structure.compress_structure(run, output, structure.Sizes(num_heads=1))


def test_clear_errors(smaller: tuple[Any, Any, Any], tmp_path: Path) -> None:
    old = smaller[0].vocabulary
    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(old.model_file).read_bytes())
    with pytest.raises(ConfigError, match="260 pieces have to stay"):
        kept_pieces(proto, smaller[2], 200)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    with pytest.raises(ConfigError, match="only a unigram model"):
        kept_pieces(proto, smaller[2], 300)
    run = Path(old.model_file).parents[1]
    for size in (old.size, 300):
        with pytest.raises(ConfigError, match=f"size = {size} must be a multiple of 128"):
            compress_vocabulary(run, tmp_path / "out", size)
    with pytest.raises(ConfigError, match="rows = 0 must be at least 1"):
        compress_vocabulary(run, tmp_path / "out", 384, rows=0)
    with pytest.raises(ConfigError, match="batches = -1 must not be negative"):
        structure.compress_structure(run, tmp_path / "out", structure.Sizes(1), batches=-1)

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.vocabulary import Vocabulary

# Any code point at all: lone surrogates, NUL, private use, unassigned.
any_text = st.text(st.characters(exclude_categories=()), max_size=60)
MARKS = (
    "<pad>", "</s>", "<unk>", "<s>", "<0x41>", "<extra_id_0>", "\u2581<extra_id_1>", "[EOS]",
    "[BOS']", "USER:", "<mask>", "spam", "@", "\u2581", "\u2585", "\u2047", "\x00", "\ud800",
    "\udfff", "\ufffd", "\ufeff", "\u200b", "\n", "\u3000", "\U0001f600", "\U0010ffff", "e\u0301",
)  # fmt: skip
nasty_text = st.lists(st.one_of(st.sampled_from(MARKS), any_text), max_size=8).map("".join)


def special_ids(vocab: Vocabulary) -> set[int]:
    """Everything that is no text, worked out from the file itself."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(vocab.model_file).read_bytes())
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    special = {
        place
        for place, piece in enumerate(proto.pieces)
        if piece.type in (kinds.CONTROL, kinds.USER_DEFINED, kinds.UNUSED)
        or "<extra_id_" in piece.piece
    }
    return special | set(range(len(proto.pieces), vocab.size))


def edited(model_file: str, output: Path, **changes: object) -> str:
    """Writes a copy of a model with more pieces, given as text=type."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(model_file).read_bytes())
    for text, kind in changes.items():
        proto.pieces.add(piece=text, score=0.0, type=kind)
    output.write_bytes(proto.SerializeToString())
    return str(output)


@pytest.fixture(scope="module")
def strange(model_file: str, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A model file full of pieces that are no text, of every kind."""
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    extra = {
        "<mask>": kinds.USER_DEFINED,
        "spam": kinds.USER_DEFINED,
        "\u2581Fargo": kinds.USER_DEFINED,
        "@": kinds.USER_DEFINED,
        "[EOS]": kinds.CONTROL,
        "\u2581liked\u2581it": kinds.UNUSED,
        "\u2581<extra_id_1>": kinds.NORMAL,
        "\u2581<extra_id_0>": kinds.USER_DEFINED,
    }
    path = tmp_path_factory.mktemp("strange") / "strange.model"
    return Vocabulary(edited(model_file, path, **extra))


def test_layout(vocab: Vocabulary) -> None:
    n = vocab.num_pieces
    assert (vocab.pad_id, vocab.eos_id, vocab.unk_id, vocab.bos_id) == (0, 1, 2, 0)
    assert vocab.sentinel_ids == tuple(range(n + 99, n - 1, -1))
    others = [
        vocab.source_bos_id, vocab.source_eos_id, vocab.user_id, vocab.system_id, vocab.blank_id
    ]  # fmt: skip
    assert others == list(range(n + 100, n + 105))
    assert vocab.special_ids == (vocab.source_bos_id, vocab.source_eos_id, 0, 1)
    assert vocab.size % 128 == 0
    assert others[-1] < vocab.size <= others[-1] + 128


def test_built_in_sentinels_are_used(strange: Vocabulary) -> None:
    assert strange.sentinel_ids == (strange.num_pieces - 1, strange.num_pieces - 2)
    assert strange.source_bos_id == strange.num_pieces


@given(nasty_text)
@example("".join(MARKS))
@example("I liked it, Fargo spam @ <mask> <extra_id_1>")
def test_no_text_gives_a_control_id(vocab: Vocabulary, strange: Vocabulary, text: str) -> None:
    for vocabulary in (vocab, strange):
        ids = vocabulary.encode(text)
        assert special_ids(vocabulary).isdisjoint(ids)
        vocabulary.decode(ids)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_plain_text_survives(vocab: Vocabulary, text: str) -> None:
    assert vocab.decode(vocab.encode(text)) == " ".join(text.split())


def test_decode_skips_what_is_no_text(vocab: Vocabulary, strange: Vocabulary) -> None:
    fargo = vocab.encode("Fargo (1996)")
    mixed = [vocab.bos_id, vocab.source_bos_id, *fargo, vocab.sentinel_ids[3], vocab.blank_id]
    assert vocab.decode([*mixed, vocab.eos_id, vocab.size - 1]) == "Fargo (1996)"
    assert vocab.decode(np.array(mixed)) == "Fargo (1996)"
    special = special_ids(strange)
    assert strange.decode(sorted(special)) == ""
    for wrong in (-1, vocab.size):
        with pytest.raises(DataError, match=f"token id {wrong} is outside"):
            vocab.decode([wrong])


def test_text_ids_are_what_is_neither_special_nor_unknown(vocab, strange):
    for vocabulary in (vocab, strange):
        expected = set(range(vocabulary.size)) - special_ids(vocabulary) - {vocabulary.unk_id}
        assert vocabulary.text_ids.tolist() == sorted(expected)
        assert vocabulary.eos_id not in expected
        assert vocabulary.text_ids.dtype == np.int32


def test_fingerprint(model_file: str, tmp_path: Path, vocab: Vocabulary) -> None:
    assert len(vocab.fingerprint) == 64
    assert Vocabulary(model_file).fingerprint == vocab.fingerprint
    other = edited(
        model_file, tmp_path / "o", new=sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
    )
    assert Vocabulary(other) != vocab


def test_unreadable_files(tmp_path: Path, model_file: str, behaviours: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the vocabulary .*nothing\.model"):
        Vocabulary(tmp_path / "nothing.model")
    broken = tmp_path / "broken.model"
    for content in (b"", b"no model", Path(model_file).read_bytes()[:5000]):
        broken.write_bytes(content)
        with pytest.raises(ConfigError, match=r"broken\.model is not a SentencePiece model"):
            Vocabulary(broken)
    content_with_bos = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(behaviours),
        model_writer=content_with_bos,
        vocab_size=150,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    broken.write_bytes(content_with_bos.getvalue())
    with pytest.raises(ConfigError, match="pad, eos and unk"):
        Vocabulary(broken)

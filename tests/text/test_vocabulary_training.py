from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text import vocabulary_training
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.vocabulary_training import train_vocabulary

TITLE = "Star Wars (1977)"
BEHAVIOUR = "liked Star Wars (1977), sci-fi, 12 days ago"
OUTCOMES = ("loved", "liked", "thought okay", "disliked")


def pieces(vocabulary: Vocabulary, text: str) -> list[str]:
    return [piece.replace("\u2581", " ") for piece in vocabulary.pieces(vocabulary.encode(text))]


def train(texts: list[str], path: Path, size: int = 700, **options: Any) -> Vocabulary:
    (path / "v.model").unlink(missing_ok=True)  # another one would not be overwritten
    train_vocabulary(texts, path / "v.model", size, **options)
    return Vocabulary(path / "v.model")


def test_titles_become_one_piece_and_commas_begin_the_next(vocab: Vocabulary) -> None:
    assert pieces(vocab, BEHAVIOUR) == [
        " liked", " Star Wars (1977)", ", sci-fi", ", 12 days ago"
    ]  # fmt: skip
    assert pieces(vocab, "disliked L.A. Confidential (1997)") == [
        " disliked", " L.A. Confidential (1997)"
    ]  # fmt: skip


def test_prose_gives_words_and_no_phrases(behaviours: list[str], tmp_path: Path) -> None:
    prose = ["A galaxy far, far away."] * 50
    options: dict[str, Any] = {"keep_apart": OUTCOMES}
    vocabulary = train(behaviours, tmp_path, prose=prose, **options)
    assert pieces(vocabulary, "A galaxy far") == [" A", " galaxy", " far"]
    assert TITLE in {piece.strip() for piece in pieces(vocabulary, BEHAVIOUR)}
    phrases = train(behaviours + prose, tmp_path, **options)
    assert pieces(phrases, "A galaxy far") == [" A galaxy far"]


@pytest.mark.parametrize("words", [True, False])
def test_a_sentinels_name_in_a_text_is_no_sentinel(
    behaviours: list[str], tmp_path: Path, words: bool
) -> None:
    texts = [*behaviours, *20 * ["<extra_id_0>", "<extra_id_7> and <extra_id_0>"]]
    vocabulary = train(texts, tmp_path, split_by_whitespace=words)
    assert set(vocabulary.encode("<extra_id_0>")).isdisjoint(vocabulary.sentinel_ids)
    assert vocabulary.decode(vocabulary.encode("<extra_id_0>")) == "<extra_id_0>"


def test_unseen_words_are_spelled_in_parts(
    behaviours: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen = "The Holland Student: Fish of the Empire (1996)"
    options: dict[str, Any] = {"keep_apart": OUTCOMES}
    with_spelling = len(pieces(train(behaviours, tmp_path, **options), unseen))
    # Without the spelling model, parts of words vanish and unseen words are spelled in letters.
    monkeypatch.setattr(vocabulary_training, "_SPELLING_SHARE", 0.0)
    without = len(pieces(train(behaviours, tmp_path, **options), unseen))
    assert with_spelling < 0.7 * without


def test_same_file_in_another_process(behaviours: list[str], tmp_path: Path) -> None:
    """Python orders sets of strings differently in every process."""
    (tmp_path / "texts.json").write_text(json.dumps(behaviours))
    code = (
        "import json; from m6rec_jax.text.vocabulary_training import train_vocabulary\n"
        "texts = json.load(open('texts.json'))\n"
        "print(train_vocabulary(texts, 'v.model', 600).sha256)"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.strip() == train_vocabulary(behaviours, tmp_path / "own.model", 600).sha256


def test_layout_and_case(vocab: Vocabulary) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=vocab.model_file)
    ids = processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id()
    assert ids == (0, 1, 2, -1)
    assert [processor.is_byte(i) for i in (3, 258, 259)] == [True, True, False]
    assert vocab.decode(vocab.encode("fARGO Fargo")) == "fARGO Fargo"
    assert vocab.encode("fargo") != vocab.encode("Fargo")
    total = sum(
        2.718281828 ** processor.get_score(i) for i in range(259, processor.get_piece_size())
    )
    # Characters that EM left without probability get a little on top; what was beyond the size
    # has taken its share along.
    assert 0.9 <= total < 1.05


def test_summary_beside_the_model(behaviours: list[str], tmp_path: Path) -> None:
    texts = [*behaviours, "", "nul \x00", "x" * 1500]
    summary = train_vocabulary(texts, tmp_path / "v.model", 700, keep_apart=["liked"])
    written = json.loads((tmp_path / "v.json").read_text())
    content = (tmp_path / "v.model").read_bytes()
    assert written["sha256"] == summary.sha256 == hashlib.sha256(content).hexdigest()
    assert written["model_file"] == "v.model"
    assert written["num_texts"] == len(texts)
    assert (written["num_empty_texts"], written["num_sanitised_texts"]) == (1, 1)
    assert (written["num_long_cuts"], written["num_forgotten"]) == (1, 0)
    assert written["options"]["size"] == 700
    assert written["options"]["keep_apart"] == ["liked"]
    assert written["num_pieces"] == Vocabulary(tmp_path / "v.model").num_pieces <= 700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.json", "v.model"]


def test_many_alphabets(tmp_path: Path) -> None:
    texts = ["\u6620\u753b\u304c\u597d\u304d", "\u043a\u0438\u043d\u043e", "caf\u00e9 \U0001f600"]
    vocabulary = train(texts * 30, tmp_path, 500, split_by_whitespace=False)
    for text in texts:
        assert vocabulary.decode(vocabulary.encode(text)) == text
        assert len(vocabulary.encode(text)) <= 3


def test_too_few_tokens(behaviours: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="100"):
        train_vocabulary(behaviours, tmp_path / "v.model", size=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("texts", [[], ["", " \n", "\u200b"]])
def test_nothing_to_train_on(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{len(texts)} texts, all empty"):
        train_vocabulary(texts, tmp_path / "v.model")

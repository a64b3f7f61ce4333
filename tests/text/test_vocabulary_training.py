import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.text.vocabulary_training import PhraseCutter, train_vocabulary

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


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        (
            "loved L.A. Confidential (1997), film-noir, 12 days ago. The end.",
            [" loved", " L.A. Confidential (1997)", ", film-noir", ", 12 days ago", ". The end",
             "."],
        ),
        ("Mr. Holland's Opus (1995).", [" Mr. Holland's Opus (1995)", "."]),
        ("72% of 1,250 said: great! Done", [" 72% of 1,250 said", ": great", "! Done"]),
        ("Apollo 13 (1995)", [" Apollo 13 (1995)"]),
        ("unloved lovedness", [" unloved lovedness"]),
        ("thought okay Fargo", [" thought okay", " Fargo"]),
    ],
)  # fmt: skip
def test_cuts(text: str, cuts: list[str]) -> None:
    assert PhraseCutter(["loved", "thought okay"]).cuts(text) == cuts


def test_prose_gives_words_and_no_phrases(behaviours: list[str], tmp_path: Path) -> None:
    prose = ["A galaxy far, far away."] * 50
    options: dict[str, Any] = {"keep_apart": OUTCOMES}
    vocabulary = train(behaviours, tmp_path, prose=prose, **options)
    assert pieces(vocabulary, "A galaxy far") == [" A", " galaxy", " far"]
    assert TITLE in {piece.strip() for piece in pieces(vocabulary, BEHAVIOUR)}
    phrases = train(behaviours + prose, tmp_path, **options)
    assert pieces(phrases, "A galaxy far") == [" A galaxy far"]


@pytest.mark.parametrize("words", [True, False])
def test_a_sentinels_name_in_a_text_is_no_sentinel(behaviours, tmp_path, words):
    texts = [*behaviours, *20 * ["<extra_id_0>", "<extra_id_7> and <extra_id_0>"]]
    vocabulary = train(texts, tmp_path, split_by_whitespace=words)
    assert set(vocabulary.encode("<extra_id_0>")).isdisjoint(vocabulary.sentinel_ids)
    assert vocabulary.decode(vocabulary.encode("<extra_id_0>")) == "<extra_id_0>"


def test_same_file_in_another_process(behaviours: list[str], tmp_path: Path) -> None:
    """Python orders sets of strings differently in every process."""
    (tmp_path / "texts.json").write_text(json.dumps(behaviours))
    code = (
        "import json; from m6rec_jax.text.vocabulary_training import train_vocabulary\n"
        "train_vocabulary(json.load(open('texts.json')), 'v.model', 600)"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    # It would raise, were it another one.
    train_vocabulary(behaviours, tmp_path / "v.model", 600)


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


@given(st.text(st.characters(exclude_categories=()), max_size=80))
def test_cuts_are_the_text(text: str) -> None:
    """Together, as an independent normalisation sees it."""
    joined = "".join(PhraseCutter(["a"]).cuts(text))
    assert not set(joined) & set("\t\n\x00\u2585\u2581")
    clean = "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)
    normal = unicodedata.normalize("NFKC", clean)
    letters = [c for c in normal if c.isascii() and c.isalnum()]
    assert [c for c in joined if c.isascii() and c.isalnum()] == letters


def test_too_few_tokens(behaviours: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="100"):
        train_vocabulary(behaviours, tmp_path / "v.model", size=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("texts", [[], ["", " \n", "\u200b"]])
def test_nothing_to_train_on(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train"):
        train_vocabulary(texts, tmp_path / "v.model")

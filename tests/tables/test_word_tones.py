"""The corpus of lists of words, built from a small lexicon."""

from collections import Counter

import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.tables import word_tones
from m6rec_jax.tables.corpora import Corpus

RATINGS = {"awful": -3.0, "dull": -1.0, "fine": 0.75, "superb": 3.5, "so-so": -0.25}


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "vader_lexicon.txt").write_text("".join(f"{line}\r\n" for line in lines), "utf-8")
    return {"word-tones-lexicon": folder}


def entries(ratings):
    return [f"{word}\t{rating}\t0.5\t[1, 2]" for word, rating in ratings.items()]


def test_a_list_is_good_where_its_ratings_sum_to_more_than_nothing(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    # The last entry of a word counts, and what it replaces is told.
    lines = ["dull\t2.5\t0.5\t[1]", *entries(RATINGS), ":-)\t1.0\t0.5\t[1]"]
    sources = write(tmp_path / "raw", lines)
    said = word_tones.build(sources, out)
    corpus = Corpus.open(out)
    texts = list(corpus.texts())
    assert {corpus.spec.classes[text.label] for text in texts} == {"bad", "good"}
    for text in texts:
        total = sum(RATINGS[word] for word in text.parts[0].split())
        assert corpus.spec.classes[text.label] == ("good" if total > 0 else "bad")
        assert abs(total) >= 0.5
    drawn = word_tones.drawn_lists(RATINGS)
    without = sum(abs(sum(RATINGS[word] for word in words)) < 0.5 for words in drawn)
    assert without > 0  # "so-so" alone, at the least
    assert len(texts) == len(drawn) - without
    assert f"5 words, {sum(t.label for t in texts)} good" in said
    assert f"left out: {without} lists without a tone, 1 repeated, 1 signs" in said
    assert corpus.spec.provenance["left_out"] == {
        "lists without a tone": without,
        "repeated": 1,
        "signs": 1,
    }


def test_every_word_stands_in_as_many_lists():
    lists = word_tones.drawn_lists(RATINGS)
    assert set(Counter(word for words in lists for word in words).values()) == {10}
    assert all(len(set(words)) == len(words) for words in lists)
    assert lists == word_tones.drawn_lists(dict(reversed(RATINGS.items())))
    assert lists != word_tones.drawn_lists(RATINGS, seed=1)


@pytest.mark.parametrize("line", ["good", "good\tvery\t1", ""])
def test_a_line_that_is_no_entry_is_refused(tmp_path, line):
    sources = write(tmp_path / "raw", [*entries(RATINGS), line])
    with pytest.raises(DataError, match=r"line 6: .* is no word and its rating"):
        word_tones.build(sources, tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "vader_lexicon.txt").write_bytes(b"good\t\xff")
    with pytest.raises(DataError, match="cannot be read"):
        word_tones.build({"word-tones-lexicon": tmp_path}, tmp_path)

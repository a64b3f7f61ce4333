"""The corpus of sentences with a tone, built from a small lexicon and a few sentences."""

import bz2
import csv
import io

import pytest

from m6rec_jax.data.corpora import Corpus
from m6rec_jax.errors import DataError
from tasks.film_tones import source as film_tones
from tests.tasks.film_database import write_films

RATINGS = {"awful": -3.0, "dull": -1.0, "fine": 0.75, "superb": 3.5, "so-so": -0.25}
REVIEWS = [
    ("fresh", "AWFUL fun, and a superb dog.", "dogs", "True"),
    ("rotten", "A fine cast.", "dogs", "True"),
    ("rotten", "A fine cast.", "dogs", "True"),
    ("rotten", "A fine cast.", "dogs", "True"),
    ("fresh", "So-so.", "dogs", "True"),
    ("fresh", "Finer than awfully many.", "cats", "True"),
    ("plot", "An awful day.", "cats", "True"),
]


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "vader_lexicon.txt").write_text("".join(f"{line}\r\n" for line in lines), "utf-8")
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
    rows.writerows(REVIEWS)
    packed = bz2.compress(text.getvalue().encode())
    (folder / "rotten_tomatoes_corpus_full.csv.bz2").write_bytes(packed)
    write_films(
        folder / "movies.db",
        [{"Title": "Dogs", "Year": 1990}, {"Title": "Cats", "Year": 1990}],
        [
            {"ID": 1, "Consensus": "Dull, but dull.", "Meter": 90},
            {"ID": 2, "Consensus": "No consensus yet.", "Meter": 90},
        ],
    )
    names = ("tone-lexicon", "review-snippets", "film-consensus-table")
    assert tuple(source.name for source in film_tones.DATASET.sources) == names
    return dict.fromkeys(names, folder)


def entries(ratings):
    return [f"{word}\t{rating}\t0.5\t[1, 2]" for word, rating in ratings.items()]


def test_a_sentence_sounds_as_its_words_whatever_the_critic_thinks(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    # The last entry of a word counts, and what it replaces is told.
    lines = ["dull\t2.5\t0.5\t[1]", *entries(RATINGS), ":-)\t1.0\t0.5\t[1]"]
    said = film_tones.build(write(tmp_path / "raw", lines), out)
    corpus = Corpus.open(out)
    found = {text.parts[0]: corpus.spec.classes[text.label] for text in corpus.texts()}
    # .5 and more; "Finer" and "awfully" are other words, and a plot is no critic's sentence.
    assert found == {
        "AWFUL fun, and a superb dog.": "good",
        "A fine cast.": "good",
        "Dull, but dull.": "bad",
    }
    # Films stay together in a split whichever corpus they are in.
    assert {text.group for text in corpus.texts()} == {"dogs"}
    assert said.startswith("film-tones: 3 texts of 1 film, 1 bad, 2 good; ")
    left_out = {
        "films without consensus": 1,
        "sentences without a tone": 2,
        "signs that are no words": 1,
        "snippets repeated": 2,
        "words repeated": 1,
    }
    assert corpus.spec.provenance["left_out"] == left_out
    assert said.endswith(
        "left out: " + ", ".join(f"{count} {why}" for why, count in left_out.items())
    )


@pytest.mark.parametrize("line", ["good", "good\tvery\t1", ""])
def test_a_line_that_is_no_entry_is_refused(tmp_path, line):
    sources = write(tmp_path / "raw", [*entries(RATINGS), line])
    with pytest.raises(DataError, match=r"line 6: .* is no word and its rating"):
        film_tones.build(sources, tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    sources = write(tmp_path / "raw", entries(RATINGS))
    (sources["tone-lexicon"] / "vader_lexicon.txt").write_bytes(b"good\t\xff")
    with pytest.raises(DataError, match="cannot be read"):
        film_tones.build(sources, tmp_path)

"""The corpus of overviews, built from a small file of the raw file's form."""

import csv
import json

import pytest

from m6rec_jax.data.corpora import Corpus
from m6rec_jax.errors import DataError
from tasks.film_overviews import source as film_overviews
from tasks.films.texts import GENRE_CLASSES as CLASSES

HEADER = ("budget", "genres", "keywords", "overview", "title")


def names(*values):
    return json.dumps([{"id": number, "name": name} for number, name in enumerate(values)])


FILMS = [
    (1, names("Action", "Science Fiction"), names("mars", "war in space"), "Off they go.", "Mars"),
    (2, names("Science Fiction"), names(), "CafÃ© &amp; stars.", "The Café"),
    (3, names("Foreign", "TV Movie"), names("tea"), "They talk.", "Odd"),
    (4, names("Music"), names("song"), "They sing.", "Song"),
    (5, names("Drama"), names("nothing"), "", "Blank"),
]


def write(folder, rows, header=HEADER):
    folder.mkdir(exist_ok=True)
    with (folder / "movies.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return {"film-overviews-table": folder}


def test_an_overview_has_its_keywords_and_the_rarest_genre(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    said = film_overviews.build(write(tmp_path / "raw", FILMS), out)
    corpus = Corpus.open(out)
    found = [
        (text.about, text.group, text.parts[0], None if text.label is None else CLASSES[text.label])
        for text in corpus.texts()
    ]
    assert found == [
        ("Mars", "mars", "Off they go. It is about mars, war in space.", "action"),
        ("The Café", "cafe", "Café & stars.", "science fiction"),
        ("Odd", "odd", "They talk. It is about tea.", None),
        ("Song", "song", "They sing. It is about song.", "musical"),
    ]
    assert corpus.spec.classes == CLASSES
    assert said.startswith("film-overviews: 4 texts of 4 films, ")
    assert said.endswith("; left out: 1 no overview")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (FILMS, ("budget", "genres", "keywords", "plot", "title"), "the header has no overview"),
        ([(1, "[{]", names(), "x", "y")], HEADER, "record 1: genres or keywords are no list"),
        ([(1, names(), '["mars"]', "x", "y")], HEADER, "record 1: genres or keywords are no list"),
        ([(1, "7", names(), "x", "y")], HEADER, "record 1: genres or keywords are no list"),
    ],
)
def test_another_table_is_refused(tmp_path, rows, header, message):
    with pytest.raises(DataError, match=message):
        film_overviews.build(write(tmp_path / "raw", rows, header), tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "movies.csv").write_bytes(b"title,overview,genres,keywords\n\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        film_overviews.build({"film-overviews-table": tmp_path}, tmp_path)

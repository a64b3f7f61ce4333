"""The corpora about films and the dialogues, built from small files of the raw files' forms."""

import bz2
import csv
import io
import json

import pytest

from m6rec_jax.data.corpora import Corpus, repaired
from m6rec_jax.data.splits import by_group
from m6rec_jax.errors import DataError
from tasks.chitchat import source as chitchat
from tasks.film_attributes import source as film_attributes
from tasks.film_consensus import source as film_consensus
from tasks.film_plots import source as film_plots
from tasks.film_reviews import source as film_reviews
from tasks.films.table import film_group
from tests.tasks.film_database import write_films

SNIPPETS = [
    ("fresh", "A joy &amp; a half.", "about_a_boy"),
    ("rotten", "Dull\x85 very.", "about_a_boy"),
    ("rotten", "Dull\x85 very.", "about_a_boy"),
    ("rotten", "Not the <i>Reunion</i>.", "american_reunion_an"),
    ("plot", "A man meets a boy.", "about_a_boy"),
    ("plot", "", "nothing"),
]
PLOTS = [
    ("0", "About a Boy", '"Drama",  "Comedy",  "Western"', "A man ([[Hugh  meets a boy."),
    ("1", "Dust", '"Drama",  "Western"', "Horses."),
    ("2", "Tears", '"Drama"', "She cries."),
    ("3", "Odd", '"Courtroom"', "They talk."),
    ("4", "More", '"Drama"', "They talk on."),
]


def csv_text(header, rows):
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *rows])
    return buffer.getvalue()


@pytest.fixture
def raw(tmp_path):
    """Folders of raw files by source name."""
    folders = {name: tmp_path / name for name in ("review-snippets", "plots", "chitchat-dialogues")}
    for folder in folders.values():
        folder.mkdir()
    header = ("category", "text", "movie_name", "has_plot_and_reviews")
    text = csv_text(header, [(*row, "False") for row in SNIPPETS])
    path = folders["review-snippets"] / "rotten_tomatoes_corpus_full.csv.bz2"
    path.write_bytes(bz2.compress(text.encode()))
    (folders["plots"] / "movies.csv").write_text(
        csv_text(("ID", "Title", "Category", "Plot"), PLOTS), encoding="utf-8"
    )
    return folders


def built(build, raw, folder):
    folder.mkdir()
    said = build(raw, folder)
    corpus = Corpus.open(folder)
    return list(corpus.texts()), corpus.spec, said


def test_reviews(raw, tmp_path):
    texts, spec, said = built(film_reviews.build, raw, tmp_path / "out")
    assert [(t.parts[0], spec.classes[t.label], t.about) for t in texts] == [
        ("A joy & a half.", "fresh", "about a boy"),
        ("Dull… very.", "rotten", "about a boy"),
        ("Not the <i>Reunion</i>.", "rotten", "american reunion an"),
    ]
    assert said == "film-reviews: 3 texts of 2 films, 2 rotten, 1 fresh; left out: 1 repeated"


def test_plots_have_their_rarest_genre(raw, tmp_path):
    texts, spec, said = built(film_plots.build, raw, tmp_path / "out")
    genres = {t.about: None if t.label is None else spec.classes[t.label] for t in texts}
    assert genres == {
        "About a Boy": "comedy",
        "Dust": "western",
        "Tears": "drama",
        "Odd": None,
        "More": "drama",
        "about a boy": None,  # the plot that came with the snippets
    }
    assert texts[0].parts == ("A man ( Hugh meets a boy.",)
    assert said.startswith("film-plots: 6 texts of 5 films, ")
    assert "2 drama" in said
    assert said.endswith("; left out: 1 empty")


def test_a_film_has_one_name_in_all_corpora(raw, tmp_path):
    reviews, _, _ = built(film_reviews.build, raw, tmp_path / "reviews")
    plots, _, _ = built(film_plots.build, raw, tmp_path / "plots_out")
    group = {t.group for t in [reviews[0], reviews[1], plots[0], plots[-1]]}
    assert len(group) == 1
    assert by_group([reviews[0].group]) == by_group([plots[0].group])


@pytest.mark.parametrize(
    "title",
    ["The Man Who Wasn't There", "Man Who Wasn't There, The", "man_who_wasnt_there_the"],
)
def test_spellings_of_a_title_are_one_film(title):
    assert film_group(title) == "man who wasnt there"


def test_a_title_of_signs_is_its_own_group():
    assert film_group("???") == "???"
    assert film_group("A") == "a"


def test_attributes_and_consensus(tmp_path):
    folder = tmp_path / "film-table"
    folder.mkdir()
    write_films(
        folder / "movies.db",
        [
            {
                **{"Title": "Alien", "Year": 1979, "Rating": "R", "Runtime": 117.0},
                **{"Genre": "Horror, Sci-Fi", "Director": "Ridley Scott", "Cast": "Weaver, Hurt"},
                **{"Language": "English", "Country": "UK", "Awards": "1 win."},
            },
            {"Title": "Blank", "Year": 1980},
            {
                **{"Title": "Solaris", "Year": 1972, "Rating": "PG", "Runtime": 167.0},
                "Genre": "Drama, Sci-Fi, Film-Noir",
            },
            {"Title": "Untold", "Year": 1973},
        ],
        [
            {"ID": 1, "Reviews": 9, "Consensus": "It isn&#039;t dull.", "Meter": 60},
            {"ID": 2, "Reviews": 1, "Consensus": "No consensus yet.", "Meter": 100},
            {"ID": 3, "Reviews": 9, "Consensus": "Slow.", "Meter": 59},
            {"ID": 4, "Reviews": 9, "Consensus": "Nobody knows."},
        ],
    )
    sources = {"film-table": folder, "film-consensus-table": folder}
    texts, _, said = built(film_attributes.build, sources, tmp_path / "a")
    assert [(t.group, t.about, t.parts[0]) for t in texts] == [
        (
            "alien",
            "Alien (1979)",
            "A horror, sci-fi film. Directed by Ridley Scott. With Hurt, Weaver. Made in UK. In "
            "English. It takes 117 minutes. Rated R. Awards: 1 win.",
        ),
        (
            "solaris",
            "Solaris (1972)",
            "A drama, sci-fi, film-noir film. It takes 167 minutes. Rated PG.",
        ),
    ]
    assert "left out: 2 nothing known" in said
    texts, spec, said = built(film_consensus.build, sources, tmp_path / "b")
    assert [(t.about, t.parts[0], t.label) for t in texts] == [
        ("Alien (1979)", "It isn't dull.", spec.classes.index("fresh")),
        ("Solaris (1972)", "Slow.", spec.classes.index("rotten")),
        ("Untold (1973)", "Nobody knows.", None),
    ]
    assert "3 texts of 3 films, 1 rotten, 1 fresh; left out: 1 no consensus" in said


def test_dialogues(raw, tmp_path):
    def turn(sender, *texts):
        return [{"text": text, "timestamp": "x", "sender": sender} for text in texts]

    conversations = {
        "one": {
            "prompt": "Who are you?",
            "messages": [turn("a", "Hi", "you"), turn("b", " "), turn("a", "?"), turn("b", "Hm")],
        },
        "alone": {"prompt": None, "messages": [turn("a", "Anybody?")]},
        "crowd": {"messages": [turn("a", "x"), turn("b", "y"), turn("c", "z")]},
    }
    (raw["chitchat-dialogues"] / "dataset.json").write_text(json.dumps(conversations))
    texts, spec, said = built(chitchat.build, raw, tmp_path / "out")
    assert [(t.id, t.group, t.about, t.parts) for t in texts] == [
        ("one", "one", "Who are you?", ("USER: Hi you ?", "SYSTEM: Hm"))
    ]
    assert spec.has_turns
    assert "1 dialogues, 2 turns; left out: 2 without two speakers" in said


def test_wrong_files_are_named(raw, tmp_path):
    (raw["plots"] / "movies.csv").write_text("ID,Title\n")
    with pytest.raises(DataError, match=r"movies\.csv: the header is \['ID', 'Title'\]"):
        film_plots.build(raw, tmp_path)
    (raw["review-snippets"] / "rotten_tomatoes_corpus_full.csv.bz2").write_bytes(b"no bz2")
    with pytest.raises(DataError, match="cannot be read"):
        film_reviews.build(raw, tmp_path)
    (raw["chitchat-dialogues"] / "dataset.json").write_text('{"a": {}}')
    with pytest.raises(DataError, match="does not hold these dialogues"):
        chitchat.build(raw, tmp_path)


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("Guía".encode().decode("latin-1"), "Guía"),
        ("Guía", "Guía"),
        ("a\x85 b\x93c\x94", "a… b“c”"),
        ("&lt;b&gt; &amp;amp;", "<b> &amp;"),
        ("  a \n b ", "a b"),
        ("日本\x85\x81", "日本…"),
    ],
)
def test_repairs(found, meant):
    assert repaired(found) == meant

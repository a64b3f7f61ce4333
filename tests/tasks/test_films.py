"""The corpora about films and the dialogues, built from small files of the raw files' forms."""

import bz2
import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from m6rec_jax.data.corpora import repaired
from m6rec_jax.data.splits import by_name
from m6rec_jax.data.texts import TextCorpus
from tasks.chitchat import source as chitchat
from tasks.film_attributes import source as film_attributes
from tasks.film_consensus import source as film_consensus
from tasks.film_overviews import source as film_overviews
from tasks.film_plots import source as film_plots
from tasks.film_reviews import source as film_reviews
from tasks.film_tones import source as film_tones
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


def built(module, raw, folder):
    folder.mkdir()
    shutil.copy(Path(module.__file__).with_name("corpus.json"), folder)
    counts = module.build(raw, folder)
    corpus = TextCorpus(folder)
    return list(corpus.texts()), corpus.spec, {what: n for what, n in counts.items() if n}


def test_reviews(raw, tmp_path):
    texts, spec, counts = built(film_reviews, raw, tmp_path / "out")
    assert [(t.turns[0], spec.classes[t.label], t.about) for t in texts] == [
        ("A joy & a half.", "fresh", "about a boy"),
        ("Dull… very.", "rotten", "about a boy"),
        ("Not the <i>Reunion</i>.", "rotten", "american reunion an"),
    ]
    assert counts == {"repeated texts left out": 1}


def test_plots_have_their_rarest_genre(raw, tmp_path):
    texts, spec, counts = built(film_plots, raw, tmp_path / "out")
    genres = {t.about: None if t.label is None else spec.classes[t.label] for t in texts}
    assert genres == {
        "About a Boy": "comedy",
        "Dust": "western",
        "Tears": "drama",
        "Odd": None,
        "More": "drama",
        "about a boy": None,  # the plot that came with the snippets
    }
    assert texts[0].turns == ("A man ( Hugh meets a boy.",)
    assert counts == {"empty texts left out": 1}


def test_a_film_has_one_name_in_all_corpora(raw, tmp_path):
    reviews, _, _ = built(film_reviews, raw, tmp_path / "reviews")
    plots, _, _ = built(film_plots, raw, tmp_path / "plots_out")
    group = {t.group for t in [reviews[0], reviews[1], plots[0], plots[-1]]}
    assert len(group) == 1
    assert by_name([reviews[0].group]) == by_name([plots[0].group])


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
    texts, _, counts = built(film_attributes, sources, tmp_path / "a")
    assert [(t.group, t.about, t.turns[0]) for t in texts] == [
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
    assert counts == {"empty texts left out": 2}
    texts, spec, counts = built(film_consensus, sources, tmp_path / "b")
    assert [(t.about, t.turns[0], t.label) for t in texts] == [
        ("Alien (1979)", "It isn't dull.", spec.classes.index("fresh")),
        ("Solaris (1972)", "Slow.", spec.classes.index("rotten")),
        ("Untold (1973)", "Nobody knows.", None),
    ]
    assert counts == {"empty texts left out": 1}


def test_an_overview_has_its_keywords_and_the_rarest_genre(tmp_path):
    def names(*values):
        return json.dumps([{"id": number, "name": name} for number, name in enumerate(values)])

    rows = [
        (names("Action", "Science Fiction"), names("mars", "war in space"), "Off they go.", "Mars"),
        (names("Science Fiction"), names(), "CafÃ© &amp; stars.", "The Café"),
        (names("Foreign", "TV Movie"), names("tea"), "They talk.", "Odd"),
        (names("Music"), names("song"), "They sing.", "Song"),
        (names("Drama"), names("nothing"), "", "Blank"),
    ]
    text = csv_text(("genres", "keywords", "overview", "title"), rows)
    (tmp_path / "movies.csv").write_text(text, encoding="utf-8")
    raw = {"film-overviews-table": tmp_path}
    texts, spec, counts = built(film_overviews, raw, tmp_path / "out")
    labels = [None if text.label is None else spec.classes[text.label] for text in texts]
    assert labels == ["action", "science fiction", None, "musical"]
    assert [(text.about, text.group, text.turns[0]) for text in texts] == [
        ("Mars", "mars", "Off they go. It is about mars, war in space."),
        ("The Café", "cafe", "Café & stars."),
        ("Odd", "odd", "They talk. It is about tea."),
        ("Song", "song", "They sing. It is about song."),
    ]
    assert counts == {"empty texts left out": 1}


def test_a_sentence_sounds_as_its_words_whatever_the_critic_thinks(tmp_path):
    ratings = {"awful": -3.0, "dull": -1.0, "fine": 0.75, "superb": 3.5, "so-so": -0.25}
    # The last entry of a word counts, and a sign is no word.
    entries = [("dull", 2.5), *ratings.items(), (":-)", 1.0)]
    lines = "".join(f"{word}\t{rating}\t0.5\t[1, 2]\r\n" for word, rating in entries)
    (tmp_path / "vader_lexicon.txt").write_text(lines, "utf-8")
    reviews = [
        ("fresh", "AWFUL fun, and a superb dog.", "dogs", "True"),
        *[("rotten", "A fine cast.", "dogs", "True")] * 3,
        ("fresh", "So-so.", "dogs", "True"),
        ("fresh", "Finer than awfully many.", "cats", "True"),
        ("plot", "An awful day.", "cats", "True"),
    ]
    text = csv_text(("category", "text", "movie_name", "has_plot_and_reviews"), reviews)
    (tmp_path / "rotten_tomatoes_corpus_full.csv.bz2").write_bytes(bz2.compress(text.encode()))
    write_films(
        tmp_path / "movies.db",
        [{"Title": "Dogs", "Year": 1990}],
        [{"ID": 1, "Consensus": "Dull, but dull.", "Meter": 90}],
    )
    names = ("tone-lexicon", "review-snippets", "film-consensus-table")
    texts, spec, counts = built(film_tones, dict.fromkeys(names, tmp_path), tmp_path / "out")
    # .5 and more; "Finer" and "awfully" are other words, and a plot is no critic's sentence.
    assert {text.turns[0]: spec.classes[text.label] for text in texts} == {
        "AWFUL fun, and a superb dog.": "good",
        "A fine cast.": "good",
        "Dull, but dull.": "bad",
    }
    assert {text.group for text in texts} == {"dogs"}
    assert counts == {"sentences without a tone left out": 2, "repeated texts left out": 2}


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
    texts, spec, counts = built(chitchat, raw, tmp_path / "out")
    assert [(t.id, t.group, t.about, t.turns) for t in texts] == [
        ("one", "one", "Who are you?", ("USER: Hi you ?", "SYSTEM: Hm"))
    ]
    assert spec.texts.turns
    assert counts == {"dialogues without two speakers left out": 2}


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

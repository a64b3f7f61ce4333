"""The corpora about films and the dialogues, built from small files of the raw files' forms."""

import bz2
import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from m6rec_jax.data.rendering.corpora import repaired
from m6rec_jax.data.rendering.texts import TextCorpus
from m6rec_jax.data.splitting.splits import by_name
from tasks.chitchat import source as chitchat
from tasks.films import source as films
from tasks.films.table import film_group
from tests.tasks.film_database import write_films

TASKS = Path(films.__file__).parents[1]
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
    """The folder of each source, which is the same one."""
    rows = [(*row, "False") for row in SNIPPETS]
    header = ("category", "text", "movie_name", "has_plot_and_reviews")
    write_snippets(tmp_path, csv_text(header, rows))
    (tmp_path / "movies.csv").write_text(csv_text(("ID", "Title", "Category", "Plot"), PLOTS))
    return dict.fromkeys(("review-snippets", "plots", "chitchat-dialogues"), tmp_path)


def write_snippets(folder, text):
    path = folder / "rotten_tomatoes_corpus_full.csv.bz2"
    path.write_bytes(bz2.compress(text.encode()))


def built(name, raw, folder, build=films.build):
    """Texts, names of their classes, and what was left out."""
    folder.mkdir()
    shutil.copy(TASKS / name / "corpus.json", folder)
    counts = build(raw, folder)
    corpus = TextCorpus(folder)
    texts = [record.content for record in corpus.records]
    classes = [None if one.label is None else corpus.spec.classes[one.label] for one in texts]
    return texts, classes, {what: n for what, n in counts.items() if n}


def test_reviews(raw, tmp_path):
    texts, classes, counts = built("films/reviews", raw, tmp_path / "out")
    assert [(t.turns[0], of, t.about) for t, of in zip(texts, classes, strict=True)] == [
        ("A joy & a half.", "fresh", "about a boy"),
        ("Dull… very.", "rotten", "about a boy"),
        ("Not the <i>Reunion</i>.", "rotten", "american reunion an"),
    ]
    assert counts == {"repeated texts left out": 1}


def test_a_film_has_one_name_in_all_corpora(raw, tmp_path):
    reviews, _, _ = built("films/reviews", raw, tmp_path / "reviews")
    plots, _, _ = built("films/plots", raw, tmp_path / "plots_out")
    groups = [text.group for text in (reviews[0], reviews[1], plots[0], plots[-1])]
    assert len({*groups}) == len({*by_name(groups).tolist()}) == 1
    titles = ("The Man Who Wasn't There", "Man Who Wasn't There, The", "man_who_wasnt_there_the")
    assert {film_group(title) for title in titles} == {"man who wasnt there"}
    assert (film_group("???"), film_group("A")) == ("???", "a")


def test_attributes_and_consensus(tmp_path):
    alien = {"Title": "Alien", "Year": 1979, "Rating": "R", "Runtime": 117.0, "Country": "UK"}
    alien |= {"Genre": "Horror, Sci-Fi", "Director": "Ridley Scott", "Cast": "Weaver, Hurt"}
    solaris = {"Title": "Solaris", "Year": 1972, "Genre": "Drama, Film-Noir"}
    films = [alien | {"Language": "English", "Awards": "1 win."}, {"Title": "Blank", "Year": 1980}]
    reviews = [
        {"ID": 1, "Reviews": 9, "Consensus": "It isn&#039;t dull.", "Meter": 60},
        {"ID": 2, "Reviews": 1, "Consensus": "No consensus yet.", "Meter": 100},
        {"ID": 3, "Reviews": 9, "Consensus": "Slow.", "Meter": 59},
        {"ID": 4, "Reviews": 9, "Consensus": "Nobody knows."},
    ]
    films += [solaris, {"Title": "Untold", "Year": 1973}]
    write_films(tmp_path / "movies.db", films, reviews)
    sources = dict.fromkeys(("film-table", "film-consensus-table"), tmp_path)
    texts, _, counts = built("films/attributes", sources, tmp_path / "a")
    assert [(t.group, t.about, t.turns[0]) for t in texts] == [
        (
            "alien",
            "Alien (1979)",
            "A horror, sci-fi film. Directed by Ridley Scott. With Hurt, Weaver. Made in UK. In "
            "English. It takes 117 minutes. Rated R. Awards: 1 win.",
        ),
        ("solaris", "Solaris (1972)", "A drama, film-noir film."),
    ]
    assert counts == {"empty texts left out": 2}
    texts, classes, counts = built("films/consensus", sources, tmp_path / "b")
    assert [(t.about, t.turns[0], of) for t, of in zip(texts, classes, strict=True)] == [
        ("Alien (1979)", "It isn't dull.", "fresh"),
        ("Solaris (1972)", "Slow.", "rotten"),
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
    texts, classes, counts = built("films/overviews", raw, tmp_path / "out")
    assert classes == ["action", "science fiction", None, "musical"]
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
    write_snippets(tmp_path, text)
    write_films(
        tmp_path / "movies.db",
        [{"Title": "Dogs", "Year": 1990}],
        [{"ID": 1, "Consensus": "Dull, but dull.", "Meter": 90}],
    )
    names = ("tone-lexicon", "review-snippets", "film-consensus-table")
    texts, classes, counts = built("films/tones", dict.fromkeys(names, tmp_path), tmp_path / "out")
    # .5 and more; "Finer" and "awfully" are other words, and a plot is no critic's sentence.
    assert {text.turns[0]: tone for text, tone in zip(texts, classes, strict=True)} == {
        "AWFUL fun, and a superb dog.": "good",
        "A fine cast.": "good",
        "Dull, but dull.": "bad",
    }
    assert {text.group for text in texts} == {"dogs"}
    assert counts == {"empty texts left out": 2, "repeated texts left out": 2}


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
    texts, _, counts = built("chitchat", raw, tmp_path / "out", chitchat.build)
    assert [(t.id, t.group, t.about, t.turns) for t in texts] == [
        ("one", "one", "Who are you?", ("USER: Hi you ?", "SYSTEM: Hm"))
    ]
    assert counts == {"dialogues without two speakers left out": 2}


def test_repairs():
    meant = {
        "Guía".encode().decode("latin-1"): "Guía",
        "Guía": "Guía",
        "a\x85 b\x93c\x94": "a… b“c”",
        "&lt;b&gt; &amp;amp;": "<b> &amp;",
        "  a \n b ": "a b",
        "日本\x85\x81": "日本…",
    }
    assert {text: repaired(text) for text in meant} == meant

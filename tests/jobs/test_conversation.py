"""Conversation: what is read, what is left out, what is shown; stubs stand in for models."""

import io
from types import SimpleNamespace

import gin
import numpy as np
import pytest

from m6rec_jax.data.dataset.joined_attributes import JoinedAttributes
from m6rec_jax.data.dataset.reading import write_dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.ease import Ease
from m6rec_jax.data.rendering.corpora import prepare_corpus
from m6rec_jax.data.rendering.dialogues import DialogueOptions, Dialogues
from m6rec_jax.data.store.prepared import read_catalogue
from m6rec_jax.dialogue.wishes import Years
from m6rec_jax.engine.decoding.generation import GeneratedText, RecommendedTitle
from m6rec_jax.engine.index.catalogue_index import TopK
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.conversation import UserRead
from m6rec_jax.jobs.resources import Resources, ServiceOptions
from m6rec_jax.pipeline.prepared_rows import read_rows
from m6rec_jax.serving import chat as chat_module
from m6rec_jax.serving import conversations
from m6rec_jax.text.records import Item
from tests.data.dialogue_files import write_inspired_folder
from tests.dialogue import films
from tests.jobs.conversations import catalogue_of, converse
from tests.serving import served_films

TITLES = ["Fargo (1996)", "Heat (1995)", "Heat (1986)", "Alien (1979)", "Big (1988)"]
CATALOGUE = catalogue_of([Item("", {"title": title[:-7]}) for title in TITLES], TITLES)


class Vocabulary:
    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens):
        return "".join(map(chr, tokens))


class Model:
    """Replies with a fixed text, recommends the first items that were not seen; keeps the calls."""

    vocabulary, max_tokens, num_items = Vocabulary(), 200, len(TITLES)

    def __init__(self, reply="Try Heat."):
        self.reply, self.sources, self.seen = reply, [], []

    def write(self, requests):
        (request,) = requests
        self.sources.append(request.source)
        assert request.task in ("r", "replies")
        self.choices = request.choices
        assert request.prefix == "SYSTEM:"
        return [GeneratedText(self.reply, -1.0, True)]

    def _left(self, seen):
        self.seen.append(set(seen))
        return [place for place in range(len(TITLES)) if place not in seen]

    def recommend(self, requests, trie, k, *, num_beams):
        (request,) = requests
        self.sources.append(request.source)
        assert num_beams <= len(trie)
        return [[RecommendedTitle(TITLES[i], -float(i), [i]) for i in self._left(request.seen)[:k]]]

    def index(self, texts, task):
        assert texts == TITLES
        return self

    def embed_users(self, sources, tasks):
        self.sources += sources
        return np.zeros((1, 2), np.float32)

    def similarities(self, users, ids):
        return -1e-6 * ids  # too little to count beside what is named together

    def top_k(self, users, k, seen, batch_sizes):
        places = (self._left(seen[0]) + [-1] * k)[:k]
        return TopK(np.array([places]), np.zeros((1, k), np.float32))


class FilmModel(Model):
    """The same for the films with attributes."""

    num_items = len(films.ITEMS)

    def _left(self, seen):
        self.seen.append(set(seen))
        return [place for place in range(len(films.ITEMS)) if place not in seen]

    def recommend(self, requests, trie, k, **_):
        return [
            [RecommendedTitle(films.TITLES[i], -float(i), [i]) for i in self._left(one.seen)[:k]]
            for one in requests
        ]

    def index(self, texts, task):
        return self


def test_replies_read_the_turns_so_far():
    history = ["24 years old", "", "liked X"]
    conversation = converse(CATALOGUE, replies=Model(), user=(history, ()))
    conversation.dialogue.hear("Hello  there")
    known = ["24 years old", "liked X"]
    assert conversation.source(conversation.dialogue) == [*known, "USER: Hello there"]
    answer = conversation.answer("More?")
    said = ["USER: Hello there", "USER: More?", f"SYSTEM: {answer.reply}"]
    assert conversation.source(conversation.dialogue) == [*known, *said]
    assert answer.written is None


@pytest.mark.parametrize(("max_turns", "number"), [(2, 2), (None, 3)])
def test_only_the_latest_turns_are_read(max_turns, number):
    conversation = converse(CATALOGUE, replies=Model(), max_turns=max_turns)
    for text in ("a", "b", "c"):
        conversation.dialogue.hear(text)
    turns = ["USER: a", "USER: b", "USER: c"]
    assert conversation.source(conversation.dialogue) == ["", *turns[-number:]]


def test_what_was_named_is_not_recommended():
    titles, retrieval = Model(), Model()
    conversation = converse(
        CATALOGUE, replies=Model(), titles=titles, retrieval=retrieval, numbers={"num_items": 1}
    )
    answer = conversation.answer("I liked Fargo (1996), not big ones")
    # The user named Fargo; "big" is no title, for want of its capital.
    assert titles.seen == retrieval.seen == [{0}]
    assert answer.written.titles == answer.retrieved.titles == ["Heat (1995)"]
    assert titles.sources[0][-1] == "SYSTEM recommends"
    # The reply named both films of one name, and the recommendation one of them.
    answer = conversation.answer("And else?")
    assert titles.seen[1] == {0, 1, 2}
    assert answer.written.places == [3]
    answer = conversation.answer("And else?")
    answer = conversation.answer("And else?")
    assert answer.written.titles == answer.retrieved.titles == []
    conversation.restart()
    assert conversation.answer("Hi").written.places == [0]


# ---- replies that are grounded, and recommendations that obey

FILMS = catalogue_of(films.ITEMS, films.TITLES, [*range(len(films.ITEMS))])


@pytest.fixture
def film_words():
    gin.parse_config_file("gin_configs/dialogue/films.gin")
    yield
    gin.clear_config()


@pytest.mark.usefixtures("film_words")
def test_recommendations_obey():
    titles, retrieval = FilmModel(), FilmModel()
    conversation = converse(FILMS, titles=titles, retrieval=retrieval)
    answer = conversation.answer("A comedy, please. Nothing for children.")
    # Big, The Kid, The Mask, That Thing You Do!
    assert answer.written.places == answer.retrieved.places == [4, 8, 9]
    assert answer.understood == "comedy films other than animation or children's films"
    assert answer.reply == "How about Big (1988)? It is a comedy film."
    answer = conversation.answer("Something newer?")
    assert answer.written.places == [10]
    assert answer.reply == "How about That Thing You Do! (1996)? It is a comedy film from 1996."
    # All others were offered: the least important wish is dropped, and that is said.
    answer = conversation.answer("with Tom Hanks")
    assert answer.understood == "films newer than 1988 other than animation or children's films"
    assert answer.reply.startswith("I know no more comedy films with Tom Hanks newer than 1988")
    other = conversation.resumed([("USER", "I liked Fargo."), ("SYSTEM", "Try Heat (1995).")])
    other.hear("Older, with an alien? A horror film")
    assert conversation.recommend([other])[0].written.places == [3]


def test_acts():
    """Words of films by themselves, since the catalogue has directors."""
    conversation = converse(FILMS, titles=FilmModel(), user=(["likes Alien"], ()))
    assert conversation.answer("Hello").reply == "Hello. Which genre would you like?"
    conversation.answer("I liked Fargo")
    answer = conversation.answer("Who directed Fargo?")
    assert answer.reply == "Fargo (1996) is a film by Joel Coen and Ethan Coen."
    assert answer.written is None
    conversation.restart()
    answer = conversation.answer("A horror film that I have not seen")
    assert answer.written.places == [7]
    assert conversation.answer("Why?").reply == (
        "You asked for horror films new to you, and Casper (1995) is a horror film."
    )
    rated = conversation.answer("Is it any good?")
    assert "of 12 films Casper (1995) is number" in rated.reply
    assert rated.written is None
    assert conversation.answer("What is it about?").reply == (
        "Casper (1995) is a children's and horror film by Brad Silberling with Christina Ricci "
        "from United States."
    )
    assert conversation.answer("Thanks").reply == "You are welcome."
    assert conversation.answer("OK, bye").reply == "Goodbye."
    # Without titles and towers: what occurs most often.
    popular = converse(FILMS, replies=FilmModel())
    assert popular.answer("comedies").reply.startswith("How about That Thing You Do! (1996)?")


def test_not_that_old_is_newer_than_what_was_named_last():
    conversation = converse(FILMS, titles=FilmModel())
    conversation.answer("I liked Heat (1986)")
    conversation.dialogue.state.latest = [2]
    conversation.dialogue.hear("Not that old, please")
    assert conversation.dialogue.state.wishes == (Years(1987),)


def test_a_certificate_keeps_films_from_children():
    """Also one that is animated; and what has two ids is recommended by one of them."""
    rude = films.Item("rude", {**films.ITEMS[5].attributes, "title": "Rude", "certificate": "R"})
    twin = films.Item("twin", dict(films.ITEMS[5].attributes))
    items, titles = [*films.ITEMS, rude, twin], [*films.TITLES, "Rude", films.TITLES[5]]
    catalogue = catalogue_of(items, titles, [1] * 13 + [2])
    conversation = converse(catalogue, titles=FilmModel())
    conversation.dialogue.hear("for my kids")
    offered = [
        items[place].id
        for place in np.flatnonzero(conversation.obeying(conversation.dialogue).allowed)
    ]
    assert "twin" in offered
    assert not {"rude", films.ITEMS[5].id} & set(offered)


@pytest.mark.usefixtures("film_words")
def test_new_to_a_user_is_nothing_of_the_past():
    """Also where the history, which may be cut, does not name it."""
    past = [films.NAMES.index("Alien")]
    conversation = converse(FILMS, titles=FilmModel(), user=((), past), repeats_count=True)
    answer = conversation.answer("A horror film that I have not seen")
    assert [films.NAMES[place] for place in answer.written.places] == ["Casper"]


@pytest.mark.usefixtures("film_words")
def test_the_model_chooses_what_is_said():
    wanted = "I recommend The Kid (1921). It is a comedy film."
    model = FilmModel(reply=wanted)
    conversation = converse(FILMS, replies=model, titles=FilmModel())
    assert conversation.answer("a comedy, not animated").reply == wanted
    conversation.restart()
    answer = conversation.answer("a comedy by Charlie Chaplin")
    wanted = "I recommend The Kid (1921). It is a comedy film by Charlie Chaplin."
    assert answer.reply == "How about The Kid (1921)? It is a comedy film by Charlie Chaplin."
    model.reply = wanted
    conversation.restart()
    assert conversation.answer("a comedy by Charlie Chaplin").reply == wanted
    # What has no room is not among the choices, and an export's programs write freely.
    model.max_tokens, model.choices = 20, None
    conversation.restart()
    assert conversation.answer("a comedy").reply.startswith("How about Big (1988)?")
    assert model.choices is None


@pytest.mark.usefixtures("film_words")
def test_towers_of_users_read_what_was_liked():
    model = FilmModel()
    conversation = converse(
        FILMS, retrieval=model, read_liked=lambda liked: UserRead([f"{liked}"], [*liked])
    )
    conversation.answer("I liked Fargo and Alien, and I hated Big. Newer than Casper?")
    assert model.sources == [["[0, 3]"]]
    conversation.answer("I have not seen Babe")
    assert model.sources[1:] == [["[0, 3]"]]


@pytest.mark.parametrize("read_liked", [None, lambda liked: UserRead([], [*liked])])
def test_what_is_named_together_is_recommended(read_liked):
    """The towers have the catalogue's order; those who named Heat (1995) named Big, then Alien."""
    counted = CoOccurrence.counted(np.repeat([0, 1, 2], 2), np.array([1, 4, 1, 4, 1, 3]), 5)
    none = Ease.fitted(np.zeros(0, int), np.zeros(0, int), 5)
    reranker = Reranker(counted, none, TITLES, np.array([1, 3, 1, 1, 2]), depth=3)
    model = Model()
    conversation = converse(
        CATALOGUE,
        retrieval=model,
        reranker=reranker,
        read_liked=read_liked,
        numbers={"num_items": 2},
    )
    answer = conversation.answer("I liked Heat (1995)")
    assert answer.retrieved.titles == ["Big (1988)", "Alien (1979)"]
    # What was named and offered is out; both come to their turn.
    assert set(conversation.dialogue.state.named) == {1, 2, 3, 4}
    assert conversation.answer("Others?").retrieved.titles == ["Fargo (1996)"]
    # Nor does what the user had come again, however often it is named beside.
    had = converse(
        CATALOGUE,
        retrieval=model,
        reranker=reranker,
        read_liked=read_liked,
        numbers={"num_items": 2},
        user=((), [4]),
    )
    assert had.answer("I liked Heat (1995)").retrieved.titles[0] == "Alien (1979)"
    assert 4 not in had.dialogue.state.named


def write_films(folder):
    """The films as a data set, and dialogues about some of them; returns the dialogues' folder."""
    kinds = {"title": "string", "year": "int", "runtime": "int"}
    kinds |= dict.fromkeys(("genres", "director", "cast", "country"), "list<string>")
    spec = DatasetSpec.from_dict(
        {
            "name": "films",
            "users": {"file": "u.parquet", "id": "user", "columns": {}},
            "items": {"file": "i.parquet", "id": "item", "columns": kinds},
            "events": {"file": "e.parquet", "user": "user", "item": "item", "time": "time"},
        }
    )
    (folder / "films").mkdir()
    items = [{"item": item.id, "runtime": 90, **item.attributes} for item in films.ITEMS]
    write_dataset(folder / "films", spec, [{"user": "u"}], items, [])
    talks = write_inspired_folder(folder / "talks")
    said = [
        ("SEEKER", "I liked Fargo (1996)", "Fargo (1996)"),
        ("RECOMMENDER", "Then try Babe: Pig in the City", "Babe: Pig in the City (1998)"),
        ("SEEKER", "A comedy by Penny Marshall, please", ""),
        ("RECOMMENDER", "See Big (1988) or Heat (1986)", "Big (1988); Heat (1986)"),
        ("SEEKER", "Something newer, no horror", ""),
        ("RECOMMENDER", "Alien (1979) is older", "Alien (1979)"),
    ]
    lines = ["\t".join(("t", str(i), s, "1", text, m, "")) for i, (s, text, m) in enumerate(said)]
    with (talks / "dev.tsv").open("a") as file:
        file.write("\n".join(lines) + "\n")
    return talks, [("USER" if s == "SEEKER" else "SYSTEM", text) for s, text, _ in said]


@pytest.mark.usefixtures("film_words")
def test_rows_of_training_and_dialogues_in_use_read_the_same(tmp_path):
    talks, said = write_films(tmp_path)
    options = DialogueOptions(max_turns=3, attributes=str(tmp_path / "films"), named_items=2)
    prepared = prepare_corpus(Dialogues(talks, options), tmp_path, progress=False)
    # Babe of 1998 is another one; of the Heats each has its year.
    counts = prepared.manifest.counts
    assert (counts["items"], counts["items_with_attributes"]) == (6, 5)
    catalogue = read_catalogue(prepared.folder)
    known = {item.id: item.attributes for item in catalogue.items}
    assert known["Heat (1995)"]["director"] == ("Michael Mann",)
    assert known["Heat (1986)"]["director"] == ("Dick Richards",)
    assert not known["Babe: Pig in the City (1998)"]["genres"]
    rows = {
        row["text_id"]: row["source"]
        for part in ("train", "validation", "test")
        for row in read_rows(prepared, "replies", part)
    }
    model = converse(catalogue, replies=Model(), max_turns=3, named_items=2)
    for number in (1, 3, 5):
        in_use = model.resumed(said[:number])
        assert rows[f"t/{number}"] == model.source(in_use)
    assert rows["t/5"] == [
        *("", "USER: A comedy by Penny Marshall, please", "SYSTEM: See Big (1988) or Heat (1986)"),
        *("Big: comedy, romance, by Penny Marshall, 1988", "Heat: action, by Dick Richards, 1986"),
        "USER: Something newer, no horror",
    ]
    # A data set that knows none of the items, or none of the columns.
    (talks / "dev.tsv").write_text((talks / "dev.tsv").read_text().replace(" (19", " (18"))
    with pytest.raises(DataError, match="none of the 6 items"):
        prepare_corpus(Dialogues(talks, options), tmp_path, progress=False)
    with pytest.raises(DataError, match=r"DialogueWords.attributes \(colour"):
        JoinedAttributes(tmp_path / "films", ["colour"])


def test_impossible_conversations_are_told():
    with pytest.raises(ConfigError, match="num_beams = 2"):
        converse(CATALOGUE, titles=Model(), numbers={"num_items": 3, "num_beams": 2})


# ---- the terminal


def model_of(**kinds):
    tasks = {
        name: TaskSettings(
            kind=kind,
            writing="replies" if kind == "generation" else "",
            prepared=f"{name}.by_group",
        )
        for name, kind in kinds.items()
    }
    settings = SimpleNamespace(tasks=tasks, source_length=64, target_length=32)
    made = SimpleNamespace(settings=settings, tasks=tasks, data_dir=None)
    made.generator = made.retriever = lambda *_, **shapes: Model()
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Prepared data in name only: the catalogue is given."""
    (tmp_path / "prepare.json").write_text('{"dataset": "talks", "dialogue_spec": {}}')
    (tmp_path / "catalogue.parquet").touch()
    monkeypatch.setattr(conversations, "read_catalogue", lambda _: CATALOGUE)
    yield tmp_path
    gin.clear_config()


def said(folder, lines, **kinds):
    out = io.StringIO()
    prepared = None if folder is None else str(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_module, "load_with_bank", lambda *_, **__: model_of(**kinds))
        chat_module.chat("run", prepared=prepared, lines=lines, out=out)
    return out.getvalue().splitlines()


def test_a_talk_in_the_terminal(folder):
    kinds = {"r": "generation", "t": "title_recommendation", "i": "item_recommendation"}
    lines = ["I liked Fargo\n", "\n", "/help\n", "/new\n", "Hi\n", "/quit\n", "never said\n"]
    assert said(folder, lines, **kinds) == [
        chat_module.HELP,
        "SYSTEM: How about Heat (1995)?",
        "  written: Heat (1995) · Heat (1986) · Alien (1979)",
        "  retrieved: Heat (1995) · Heat (1986) · Alien (1979)",
        chat_module.HELP,
        "(a new dialogue)",
        "SYSTEM: Hello. What would you like? You may name items that you liked.",
        "  written: Fargo (1996) · Heat (1995) · Heat (1986)",
        "  retrieved: Fargo (1996) · Heat (1995) · Heat (1986)",
    ]


def test_models_that_cannot_talk_are_told(folder, monkeypatch):
    with pytest.raises(ConfigError, match=r"no task to converse with .*: ctr"):
        said(folder, [], ctr="scoring")
    with pytest.raises(ConfigError, match="b is the model's second task of replies"):
        said(folder, [], a="generation", b="generation")
    with pytest.raises(ConfigError, match=r"no prepared data in .*gin\.PREPARED=FOLDER"):
        said(folder / "none", [], a="generation")
    # Data are those of the tasks that talk, whatever else the model was trained on.
    monkeypatch.setenv("M6REC_DATA_DIR", str(folder))
    kinds = {"a": "generation", "b": "title_recommendation", "c": "scoring"}
    with pytest.raises(
        ConfigError, match=r"several catalogues.* \(a\.by_group, b\.by_group\); name"
    ):
        said(None, [], **kinds)
    with pytest.raises(ConfigError, match=r"no prepared data in .*/b\.by_group"):
        said(None, [], b="title_recommendation", c="scoring")
    resources = Resources(model_of(a="generation"), ServiceOptions())
    with pytest.raises(ConfigError, match="holds no users, items and events"):
        conversations.open_conversation(resources, str(folder), user={})


def test_a_line_that_is_not_utf8_does_not_end_the_talk(folder, monkeypatch):
    raw = io.BytesIO(b"I liked Fargo\ncaf\xe9\n/quit\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(raw, "utf-8", errors="strict"))
    told = said(folder, None, r="generation")
    assert sum(line.startswith("SYSTEM: ") for line in told) == 2


@pytest.mark.parametrize(
    ("history", "number"),
    [
        ([{"item": "f1", "time": 1e9, "value": 5}], 2),
        (
            [{"item": "f1", "time": 9.0, "value": 5}, {"item": "unknown", "time": 1e9, "value": 5}],
            2,
        ),
        (None, 1),
    ],
)
def test_what_a_user_did_may_be_newer_than_the_data(history, number, tmp_path):
    folder = served_films.write_data(tmp_path / "films")
    known = {"user": {"taste": "drama"}, "history": history}
    assert len(conversations.known_user(known, folder, None)([0]).past) == number


def test_fields_that_say_nothing_of_a_user_are_told(tmp_path):
    (tmp_path / "user.json").write_text('{"usr": {"taste": "drama"}}')
    with pytest.raises(ConfigError, match=r"has 'usr' \(did you mean 'user'\?\): a dialogue takes"):
        chat_module._read_user(tmp_path / "user.json")


def test_nothing_is_searched_for_a_turn_that_wishes_nothing():
    titles, towers = Model(), Model()
    conversation = converse(CATALOGUE, titles=titles, retrieval=towers)
    assert conversation.answer("Something like Heat").written is not None
    numbers = len(titles.sources), len(towers.sources)
    assert min(numbers) > 0
    assert conversation.answer("Thanks").written is None
    assert (len(titles.sources), len(towers.sources)) == numbers

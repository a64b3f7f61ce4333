"""Dialogues: what a reply may read, what was named before, which split is which; their files."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.data.dataset.joined_attributes import JoinedAttributes
from m6rec_jax.data.dataset.reading import write_dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.rendering.corpora import prepare_corpus
from m6rec_jax.data.rendering.dialogues import (
    Dialogue,
    DialogueOptions,
    Dialogues,
    Turn,
    read_inspired,
    read_redial,
)
from m6rec_jax.data.splitting.splits import PARTS, by_name
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.prepared_rows import read_rows
from m6rec_jax.text.records import Item
from tests.data import dialogue_files as files
from tests.data.fold import co_occurrence_of


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    talks = Dialogues(files.write_inspired_folder(folder / "talks"))
    return prepare_corpus(talks, folder, progress=False)


def rows_of(prepared, view):
    return {row["text_id"]: row for part in PARTS for row in read_rows(prepared, view, part)}


def test_replies_read_what_was_said_before(prepared):
    rows = rows_of(prepared, "replies")
    assert len(rows) == 60 * 3
    first, second, third = (rows[f"d0/{number}"] for number in (0, 2, 4))
    assert first["source"] == [""]
    assert (first["prefix"], first["target"]) == ("SYSTEM:", "Hello. What do you like?")
    assert second["source"] == [
        "",
        "SYSTEM: Hello. What do you like?",
        "USER: I liked Fargo (1996)",
    ]
    titles = prepared.catalogue().texts
    assert [titles[i] for i in second["item_indices"]] == ["Heat (1995)", "Alien (1979)"]
    assert sorted(titles[i] for i in third["seen_indices"]) == [
        "Alien (1979)",
        "Fargo (1996)",
        "Heat (1995)",
    ]


def test_every_recommended_item_is_a_row(prepared):
    rows = rows_of(prepared, "recommendations")
    assert len(rows) == 60 * 3
    titles = prepared.catalogue().texts
    heat, again = rows["d0/2/Heat (1995)"], rows["d0/4/Fargo (1996)"]
    assert heat["source"][-1] == "SYSTEM recommends"
    assert heat["target"] == titles[heat["item_indices"][0]] == "Heat (1995)"
    # What the same turn names is not known before it.
    assert [titles[i] for i in heat["seen_indices"]] == ["Fargo (1996)"]
    assert again["item_indices"][0] in again["seen_indices"]
    indices = [row["text_index"] for row in rows.values()]
    assert len(set(indices)) == len(indices)
    # Rows of one turn have one number, which no other turn has.
    turns: dict[int, set[str]] = {}
    for text_id, row in rows.items():
        turns.setdefault(row["turn_index"], set()).add(text_id.rpartition("/")[0])
    assert len(turns) == 60 * 2
    assert all(len(told) == 1 for told in turns.values())
    assert heat["turn_index"] == rows["d0/2/Alien (1979)"]["turn_index"]


@pytest.mark.parametrize("shares", [{}, {"train": 0.5, "validation": 0.1}])
def test_a_dialogue_is_in_one_part(tmp_path, shares):
    """In that which its hash and the shares of the description say."""
    folder = files.write_inspired_folder(tmp_path / "talks", 60)
    spec = json.loads((folder / "dialogues.json").read_text())
    (folder / "dialogues.json").write_text(json.dumps(spec | {"splits": {"by_group": shares}}))
    prepared = prepare_corpus(Dialogues(folder), tmp_path, progress=False)
    codes = by_name([f"d{number}" for number in range(60)], **shares)
    for view in ("replies", "recommendations"):
        for code, part in enumerate(PARTS):
            found = {row["user_id"] for row in read_rows(prepared, view, part)}
            assert found == {f"d{n}" for n in range(60) if codes[n] == code}


def test_what_training_dialogues_name_is_counted(prepared):
    catalogue, codes = prepared.catalogue(), by_name([f"d{number}" for number in range(60)])
    index = {title: place for place, title in enumerate(catalogue.texts)}
    named = [
        (number, [index[title] for turn in dialogue.turns for title in turn.items])
        for number, dialogue in enumerate(read_inspired(prepared.data_dir / "talks" / "dev.tsv"))
        if not codes[number]
    ]
    everything = [item for _, items in named for item in items]
    assert catalogue.train_counts.tolist() == np.bincount(everything, minlength=4).tolist()
    pairs = [(number, item) for number, items in named for item in dict.fromkeys(items)]
    expected = co_occurrence_of(*zip(*pairs, strict=True), 4)
    np.testing.assert_array_equal(prepared.co_occurrence().later.toarray(), expected)
    assert catalogue.items[0].attributes == {"title": "Fargo", "year": 1996}
    assert not catalogue.held_out.any()


def test_files_of_parts(tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    last = files.redial(99, movieMentions={"5": "Only Here (2001)"})
    last["messages"] = [{"senderWorkerId": 9, "text": "@5"}]

    def talks(tested, *options, **parts):
        files.write_redial(folder / "train.jsonl", [files.redial(n) for n in range(40)])
        files.write_redial(folder / "test.jsonl", [tested])
        spec = {"name": "talks", "format": "redial", "files": parts}
        (folder / "dialogues.json").write_text(json.dumps(spec))
        return Dialogues(folder, *options)

    both = {"train": "train.jsonl", "test": "test.jsonl"}
    with pytest.raises(DataError, match="'files' must be a file, or an object"):
        prepare_corpus(talks(last, train="train.jsonl"), tmp_path)
    with pytest.raises(DataError, match="dialogue '3' is in the files of 'train' and 'test'"):
        prepare_corpus(talks(files.redial(3), **both), tmp_path)
    corpus = talks(last, DialogueOptions(1), **both)
    assert corpus.summary() == "talks: 41 dialogues (40 train, 1 test)"
    prepared = prepare_corpus(corpus, tmp_path, progress=False)
    assert {row["user_id"] for row in read_rows(prepared, "replies", "test")} == {"99"}
    assert prepared.num_rows("replies")["train"] + prepared.num_rows("replies")["validation"] == 40
    catalogue = prepared.catalogue()
    held = dict(zip([item.id for item in catalogue.items], catalogue.held_out, strict=True))
    assert held == {"111": False, "11": False, "5": True}


def test_attributes_are_joined_by_title_and_the_nearest_year(tmp_path):
    kinds = {"title": "string", "year": "int", "genres": "list<string>"}
    event = {"user": "user", "item": "item", "time": "time"}
    spec = {
        "name": "films",
        "users": {"file": "u.parquet", "id": "user", "columns": {}},
        "items": {"file": "i.parquet", "id": "item", "columns": kinds},
        "events": {"file": "e.parquet", **event},
    }
    films = [("Heat", 1995), ("Big", 1988), ("Big", 1989), ("Alien", 1979), ("Alien", 1981)]
    items = [
        {"item": f"{title} {year}", "title": title, "year": year, "genres": [f"of {year}"]}
        for title, year in [*films, ("!", 2000)]
    ]
    write_dataset(tmp_path, DatasetSpec.from_dict(spec), [{"user": "u"}], items, [])
    # A year apart, too far, the nearer of two, two as near, and of no title or no year.
    sought = [("heat!", 1996), ("Heat", 1997), ("Big", 1989), ("Alien", 1980), ("?", 2000)]
    joined, known = JoinedAttributes(tmp_path, ["genres", "colour"]).joined(
        [Item("", {"title": title, "year": year}) for title, year in [*sought, ("Big", None)]]
    )
    genres = [("of 1995",), None, ("of 1989",), None, None, None]
    assert [item.attributes["genres"] for item in joined] == genres
    assert known == 2


# ---- files


def test_inspired(tmp_path):
    first, second = read_inspired(files.write_inspired(tmp_path / "dev.tsv", range(2)))
    fargo, heat, alien, _ = files.FILMS
    assert first == Dialogue(
        "d0",
        [
            Turn("SYSTEM", "Hello. What do you like?"),
            Turn("USER", f"I liked {fargo}", (fargo,)),
            Turn("SYSTEM", f"Then try {heat} or {alien}", (heat, alien)),
            Turn("USER", '"No"'),
            Turn("SYSTEM", f"As you liked {fargo}, see {fargo} again", (fargo,)),
        ],
        {film: film for film in (fargo, heat, alien)},
    )
    assert second.id == "d1"


def test_redial(tmp_path):
    dialogues = [
        files.redial(1),
        # The files have lists for empty objects.
        files.redial(2, movieMentions=[], messages=[{"senderWorkerId": 9, "text": "Hi @11"}]),
        files.redial(3, messages=[]),
        # A film whose title is not known stays a number.
        files.redial(4, movieMentions={"11": None, "111": "Heat (1995)"}),
    ]
    first, second, third = read_redial(files.write_redial(tmp_path / "train.jsonl", dialogues))
    assert first == Dialogue(
        "1",
        [
            Turn("USER", "Hi, I liked Heat (1995) & Fargo (1996)", ("111", "11")),
            Turn("SYSTEM", "See Fargo (1996)! Mail me @12 or at a@b", ("11",)),
        ],
        {"111": "Heat (1995)", "11": "Fargo (1996)"},
    )
    assert second == Dialogue("2", [Turn("SYSTEM", "Hi @11")], {})
    assert third.turns[0] == Turn("USER", "Hi, I liked Heat (1995) & @11", ("111",))
    assert third.titles == {"111": "Heat (1995)"}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda text: text.replace("speaker", "who"), "no column 'speaker'"),
        (lambda text: text.replace("SEEKER", "SYSTEM", 1), "line 4.*'SYSTEM'"),
        (lambda text: text.replace("Hello.", "Hel\tlo."), "line 2"),
    ],
)
def test_broken_rows_of_inspired_are_named(tmp_path, change, where):
    path = files.write_inspired(tmp_path / "dev.tsv", range(1))
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=where):
        list(read_inspired(path))


@given(st.lists(st.tuples(st.sampled_from([7, 9]), st.text(max_size=20)), max_size=6))
def test_speakers_take_turns_and_nothing_is_lost(tmp_path_factory, said):
    path = tmp_path_factory.mktemp("redial") / "a.jsonl"
    messages = [{"senderWorkerId": who, "text": text} for who, text in said]
    files.write_redial(path, [files.redial(1, messages=messages, movieMentions={})])
    found = list(read_redial(path))
    turns = found[0].turns if found else ()
    assert all(a.speaker != b.speaker for a, b in itertools.pairwise(turns))
    everything = " ".join(text for _, text in said)
    # Elsewhere entities are resolved and wrong encodings put right.
    if everything.isascii() and "&" not in everything:
        assert [word for turn in turns for word in turn.text.split()] == everything.split()

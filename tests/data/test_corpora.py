"""Corpora: reading and writing folders of texts, and their preparation for TFDS."""

import json
import shutil

import msgspec
import pytest
import tensorflow_datasets as tfds

from m6rec_jax import cli
from m6rec_jax.data.corpora import (
    Corpus,
    CorpusSpec,
    Text,
    corpus_summary,
    documents,
    prepare_corpus,
    write_corpus,
)
from m6rec_jax.errors import DataError

SPEC = {
    "name": "notes",
    "texts": {"id": "note", "group": "film", "text": "words", "about": "title", "label": "mood"},
    "classes": ["sad", "merry"],
    "question": "How is it?",
}
HEADER = "note,film,title,words,mood\n"


def write(folder, rows, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "corpus.json").write_text(json.dumps(SPEC | changes))
    (folder / "texts.csv").write_text(HEADER + rows)
    return Corpus.open(folder)


def test_texts_of_a_csv_file(tmp_path):
    corpus = write(
        tmp_path / "a", 'n1,fargo,Fargo,"Snow, and blood.",sad\nn2,fargo,,Snow again.,\n'
    )
    assert list(corpus.texts()) == [
        Text("n1", "fargo", "Fargo", ("Snow, and blood.",), 0),
        Text("n2", "fargo", "", ("Snow again.",), None),
    ]


def test_a_summary_counts_classes(tmp_path):
    corpus = write(
        tmp_path / "a", "n1,f,,Snow.,sad\nn2,f,,Sun.,merry\nn3,g,,Rain.,sad\nn4,h,,Fog.,\n"
    )
    assert corpus_summary(corpus.directory) == "notes: 4 texts of 3 groups; 2 sad, 1 merry"


@pytest.mark.parametrize("has_turns", [False, True])
def test_what_is_written_is_read_back(tmp_path, has_turns):
    parts = ("Hello.", 'Hi | there, "you"') if has_turns else ("Hello.\nHi",)
    texts = [Text("a", "g", "", parts, 1), Text("b", "h", "about", parts[:1], None)]
    spec = msgspec.convert(
        {
            **SPEC,
            "texts": {
                "id": "i",
                "group": "g",
                ("turns" if has_turns else "text"): "t",
                "about": "a",
                "label": "l",
            },
            "licence": "mine",
            "provenance": {"left_out": {}},
        },
        CorpusSpec,
    )
    write_corpus(tmp_path, spec, texts)
    corpus = Corpus.open(tmp_path)
    assert corpus.spec == spec
    assert list(corpus.texts()) == texts


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "has no rows"),
        ("n1,f,,words,sad\nn1,f,,more,sad\n", "row 1: the note 'n1' occurs twice"),
        ("n1,f,,words,sad\nn2,,,more,sad\n", "row 1, column 'film': the value is missing"),
        ("n1,f,,words,sad\nn2,f,,  ,sad\n", "row 1, column 'words': the text has no words"),
        ("n1,f,,words,mery\n", r"row 0, column 'mood': 'mery' is none.*'merry'\?"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
    corpus = write(tmp_path / "a", rows)
    with pytest.raises(DataError, match=message):
        list(corpus.texts())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": {"id": "note", "group": "film"}}, "'text' or 'turns' must name"),
        ({"classes": ["sad"]}, "two different names or more"),
        ({"classes": []}, "two different names or more"),
        ({"question": ""}, "'question' is missing"),
        ({"clases": ["sad", "merry"]}, "not a known key"),
        (
            {"texts": {"id": "note", "group": "film", "text": "words"}},
            "'texts.label' names no column",
        ),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "a", "", **changes)


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(DataError, match="'feeling'"):
        write(tmp_path / "a", "", texts={**SPEC["texts"], "label": "feeling"})


# ---- splits


def test_tables_have_no_groups(tmp_path, write_shop):
    from m6rec_jax.data.event_table import assign
    from m6rec_jax.data.reading import Dataset
    from m6rec_jax.data.splits import Split

    shop = Dataset.open(write_shop([(0, 0, 1, 5), (0, 1, 2, 3), (0, 2, 3, 4)]))
    with pytest.raises(DataError, match="is one of texts"):
        assign(shop, Split.parse("by_group"))


# ---- preparation


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notes")
    rows = [
        f'n{n},film {n % 40},Title {n % 40},"Word{n} is said. Then more. And an end.",'
        + ("sad", "merry", "")[n % 3]
        for n in range(240)
    ]
    return write(folder / "notes", "\n".join(rows) + "\n").directory


def rows_of(prepared, view, part):
    builder = tfds.builder_from_directory(str(prepared.tfds_folder(view)))
    return list(tfds.as_numpy(builder.as_dataset(split=part)))


def test_documents_follow_one_another():
    long, *others = " ".join(["word"] * 39) + " end.", "Two.", "Three.", "Four."
    found = list(documents(Text("a", "g", "Fargo", (f"{long} One.", *others), None)))
    said = [long, "One.", *others]
    assert [document["target"] for document in found] == said
    assert [document["source"] for document in found] == [
        ["Fargo", *said[max(0, place - 3) : place]] for place in range(5)
    ]


def test_no_film_is_in_two_parts_and_every_text_is_somewhere(notes, tmp_path):
    prepared = prepare_corpus(notes, tmp_path, progress=False)
    groups, ids, labels = {}, [], []
    for part in ("train", "validation", "test"):
        for row in rows_of(prepared, "labelled_texts", part):
            groups.setdefault(row["group"], set()).add(part)
            ids.append(row["text_id"].decode())
            labels.append(int(row["label"]))
            assert row["question"] == b"How is it?"
    assert all(len(parts) == 1 for parts in groups.values())
    assert sorted(ids) == sorted(f"n{n}" for n in range(240) if n % 3 < 2)
    assert labels == [int(i[1:]) % 3 for i in ids]
    # Texts without a class are documents too, and in the part of their film.
    told = {part: rows_of(prepared, "documents", part) for part in ("train", "validation", "test")}
    assert sum(map(len, told.values())) == 240
    for part, documents_of in told.items():
        for row in documents_of:
            film = b"film " + row["source"][0].removeprefix(b"Title ")
            assert groups.get(film, {part}) == {part}
            assert row["kind"] == b"text"
    assert prepared.num_rows("documents")["train"] == len(told["train"])


def test_preparing_again_does_nothing_unless_something_changed(notes, tmp_path):
    notes = shutil.copytree(notes, tmp_path / "notes")
    prepared = prepare_corpus(notes, tmp_path, progress=False)
    built = prepared.tfds_folder("documents") / "dataset_info.json"
    first = built.stat().st_mtime_ns
    prepare_corpus(notes, tmp_path, progress=False)
    assert built.stat().st_mtime_ns == first
    with (notes / "texts.csv").open("a", encoding="utf-8") as file:
        file.write("another,fargo,Fargo,More snow.,sad\n")
    prepare_corpus(notes, tmp_path, progress=False)
    assert built.stat().st_mtime_ns != first


def test_splits_of_tables_do_not_fit_texts(notes, tmp_path):
    with pytest.raises(DataError, match="'per_user_temporal' needs users and times"):
        prepare_corpus(notes, tmp_path, "per_user_temporal", progress=False)


@pytest.mark.usefixtures("no_gin")
@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("check {notes} --quarantine {notes}.csv", "texts"),
        ("check {notes} --json {notes}.json", "texts"),
        ("prepare {notes} --engine ray", "texts"),
    ],
)
def test_what_is_for_tables_alone_is_refused(tmp_path, capsys, words, what):
    folder = tmp_path / "notes"
    write(folder, "n1,fargo,Fargo,Snow.,sad\n")
    assert cli.main(["data", *words.format(notes=folder).split()]) == cli.EXIT_USER_ERROR
    assert f"for users, items and events, not {what}" in capsys.readouterr().err

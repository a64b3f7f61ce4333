"""Corpora of texts: reading and writing folders, and what all corpora share in preparation."""

import json

import msgspec
import pytest

from m6rec_jax.data.rendering import corpora
from m6rec_jax.data.rendering.corpora import prepare_corpus
from m6rec_jax.data.rendering.texts import CorpusSpec, Text, TextCorpus, documents, write_corpus
from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.prepared_rows import read_rows

SPEC = {
    "name": "notes",
    "texts": {"id": "note", "group": "film", "text": "words", "about": "title", "label": "mood"},
    "classes": ["sad", "merry"],
    "question": "How is it?",
}


def write(folder, rows, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "corpus.json").write_text(json.dumps(SPEC | changes))
    (folder / "texts.csv").write_text("note,film,title,words,mood\n" + rows)
    return TextCorpus(folder)


def test_texts_of_a_csv_file(tmp_path):
    rows = 'n1,fargo,Fargo,"Snow, and blood.",sad\nn2,fargo,,Snow again.,\nn3,g,,Sun.,merry\n'
    corpus = write(tmp_path / "a", rows)
    assert [record.content for record in corpus.records] == [
        Text("n1", "fargo", "Fargo", ("Snow, and blood.",), 0),
        Text("n2", "fargo", "", ("Snow again.",), None),
        Text("n3", "g", "", ("Sun.",), 1),
    ]
    assert corpus.summary() == "notes: 3 texts (3 without a split)"


@pytest.mark.parametrize("column", ["text", "turns"])
def test_what_is_written_is_read_back(tmp_path, column):
    turns = ("Hello.", 'Hi | there, "you"') if column == "turns" else ("Hello.\nHi",)
    texts = [Text("a", "g", "", turns, 1), Text("b", "h", "about", turns[:1], None)]
    columns = {"id": "i", "group": "g", column: "t", "about": "a", "label": "l"}
    spec = msgspec.convert(SPEC | {"texts": columns, "provenance": {"left_out": {}}}, CorpusSpec)
    write_corpus(tmp_path, spec, texts)
    corpus = TextCorpus(tmp_path)
    assert corpus.spec == spec
    assert [record.content for record in corpus.records] == texts


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ("", "no rows"),
        ("n1,f,,words,sad\nn1,f,,more,sad\n", "row 1: the note 'n1'"),
        ("n1,f,,words,sad\nn2,,,more,sad\n", "row 1: column 'film'"),
        ("n1,f,,words,sad\nn2,f,,  ,sad\n", "row 1: column 'words'"),
        ("n1,f,,words,mery\n", r"row 0: column 'mood': 'mery'.*'merry'\?"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, where):
    with pytest.raises(DataError, match=where):
        list(write(tmp_path / "a", rows).records)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"texts": {"id": "note", "group": "film"}}, "'turns'"),
        ({"classes": ["sad", "sad"]}, "'classes'"),
        ({"question": ""}, "'question'"),
        ({"texts": {"id": "note", "group": "film", "text": "words"}}, "'texts.label'"),
        ({"texts": {**SPEC["texts"], "label": "feeling"}}, "'feeling'"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, changes, key):
    with pytest.raises(DataError, match=key):
        write(tmp_path / "a", "", **changes)


# ---- preparation


@pytest.fixture
def notes(tmp_path):
    rows = [
        f'n{n},film {n % 40},Title {n % 40},"Word{n} is said. Then more. And an end.",'
        + ("sad", "merry", "")[n % 3]
        for n in range(240)
    ]
    return write(tmp_path / "notes", "\n".join(rows) + "\n")


def test_documents_follow_one_another():
    long, *others = " ".join(["word"] * 39) + " end.", "Two.", "Three.", "Four."
    rows = list(documents(Text("a", "g", "Fargo", (f"{long} One.", *others), None)))
    said = [long, "One.", *others]
    assert [document["target"] for document in rows] == said
    assert [document["source"] for document in rows] == [
        ["Fargo", *said[max(0, place - 3) : place]] for place in range(5)
    ]


def test_no_film_is_in_two_splits_and_every_text_is_somewhere(notes, tmp_path):
    prepared = prepare_corpus(notes, tmp_path, progress=False)
    splits, labels, targets = {}, {}, []
    for split in PARTS:
        for row in read_rows(prepared, "labelled_texts", split):
            splits.setdefault(row["group"], set()).add(split)
            labels[row["text_id"]] = row["label"]
            assert row["question"] == "How is it?"
        for row in read_rows(prepared, "documents", split):
            splits.setdefault(row["source"][0].replace("Title", "film"), set()).add(split)
            targets.append(row["target"])
    assert all(len(of_film) == 1 for of_film in splits.values())
    assert labels == {f"n{n}": n % 3 for n in range(240) if n % 3 < 2}
    assert len(set(targets)) == 240


def test_preparing_again_does_nothing_unless_something_changed(notes, tmp_path, monkeypatch):
    prepared = prepare_corpus(notes, tmp_path, progress=False)
    manifest = prepared.folder / "prepare.json"
    first = manifest.stat().st_mtime_ns
    prepare_corpus(notes, tmp_path, progress=False)
    assert manifest.stat().st_mtime_ns == first
    before = (notes.files[1]).read_text()
    with notes.files[1].open("a", encoding="utf-8") as file:
        file.write("another,fargo,Fargo,More snow.,sad\n")
    # Killed on the way, what lies there is a mixture of both: the old texts are prepared anew, too.
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "write_spooled", lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                prepare_corpus(notes, tmp_path, progress=False)
            notes.files[1].write_text(before)
    prepare_corpus(notes, tmp_path, progress=False)
    assert manifest.stat().st_mtime_ns != first

"""The public face: `m6rec_jax.load`, in a notebook's words."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import m6rec_jax as m6
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.recommender import _plain
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.serving.build_index import build_index
from tests.engine.programs import num_traced
from tests.serving import served_films
from tests.serving.served_films import ITEMS, NOW, PREPARED

HISTORY = [{"item": f"f{n}", "time": NOW - 10 + n, "value": 5} for n in range(3)]
ASKED = {"user": {"taste": "comedy"}, "history": HISTORY, "time": NOW}


@dataclasses.dataclass
class Taste:
    taste: str


@pytest.fixture(scope="module")
def rec(served: Path, tmp_path_factory: pytest.TempPathFactory) -> m6.Recommender:
    folder = tmp_path_factory.mktemp("face")
    index, prepared = folder / "index", folder / PREPARED
    shutil.copytree(served / "cache" / PREPARED, prepared)
    served_films.write_co_occurrence(prepared)
    build_index(index, served / "run", task="next", prepared=str(prepared), progress=False)
    return m6.load(served / "run", index=index, prepared=prepared)


def test_scores_of_candidates(rec: m6.Recommender) -> None:
    new = {"title": "Film Z", "genre": "drama"}
    found = rec.score(["f4", new], **ASKED)
    assert [(item.id, item.title) for item in found] == [("f4", "Film E"), ("", "Film Z")]
    assert all(0 < item.score < 1 for item in found)
    # Data frames, dataclasses and records are the same request.
    again = rec.score(
        pa.table({"id": ["f4", None], "title": [None, "Film Z"], "genre": [None, "drama"]}),
        user=Taste("comedy"),
        history=pa.Table.from_pylist(HISTORY),
        time=NOW,
        task="ctr",
    )
    np.testing.assert_allclose([i.score for i in again], [i.score for i in found], atol=1e-6)


def test_numbers_and_arrays_of_numpy(rec: m6.Recommender) -> None:
    moment = np.datetime64(int(NOW * 1e9), "ns")
    history = [
        {"item": np.str_(one["item"]), "time": np.int64(one["time"]), "value": np.float32(5)}
        for one in HISTORY
    ]
    asked = {"user": {"taste": "comedy"}, "history": np.array(history), "time": moment}
    assert rec.score(np.array(["f4"]), task="ctr", **asked) == rec.score(
        ["f4"], task="ctr", **ASKED
    )
    assert len(rec.retrieve(k=np.int64(2), task="next", **asked)) == 2  # type: ignore[arg-type]
    row = {**asked, "history": history, "candidates": ("f4",), "time": np.float64(NOW)}
    (answer,) = rec.answer([row], task="ctr")
    assert answer.items == rec.score(["f4"], task="ctr", **ASKED)
    lists = {"genres": ("drama",), "item": {"n": np.array(["a"]), "m": np.int8(3)}}
    assert _plain(lists) == {"genres": ["drama"], "item": {"n": ["a"], "m": 3}}


def test_columns_of_the_tables(rec: m6.Recommender, caplog: pytest.LogCaptureFixture) -> None:
    """By the names that they have there, or those of requests; others are told of."""
    events = pa.table(
        {
            "user_id": ["u1"] * 3,
            "item_id": ["f0", "f1", "f2"],
            "time": [one["time"] for one in HISTORY],
            "rating": [5, 5, 5],
        }
    )
    found, plain = (
        rec.score(candidates, user={name: "u1", "taste": "x"}, history=told, time=NOW, task="ctr")
        for name, candidates, told in (
            ("user_id", pa.table({"item_id": ["f4"]}), events),
            ("id", ["f4"], HISTORY),
        )
    )
    assert found == plain
    described = [{**HISTORY[0], "item": {"item_id": "f0", "genre": "drama"}}]
    own = [{**HISTORY[0], "item": {"id": "f0", "genre": "drama"}}]
    found, plain = (
        rec.score(["f4"], **{**ASKED, "history": told}, task="ctr") for told in (described, own)
    )
    assert found == plain
    assert rec.embed_items(pa.table({"item_id": ["f3"]}), task="next")[0] == ["f3"]
    assert not caplog.messages
    rec.score(["f4"], **{**ASKED, "user": {"taste": "x", "tsate": "y"}}, task="ctr")
    rec.embed_items([{"id": "f3", "titel": "?"}], task="next")
    row = {"user": {"taste": "x"}, "time": NOW, "history": HISTORY, "candidates": ["f4"]}
    rec.answer([row, {**row, "user": {"tsate": "y", "taste": "x"}}], task="ctr")
    assert caplog.messages == [
        "left out, since the data set has no such columns: user.tsate",
        "left out, since the data set has no such columns: items.titel",
        "left out, since the data set has no such columns: user.tsate",
    ]


def test_what_was_retrieved_is_not_in_the_history(rec: m6.Recommender) -> None:
    found = rec.retrieve(k=4, task="next", **ASKED)
    assert len(found) == 4
    assert not {item.id for item in found} & {"f0", "f1", "f2"}
    assert [item.score for item in found] == sorted((i.score for i in found), reverse=True)
    ids, vectors = rec.embed_items(task="next")
    assert ids == [item.id for item in ITEMS]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(rec.embed_items(["f3"], task="next")[1][0], vectors[3], atol=1e-6)


def test_texts_and_titles(rec: m6.Recommender) -> None:
    (text,) = rec.write(["f4"], task="titles", **ASKED)
    assert (text.id, text.title) == ("f4", "Film E")
    assert text.log_probability < 0
    titles = {item.attributes["title"] for item in ITEMS}
    assert {i.title for i in rec.recommend(by="titles", task="titles", k=3, **ASKED)} <= titles


def test_what_else_is_asked(rec: m6.Recommender) -> None:
    assert rec.explain(["f4"], task="titles", **ASKED) == rec.write(["f4"], task="titles", **ASKED)
    (item,) = rec.likelihood(["f4"], **ASKED)
    assert (item.id, 0 < item.score < 1) == ("f4", True)
    assert len({item.id for item in rec.recommend(k=3, task="next", **ASKED)}) == 3


def test_a_newer_catalogue_and_programs_made_at_once(served: Path, tmp_path: Path) -> None:
    run = served_films.copy_run(served / "run", tmp_path / "run", ["ctr"])
    items = tmp_path / "items.csv"
    items.write_text("item_id,title,genre\nz1,Film Z,drama\n")
    own = m6.load(run, items=items, prepared=served / "cache" / PREPARED, warm_up=True)
    traced = num_traced()
    (found,) = own.score(["z1"], **ASKED)
    assert found.title == "Film Z"
    assert num_traced() == traced


def test_dialogues_ask_what_was_loaded(
    rec: m6.Recommender,
    served: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = served_films.copy_run(served / "run", tmp_path / "run", ["next"])
    parts = rec.service
    own = m6.load(run, index=parts.indexes["next"], prepared=parts.options.prepared)
    towers = own.service.retriever()
    monkeypatch.setattr(towers, "index", lambda *_: pytest.fail("the catalogue has an index"))
    first, second = (own.chat(user={"taste": "comedy"}) for _ in range(2))
    assert first._retriever is second._retriever is towers
    assert first._index is second._index
    # What is known of a user is said as everywhere.
    events = [{"item_id": one["item"], "time": one["time"], "rating": 5} for one in HISTORY]
    told = own.chat(user={"user_id": "u1", "taste": "comedy"}, history=events)
    same = own.chat(user={"id": "u1", "taste": "comedy"}, history=pa.Table.from_pylist(HISTORY))
    assert told._user[0] == same._user[0] != first._user[0]
    # As much as the task was trained on, also where no rows for scoring were prepared.
    bare = tmp_path / PREPARED
    shutil.copytree(str(parts.options.prepared), bare)
    manifest = bare / "prepare.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"views": {}}))
    more = [one | {"time": one["time"] + 3} for one in HISTORY]
    known = {"user": {"taste": "comedy"}, "history": [*HISTORY, *more]}
    told, same = (own.chat(**known, prepared=at) for at in (None, str(bare)))
    assert told._user[0] == same._user[0]
    assert not caplog.messages
    own.chat(user={"taste": "comedy", "tsate": "drama"})
    assert caplog.messages[-1].endswith("the data set has no such columns: user.tsate")
    with pytest.raises(ConfigError, match=r"no field 'histroy' \(did you mean 'history'\?\)"):
        own.chat(histroy=HISTORY)  # type: ignore[call-arg]


def test_many_requests_at_once(rec: m6.Recommender, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"user": {"taste": "x"}, "time": NOW, "history": HISTORY, "candidates": [f"f{n}"]}
        for n in range(3)
    ]
    rows[1]["candidates"] = ["nothing"]
    rows[2]["history"] = [{"item": "gone", "time": NOW, "value": 5}]
    found = rec.answer(rows, task="ctr")
    assert "the catalogue does not have these items of the history: gone" in caplog.text
    assert isinstance(found[1], RejectedRow)
    assert len(found[0].items) == len(found[2].items) == 1


def test_clear_errors(rec: m6.Recommender, served: Path, tmp_path: Path) -> None:
    with pytest.raises(RejectedRow, match=r"\{ago\}"):
        rec.score(["f1"], history=[{"item": "f1", "value": 3}], user={"taste": "x"}, task="ctr")
    with pytest.raises(ConfigError, match=r"'f1' is no list of records or ids"):
        rec.score("f1", task="ctr", **ASKED)
    with pytest.raises(ConfigError, match=r"'f1' is no list of records or ids"):
        rec.retrieve(exclude="f1", task="next", **ASKED)
    with pytest.raises(ConfigError, match=r"no field 'histroy' \(did you mean 'history'\?\)"):
        rec.score(["f1"], histroy=HISTORY, task="ctr")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"did you mean 'next'"):
        rec.retrieve(task="nxt", **ASKED)
    with pytest.raises(ConfigError, match="no task of this model writes explanations"):
        rec.explain(["f1"], **ASKED)
    with pytest.raises(CheckpointError):
        m6.load(tmp_path)
    assert rec.tasks["ctr"] == "scoring"

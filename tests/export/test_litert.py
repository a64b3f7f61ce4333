"""Programs for phones answer as the model does, by a client of three packages."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import device_speed
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.errors import DataError
from m6rec_jax.export import command, held_out
from m6rec_jax.export.device_client import EdgeModel, ExportError, source_row
from m6rec_jax.export.device_programs import CLIENT
from m6rec_jax.export.folder import verify
from m6rec_jax.export.held_out import Asked
from m6rec_jax.export.recording import Recorder
from m6rec_jax.text import layout
from tests.engine.tiny_model import make_model
from tests.export import asked
from tests.serving import served_films

SPECIAL_IDS = (90, 91, 0, 1)


@given(st.lists(st.lists(st.integers(2, 50), max_size=9), max_size=8), st.integers(3, 30))
def test_the_client_lays_out_histories_as_training_does(
    segments: list[list[int]], limit: int
) -> None:
    arrays = [np.array(segment, np.int32) for segment in segments]
    row = layout.source_layout(SPECIAL_IDS, arrays, limit)
    tokens, blocks = source_row(segments, SPECIAL_IDS, limit)
    assert tokens == row["encoder_input_tokens"].tolist()
    assert blocks == row["encoder_block_ids"].tolist()


@pytest.fixture(scope="module")
def exported(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    answered = asked.ask(model, Recorder())
    catalogue = held_out.Catalogue(
        "next",
        model.retriever("next").embed_items(["A", "B", "C"]),
        ["a", "b", "c"],
        ["A", "B", "C"],
    )
    folder = tmp_path_factory.mktemp("exported") / "phone"
    export = Asked(model, Recorder(), answered, catalogue=catalogue, precision="float32")
    results = command.write_export(folder, "litert", export)
    # The same float32 products, in another order.
    assert {name: own["equal"] for name, own in results.items()} == dict.fromkeys(
        ("score ctr", "user next", "item next", "generate titles", "recommend next"), 1.0
    )
    return folder


def test_the_catalogue_is_searched(exported: Path, model: Any) -> None:
    history = ["user, likes drama", "liked a film", "Monday"]
    user = model.retriever("next").embed_users([history])[0]
    expected = model.retriever("next").embed_items(["A", "B", "C"]) @ user
    found = EdgeModel(exported).recommend(history, k=2)
    assert [item.id for item in found] == [["a", "b", "c"][i] for i in np.argsort(-expected)[:2]]
    # Vectors of bytes: half a step of 1/127 in each of 16 numbers.
    assert found[0].score == pytest.approx(expected.max(), abs=0.02)


def test_bytes_of_shared_layers_and_factorised_embeddings(
    shop_vocabulary: Any, tmp_path: Path
) -> None:
    edge = {"share_layers": True, "embedding_rank": 8, "logits_via_embedding": True}
    whole = served_films.write_model(
        tmp_path / "whole", *make_model(shop_vocabulary, **edge), shop_vocabulary
    )
    model = load_model(served_films.copy_run(whole, tmp_path / "run", [*asked.TASKS]))
    answered = [one for one in asked.ask(model, Recorder()) if one.signature == "score"]
    folder = tmp_path / "int8"
    results = command.write_export(folder, "litert", Asked(model, Recorder(), answered))
    assert 1e-5 < results["score ctr"]["largest_difference"] < 0.05


def test_speed_is_measured(exported: Path) -> None:
    figures = device_speed.of_export(exported)
    assert figures["candidate_milliseconds"] > 0


def test_nan_is_no_answer(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "phone")
    rows = json.loads((folder / "held_out.json").read_text())
    (first, *_) = own = [one for one in rows if one["signature"] == "item"]
    first["output"] = [float("nan")] * len(first["output"])
    (folder / "held_out.json").write_text(json.dumps(own))
    with pytest.raises(DataError, match="'item next' of the export differs from the model by nan"):
        verify(folder, CLIENT)


def test_clear_errors(exported: Path) -> None:
    held_out_rows = exported / "held_out.json"
    kept = held_out_rows.rename(exported.with_name("kept.json"))
    opened = EdgeModel(exported)  # as it is shipped: without histories of users
    kept.rename(held_out_rows)
    with pytest.raises(ExportError, match="no task 'next' for scoring: ctr"):
        opened.score(["user"], ["A"], "next")
    with pytest.raises(ExportError, match="is of 'next', not of 'ctr'"):
        opened.recommend(["user"], task="ctr")
    assert opened.score(["user"], ["A", " "])[1] == -1
    path = exported / "model.tflite"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(exported / "client.py")],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_bytes(whole)
    assert done.returncode == 1
    assert "model.tflite is missing or damaged" in done.stderr
    assert json.loads((exported / "export.json").read_text())["verified"]["imported"] == []

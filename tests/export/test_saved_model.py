"""The graph reads text as Python does, and answers as the model does, without m6rec_jax."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.engine.candidates.rows import pack_texts
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.export import command, tf_serving
from m6rec_jax.export.held_out import Asked
from m6rec_jax.export.recording import Recorder
from m6rec_jax.export.text_graph import TextGraph
from m6rec_jax.model import M6Rec
from m6rec_jax.text import rows
from tests.export import asked
from tests.serving import served_films

S, T, BATCH = 24, 8, 40
# All of Unicode that UTF-8 can carry, with what might be taken for a control token.
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.text("ab .", max_size=60),
    st.sampled_from(["</s>", "<pad>", "<extra_id_0>", "[EOS']", "\u2581", "\x00a", "", " "]),
)


@pytest.fixture(scope="module")
def graph(shop_vocabulary: Any) -> Any:
    made = TextGraph(shop_vocabulary, S, T)
    return tf.function(made.source), tf.function(made.candidates)


@settings(max_examples=64)
@given(
    st.lists(st.lists(TEXTS, max_size=8), min_size=BATCH, max_size=BATCH),
    st.lists(st.integers(3, S), min_size=BATCH, max_size=BATCH),
)
def test_histories_are_laid_out_as_in_python(
    graph: Any, shop_vocabulary: Any, histories: list[list[str]], limits: list[int]
) -> None:
    """64 times 40 histories of up to 8 texts: some 10,000 strings."""
    padded = [[*own, *[""] * (8 - len(own))] for own in histories]
    counts = [len(own) for own in histories]
    tokens, blocks = graph[0](tf.constant(padded), tf.constant(counts), tf.constant(limits))
    for own, limit, found, found_blocks in zip(
        histories, limits, tokens.numpy(), blocks.numpy(), strict=True
    ):
        row = rows.source_row(shop_vocabulary, own, limit)
        length = len(row["encoder_input_tokens"])
        np.testing.assert_array_equal(found[:length], row["encoder_input_tokens"])
        np.testing.assert_array_equal(found_blocks[:length], row["encoder_block_ids"])
        assert not found[length:].any()
        assert not found_blocks[length:].any()


@settings(max_examples=30)
@given(st.lists(TEXTS, min_size=BATCH, max_size=BATCH), st.integers(3, T))
def test_candidates_are_laid_out_as_in_python(
    graph: Any, shop_vocabulary: Any, texts: list[str], limit: int
) -> None:
    found = graph[1](tf.constant([texts]), tf.constant([BATCH]), tf.constant([limit]))
    for place, text in enumerate(texts):
        has_words = len(shop_vocabulary.encode_array(text)) > 0
        assert bool(found.present[0, place]) == has_words
        if has_words:
            row = pack_texts(shop_vocabulary, [text], T, limit).rows[0]
            end = int(found.ends[0, place])
            tokens = found.tokens[0, place].numpy()
            np.testing.assert_array_equal(tokens[: end + 1], row["decoder_input_tokens"])
            assert not tokens[end + 1 :].any()


@pytest.fixture(scope="module")
def exported(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = served_films.copy_run(
        served / "run", tmp_path_factory.mktemp("run") / "run", [*asked.TASKS]
    )
    model, recorder = load_model(run), Recorder()
    tasks = model.settings.tasks
    # Another task of the same kind, chosen by name, with prompts and options of its own.
    dislikes = dataclasses.replace(tasks["ctr"], task_id=1, positive_classes=(0,))
    settings = dataclasses.replace(model.settings, tasks={**tasks, "dislikes": dislikes})
    model = dataclasses.replace(model, settings=settings)
    answered = asked.ask(model, recorder, {**asked.TASKS, "dislikes": "scoring"})
    folder = tmp_path_factory.mktemp("exported") / "films"
    # What was asked is exported, whatever the run multiplies in.
    narrow = M6Rec(model.model.config.replace(matmul_dtype="bfloat16"))
    model = dataclasses.replace(model, model=narrow)
    export = Asked(model, recorder, answered, ["cpu"], precision="float32")
    results = command.write_export(folder, "saved_model", export)
    assert json.loads((folder / "export.json").read_text())["tolerance"] == 1e-4
    # float32, so every text is the same.
    assert {name: own["equal"] for name, own in results.items()} == dict.fromkeys(
        ("score ctr", "score dislikes", "user next", "item next", "generate titles"), 1.0
    )
    return folder


@pytest.fixture(scope="module")
def signatures(exported: Path) -> Any:
    return tf.saved_model.load(str(exported / "1")).signatures


def test_what_has_no_score(signatures: Any) -> None:
    """An unknown task is an error that names the known ones; texts without words have no score."""
    asked = {
        "history": tf.constant([["user"]]),
        "history_length": tf.constant([1]),
        "candidates": tf.constant([["Film A", " ", "x"]]),
        "num_candidates": tf.constant([2]),
        "repeats": tf.constant([[False] * 3]),
    }
    score = signatures["score"]
    first, no_words, padding = score(task=tf.constant(["ctr"]), **asked)["scores"].numpy()[0]
    assert 0 < first < 1
    assert (no_words, padding) == (-1.0, -1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="known for scoring: ctr, dislikes"):
        score(task=tf.constant(["ctrr"]), **asked)


def test_a_changed_file_is_refused(exported: Path) -> None:
    path = exported / "1" / "saved_model.pb"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(exported / "check.py")],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_bytes(whole)
    assert done.returncode == 1
    assert "saved_model.pb is missing or damaged" in done.stderr


def test_tf_serving_warms_up_every_size(exported: Path, signatures: Any) -> None:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    logs = [
        PredictionLog.FromString(record.numpy()).predict_log.request
        for record in tf.data.TFRecordDataset(str(exported / "1" / tf_serving.WARM_UP))
    ]
    names = [log.model_spec.signature_name for log in logs]
    assert {name: names.count(name) for name in names} == {
        "score": 9,
        **dict.fromkeys(("user", "item", "generate"), 3),
    }
    for log in logs:
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in log.inputs.items()}
        if len(inputs["task"]) == 1:  # the others take long to compile
            found = signatures[log.model_spec.signature_name](**inputs)
            assert all(len(value) == 1 for value in found.values())
    # As TF Serving pads requests of unlike lengths: with their own first text.
    score = signatures["score"]
    alone = score(
        history=tf.constant([["user"]]),
        history_length=tf.constant([1]),
        candidates=tf.constant([["Film A"]]),
        num_candidates=tf.constant([1]),
        repeats=tf.constant([[False]]),
        task=tf.constant(["ctr"]),
    )["scores"]
    padded = score(
        history=tf.constant([["user", "user"]]),
        history_length=tf.constant([1]),
        candidates=tf.constant([["Film A", "Film A"]]),
        num_candidates=tf.constant([1]),
        repeats=tf.constant([[False, False]]),
        task=tf.constant(["ctr"]),
    )["scores"]
    np.testing.assert_allclose(padded[0, 0], alone[0, 0], rtol=1e-5)
    assert padded[0, 1] == -1

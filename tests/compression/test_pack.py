"""A packed file answers as the model of its bytes times scales, and damaged ones are refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.cli import main
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.engine.decoding.generation import TextRequest
from m6rec_jax.engine.engine import Backbone
from m6rec_jax.engine.model_folder import load_model, read_ranking
from m6rec_jax.engine.programs.packed_archive import read_archive, write_archive
from m6rec_jax.engine.programs.packed_file import (
    float_variables,
    packed_variables,
    quantized_variables,
)
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.quantization import SCALE
from m6rec_jax.pipeline.locations import OWN_VOCABULARY_VARIABLE
from m6rec_jax.pipeline.run_vocabulary import own_vocabulary
from m6rec_jax.recommender import load
from tests.engine.tiny_model import make_model
from tests.serving import served_films

HISTORY = ["user, likes drama", "liked Ran, drama", "disliked Alien, science fiction"]
ITEMS = ["Heat, crime", "Ran, drama", "Alien, science fiction"]


def write_run(folder: Path, vocabulary: Any, **changes: Any) -> Path:
    """A run, half of whose weights are zero."""
    model, variables = make_model(vocabulary, **changes)
    rng = np.random.default_rng(0)
    flat = flatten(variables)
    for name, leaf in flat.items():
        if name.startswith("params"):
            flat[name] = jax.numpy.asarray(leaf * (rng.random(leaf.shape) < 0.5))
    return served_films.write_model(folder, model, nested(flat), vocabulary)


def pack(run: Path, path: Path) -> Path:
    assert main(["compress", "pack", str(run), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def run(shop_vocabulary: Any, tmp_path_factory: Any) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), shop_vocabulary)


@pytest.fixture(scope="module")
def file(run: Path, tmp_path_factory: Any) -> Path:
    return pack(run, tmp_path_factory.mktemp("packed") / "model.m6rec")


@pytest.mark.parametrize(
    "changes",
    [{}, {"embedding_rank": 6}, {"embedding_rank": 6, "logits_via_embedding": True}],
    ids=["plain", "factorised", "factorised and tied"],
)
def test_answers_are_those_of_the_dequantised_model(
    changes: dict[str, Any], shop_vocabulary: Any, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", shop_vocabulary, **changes)
    packed, floats = load_model(pack(run, tmp_path / "model.m6rec")), load_model(run)
    flat = flatten(packed.variables)
    before = flatten(floats.variables)
    for name in before:
        value = np.asarray(flat[name], np.float32)
        scales = np.asarray(flat.get(name + SCALE, 1.0), np.float32)
        if name + SCALE in flat:
            assert flat[name].dtype == np.int8
            # Half a step, and what float16 rounds off the largest.
            worst = (0.5 + 127 * 2**-11) * scales
            assert (np.abs(before[name] - value * scales) <= worst + 1e-9).all(), name
            assert (value[np.asarray(before[name]) == 0] == 0).all(), "zeros stay zero"
        before[name] = jax.numpy.asarray(value * scales)
    weights = [leaf for leaf in flat.values() if leaf.dtype == np.int8]
    assert sum(leaf.size for leaf in weights) > 0.9 * sum(
        leaf.size for name, leaf in flat.items() if name.startswith("params")
    )
    backbone = Backbone(floats.model, nested(before)["params"], Runtime(), 48, 24)
    floats = dataclasses.replace(floats, variables=nested(before), backbone=backbone)
    # Exports in 8 bits have the same bytes: they are found again in the floats.
    again = flatten(quantized_variables(float_variables(packed.variables)))
    for name in before:
        np.testing.assert_array_equal(again[name], flat[name], err_msg=name)

    scores = [
        model.scorer("ctr").score_requests([HISTORY], [ITEMS])[0] for model in (packed, floats)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-5)
    texts = [model.generator("titles").write([TextRequest(HISTORY)]) for model in (packed, floats)]
    assert texts[0][0].text == texts[1][0].text
    assert texts[0][0].log_probability == pytest.approx(texts[1][0].log_probability, abs=1e-4)
    vectors = [model.retriever("next").embed_items(ITEMS, "next") for model in (packed, floats)]
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_fewer_bits_take_fewer_bytes(
    run: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.m6rec"
    command = ["compress", "pack", str(run), "--output", str(path), "--bits"]
    assert main([*command, "3"]) == 0
    assert path.stat().st_size < file.stat().st_size
    leaves = flatten(packed_variables(read_archive(path))).values()
    assert {int(np.abs(leaf).max()) for leaf in leaves if leaf.dtype == np.int8} == {3}
    with pytest.raises(SystemExit):
        main([*command, "9"])
    assert "--bits: invalid choice: 9 (choose from 2, 3" in capsys.readouterr().err


def broken(file: Path, folder: Path, kind: str) -> Path:
    path = folder / "broken.m6rec"
    if kind == "another's weights":
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, content[::-1] if name == "values" else content)
    else:
        path.write_text("no archive")
    return path


@pytest.mark.parametrize("kind", ["another's weights", "text"])
def test_what_is_damaged_is_refused(kind: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"broken\.m6rec is (no packed model|damaged)"):
        load_model(broken(file, tmp_path, kind))


def test_a_file_serves_without_its_run(file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.m6rec"
    shutil.copy(file, moved)
    assert load_model(moved).fingerprint("ctr") == load_model(file).fingerprint("ctr")
    assert load_model(moved, step=7).step == 7
    with pytest.raises(CheckpointError, match=r"moved\.m6rec is step 7, not step 6"):
        load_model(moved, step=6)


def test_bytes_of_parameters_are_those_that_are_stored(
    shop_vocabulary: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A frozen backbone may be in bfloat16, though it is loaded as float32; a file is in 8 bits."""
    model, variables = make_model(shop_vocabulary)
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), variables["params"])
    held = {**variables, "params": half}
    run = served_films.write_model(tmp_path / "run", model, held, shop_vocabulary)
    file = pack(run, tmp_path / "model.m6rec")
    for place, kept in ((run, held), (file, packed_variables(read_archive(file)))):
        capsys.readouterr()
        assert main(["params", str(place)]) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        (told,) = (row[5] for row in rows if row[:2] == ["both", "all"])
        assert told == f"{sum(leaf.nbytes for leaf in flatten(kept).values()):,}"


@pytest.fixture(scope="module")
def with_data(run: Path, tmp_path_factory: Any) -> Path:
    """A file that carries the catalogue and the statistics."""
    data = tmp_path_factory.mktemp("data")
    served_films.write_data(data / served_films.PREPARED)
    books = (served_films.BOOKS_SPEC, served_films.BOOKS)
    served_films.write_data(data / served_films.BOOKS_PREPARED, *books)
    path = data / "films.m6rec"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M6REC_DATA_DIR", str(data))
        command = ["compress", "pack", str(run), "--output", str(path), "--catalogue"]
        assert main([*command, "--limits", "writes no plots"]) == 0
    return path


def test_requests_are_answered_by_what_a_file_carries(
    with_data: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "history": [{"item": "f1", "time": 100_000.0, "value": 5}],
        "time": 200_000.0,
        "task": "ctr",
        "user": {"taste": "drama"},
    }
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "nothing is here"))
    carried = load(with_data).score(["f0", "f2"], **asked)
    beside = load(with_data, prepared=with_data.parent / served_films.PREPARED)
    assert carried == beside.score(["f0", "f2"], **asked)
    # A known user is known beside the file, and not in it.
    services = [model.service for model in (load(with_data), beside)]
    statistics = [service.data("ctr").statistics for service in services]
    assert [one.totals.users for one in statistics] == [5, 5]
    assert statistics[0].user("u1").features()["user_count"] is None
    assert statistics[1].user("u1").features()["user_count"] is not None
    about = read_archive(with_data).manifest["about"]
    assert about["limits"] == "writes no plots"
    assert set(about["trained_on"]) == {"films", "books"}


def test_weights_of_the_hybrid_and_what_they_weigh_are_carried(
    with_data: Path, run: Path, monkeypatch: Any, tmp_path: Path
) -> None:
    calibrated = shutil.copytree(run, tmp_path / "run", symlinks=True)
    weights = {
        "step": load_model(run).step,
        "tasks": {"next": {"known": {"similarity": 1.0}, "new": {}}},
    }
    (calibrated / "inference" / "ranking.json").write_text(json.dumps(weights))
    data = shutil.copytree(with_data.parent, tmp_path / "data")
    served_films.write_co_occurrence(data / served_films.PREPARED)
    # The run's own folder of data, as quickstart names one.
    (calibrated / CONFIG_FILE).write_text(f"data_dir.path = {str(data)!r}\n")
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "nothing is here"))
    file = tmp_path / "films.m6rec"
    assert main(["compress", "pack", str(calibrated), "--output", str(file), "--catalogue"]) == 0
    counts = f"data/{served_films.PREPARED}/co_occurrence.npz"
    assert counts in read_archive(file).files
    assert counts not in read_archive(with_data).files
    # Evaluation looks for both beside a checkpoint, and finds what a file carries.
    assert set(read_ranking(file, weights["step"])) == {"next"}
    with own_vocabulary(file):
        found = Path(os.environ[OWN_VOCABULARY_VARIABLE])
        assert found.read_bytes() == (run / "inference" / "vocabulary.model").read_bytes()


@pytest.mark.parametrize("name", ["../evil", "inference/../../evil", "/etc/evil", "data\\..\\evil"])
def test_a_file_writes_nothing_outside_its_folder(name: str, file: Path, tmp_path: Path) -> None:
    packed = read_archive(file)
    hostile = tmp_path / "hostile.m6rec"
    write_archive(hostile, dataclasses.replace(packed, files={**packed.files, name: b"!"}))
    with pytest.raises(CheckpointError, match="which no packed model has"):
        load_model(hostile)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_refused(data: Any, file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.m6rec"
    path.write_bytes(content)
    try:
        found = read_archive(path)
    except CheckpointError as error:
        assert "damaged.m6rec" in str(error)  # noqa: PT017
    else:  # such as a date in the archive's list
        assert found.files == read_archive(file).files

"""`m6rec index segments`: a served model reads what was computed ahead, and says what cannot be."""

import copy
import json
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest

from m6rec_jax import cli
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.serving.build_segments import build_segments
from m6rec_jax.serving.service import Service, ServiceOptions
from tests.engine.tiny_model import make_model
from tests.serving import served_films
from tests.serving.served_films import ITEMS, SPEC, request

PLAIN = copy.deepcopy(SPEC)
PLAIN["template"]["candidate"] = "{title}, {genre}"


@pytest.fixture(scope="module")
def folder(shop_vocabulary: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` with late interaction, `data` of films whose candidates are the same at all times."""
    folder = tmp_path_factory.mktemp("segments")
    model = make_model(shop_vocabulary, late_layers_start=1)
    served_films.write_model(folder / "all", *model, shop_vocabulary)
    served_films.copy_run(folder / "all", folder / "run", ["ctr"], PLAIN)
    served_films.write_data(folder / "data", PLAIN)
    return folder


def test_a_served_model_reads_what_was_computed_ahead(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(folder / "data")
    settings = {"MODEL_DIR": str(folder / "run"), "PREPARED": data, "DTYPE": "float32"}
    bindings = [f"--gin.{name}={value!r}" for name, value in settings.items()]
    command = ["index", "segments", "--output", str(folder / "store"), *bindings]
    assert cli.main(command) == 0
    gin.clear_config()
    assert f"store: {len(ITEMS)} candidates, " in capsys.readouterr().out

    def answered(segments: str | None) -> tuple[np.ndarray, Service]:
        options = ServiceOptions(prepared=data, segments=segments, batch_sizes=(4,))
        service = Service.open(folder / "run", options=options)
        accepted = service.accept(request(1), task="ctr")
        assert isinstance(accepted, Accepted)
        return service.answer([accepted])[0].values["probabilities"], service

    without, _ = answered(None)
    scores, service = answered(str(folder / "store"))
    np.testing.assert_allclose(scores, without, atol=2e-6)
    assert service.model.segments is not None
    assert service.model.segments.candidates.computed == 0
    # Exits change no candidate's states: what was calibrated since reads them, too.
    run = served_films.copy_run(folder / "run", tmp_path / "run", ["ctr"], PLAIN)
    exits = {"step": 7, "tasks": {"ctr": {"threshold": 0.5, "depth": 1}}}
    (run / "inference" / "early_exit.json").write_text(json.dumps(exits))
    calibrated = load_model(run)
    assert calibrated.settings.tasks["ctr"].exits is not None
    calibrated.use_segments(folder / "store")


def test_a_warm_service_computes_segments_with_what_was_compiled(
    folder: Path, tmp_path: Path
) -> None:
    run = served_films.copy_run(folder / "all", tmp_path / "run", ["next"])
    options = ServiceOptions(prepared=str(folder / "data"), batch_sizes=(8,))
    service = Service.open(run, options=options)
    service.warm_up([("next", "embeddings")])
    assert service.model.segments is not None
    compiled = service.model.segments.source._fill._jitted
    number = compiled._cache_size()
    asked = [service.accept(request(n), task="next", job="embeddings") for n in range(8)]
    service.answer([one for one in asked if isinstance(one, Accepted)])
    assert compiled._cache_size() == number


def test_clear_errors(folder: Path, served: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained without late interaction"):
        build_segments(tmp_path / "store", served / "run", task="ctr", progress=False)
    served_films.copy_run(folder / "all", tmp_path / "run", ["ctr"])
    served_films.write_data(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"renders statistics \(item_positive_percent\)"):
        build_segments(
            tmp_path / "store", tmp_path / "run", prepared=str(tmp_path / "data"), progress=False
        )
    with pytest.raises(ConfigError, match="dtype = 'float8' is not one of"):
        build_segments(tmp_path / "store", folder / "run", dtype="float8")
    with pytest.raises(ConfigError, match=r"gs://bucket/store: a store of segments lies on a loc"):
        build_segments("gs://bucket/store", tmp_path / "no model is loaded")
    with pytest.raises(DataError, match="the catalogue is empty"):
        build_segments(tmp_path / "store", folder / "run", prepared="", progress=False)
    with pytest.raises(CheckpointError, match="has no manifest"):
        Service.open(folder / "run", options=ServiceOptions(segments=str(tmp_path)))

"""What a format lacks here is said before an export begins, and by the doctor; precisions."""

import dataclasses
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec_jax import doctor
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.programs.exported_programs import Exported
from m6rec_jax.errors import ConfigError
from m6rec_jax.export import command, held_out
from m6rec_jax.model import M6Rec
from m6rec_jax.serving.build_index import build_index
from tests.engine.tiny_model import make_model
from tests.export.asked import CANDIDATES, HISTORIES
from tests.serving import served_films


def test_the_doctor_and_the_command_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions, find_spec = importlib.metadata.version, importlib.util.find_spec

    def version(name: str) -> str:
        return "0.12.0.1" if name == "jax" else versions(name)

    def find(name: str) -> Any:
        return None if name == "tensorflow_serving" else find_spec(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", find)
    report = doctor.report()
    for format_, missing in (("saved_model", "needs the package tensorflow_serving: pip install"),):
        assert f"  {format_:22} {missing}" in report
        with pytest.raises(ConfigError, match=f"--format {format_} {missing}"):
            command.export(tmp_path, tmp_path / "exported", format_)
    assert f"  {'stablehlo':22} works" in report


def test_the_catalogue_of_an_index_lies_where_gin_says(
    served: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared = str(served / "cache" / served_films.PREPARED)
    index = tmp_path / "index"
    build_index(index, served / "run", task="next", prepared=prepared, progress=False)
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path))
    found = []

    def opened(*arguments: Any) -> None:
        found.append(open_catalogue(*arguments))
        raise KeyboardInterrupt

    open_catalogue = held_out.open_catalogue
    monkeypatch.setattr(held_out, "open_catalogue", opened)
    monkeypatch.setattr(command, "what_is_missing", lambda _: "")
    with pytest.raises(KeyboardInterrupt):
        command.export(
            served / "run",
            tmp_path / "exported",
            "saved_model",
            index=index,
            bindings=[f"data_dir.path = '{served / 'cache'}'"],
        )
    assert found[0].titles == [item.attributes["title"] for item in served_films.ITEMS]
    assert found[0].vectors.shape[0] == len(served_films.ITEMS)


def test_a_model_of_bfloat16_is_exported_in_float32(
    shop_vocabulary: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = make_model(shop_vocabulary, matmul_dtype="bfloat16")
    whole = served_films.write_model(tmp_path / "whole", *made, shop_vocabulary)
    run = served_films.copy_run(whole, tmp_path / "run", ["ctr"])
    rows = [
        {"history": history, "candidates": texts}
        for history, texts in zip(HISTORIES, CANDIDATES, strict=True)
    ]

    def ask(model: Any, task: str, recorder: Any, **_: Any) -> list[held_out.Answered]:
        return held_out.answer(model, task, "scoring", rows, recorder)

    monkeypatch.setattr(held_out, "ask", ask)
    folder = tmp_path / "exported"
    results = command.export(run, folder, platforms=("cpu",), precision="float32")
    assert results["score"]["largest_difference"] < 1e-5
    manifest = json.loads((folder / "export.json").read_text())
    assert (manifest["precision"], manifest["tolerance"]) == ("float32", 1e-4)
    assert manifest["sizes"] == {one: (folder / one).stat().st_size for one in manifest["files"]}
    # It is the one that was checked: what bfloat16 rounds off is more.
    model = load_model(run)
    rounded = model.scorer("ctr").score_requests(HISTORIES, CANDIDATES)
    wide = M6Rec(model.model.config.replace(matmul_dtype=None))
    model = dataclasses.replace(model, model=wide)
    exact = model.scorer("ctr").score_requests(HISTORIES, CANDIDATES)
    assert max(np.abs(a - b).max() for a, b in zip(rounded, exact, strict=True)) > 1e-4
    held = np.concatenate([call["values"].ravel() for *_, call in Exported(folder).held_out()])
    for score in np.concatenate(exact):
        assert np.abs(held - score).min() < 1e-6


@pytest.mark.parametrize(
    ("format_", "given", "said"),
    [
        (
            "litert",
            {"platforms": ("cpu",)},
            "--platforms is for --format stablehlo and saved_model",
        ),
        ("saved_model", {"num_beams": 2}, "--beams is for --format stablehlo"),
        ("stablehlo", {"runtime": "x"}, "--runtime is for --format web"),
        ("stablehlo", {"rows": 0}, "--rows 0: an export is checked with one row at least"),
    ],
)
def test_what_a_format_has_no_use_for(
    format_: str, given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        command.export(tmp_path, tmp_path / "exported", format_, **given)


@pytest.mark.parametrize("format_", ["stablehlo", "saved_model"])
def test_bytes_are_for_devices(format_: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"int8 is for litert and web; --format {format_} takes"):
        command.export(tmp_path, tmp_path / "exported", format_, precision="int8")

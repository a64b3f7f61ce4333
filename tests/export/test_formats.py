"""What a format lacks here is said before an export begins, and by the doctor."""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import gin
import pytest

from m6rec_jax import doctor
from m6rec_jax.errors import ConfigError
from m6rec_jax.export import command, held_out
from m6rec_jax.serving.build_index import build_index
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
    for format_, missing in (
        ("saved_model", "needs the package tensorflow_serving: pip install"),
        ("onnx", "needs jax below 0.11 for its converter, jax2onnx, not 0.12.0.1"),
    ):
        assert f"  {format_:22} {missing}" in report
        with pytest.raises(ConfigError, match=f"--format {format_} {missing}"):
            command.export(tmp_path, tmp_path / "exported", format_)
    assert f"  {'stablehlo':22} works" in report


def test_the_catalogue_of_an_index_lies_where_gin_says(
    served: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared = str(served / "cache" / served_films.PREPARED)
    index = tmp_path / "index"
    gin.parse_config("CatalogueIndex.items_per_step = 5")
    build_index(index, served / "run", task="next", prepared=prepared, part_items=5, progress=False)
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

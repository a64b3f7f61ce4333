"""An index on disk: what is in it, and who may open it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec_jax.engine import computed_folder
from m6rec_jax.engine.index.catalogue_index import NO_ITEM
from m6rec_jax.engine.index.index_files import open_index, write_index
from m6rec_jax.errors import CheckpointError, DataError

TEXTS = {f"id {n}": f"text {n}" for n in range(23)}
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(23, 8)).astype(np.float32)
USERS = RNG.normal(size=(5, 8)).astype(np.float32)


def embed(texts: Any) -> np.ndarray:
    return VECTORS[[int(text.split()[1]) for text in texts]]


def build(folder: Path, texts: dict[str, str] = TEXTS, **changes: Any) -> Any:
    settings = {"model": "a", "task": "next", "dim": 8, "progress": False} | changes
    return write_index(folder, texts, settings.pop("embed", embed), **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path / "index")
    return tmp_path / "index"


def test_ids_and_vectors_are_those_written(folder: Path) -> None:
    index = open_index(folder, "a")
    assert (index.manifest.task, index.manifest.shape) == ("next", [23, 8])
    assert list(index.ids) == list(TEXTS)
    assert index.places_of(["id 3", "not in the catalogue", "id 1"]).tolist() == [3, 1]
    np.testing.assert_array_equal(index.search.embeddings, VECTORS)


def test_similarities_of_items_that_are_named(folder: Path) -> None:
    ids = RNG.integers(-1, 23, (5, 9))
    assert (ids == NO_ITEM).any()
    expected = np.where(ids < 0, -np.inf, np.einsum("ur,ukr->uk", USERS, VECTORS[ids]))
    here = open_index(folder, "a").search.similarities(USERS, ids)
    np.testing.assert_allclose(here, expected, atol=1e-5)


def test_only_the_model_that_built_it_may_open_it(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="was computed by another model"):
        open_index(folder, "b")


def test_the_same_build_again_does_nothing_and_another_is_refused(folder: Path) -> None:
    before = (folder / "manifest.json").read_text()
    build(folder, embed=None)
    assert (folder / "manifest.json").read_text() == before
    with pytest.raises(DataError, match="by another model or of another"):
        build(folder, model="b")
    with pytest.raises(DataError, match="another catalogue"):
        build(folder, TEXTS | {"id 1": "new words"})


def test_an_empty_folder_is_as_good_as_new(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    build(tmp_path / "index")
    open_index(tmp_path / "index", "a")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for folder in (other, other / "notes.txt"):
        with pytest.raises(CheckpointError, match="exists already"):
            build(folder)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_killed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computed_folder, "BLOCK", 5)
    asked: list[str] = []

    def dies(texts: Any) -> np.ndarray:
        asked.extend(texts)
        if len(asked) > 12:
            raise KeyboardInterrupt
        return embed(texts)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "index", embed=dies)
    assert not list(tmp_path.iterdir())
    build(tmp_path / "index")
    np.testing.assert_array_equal(np.load(tmp_path / "index" / "embeddings.npy"), VECTORS)
    open_index(tmp_path / "index", "a")


def test_damage_and_absence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no manifest"):
        open_index(tmp_path, "a")
    content = bytearray((folder / "embeddings.npy").read_bytes())
    content[-1] ^= 1
    (folder / "embeddings.npy").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"embeddings\.npy is missing or damaged"):
        open_index(folder, "a")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        open_index(folder, "a")

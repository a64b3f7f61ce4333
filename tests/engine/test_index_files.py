"""An index on disk: what is in it, and who may open it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec_jax.engine import computed_folder
from m6rec_jax.engine.index.catalogue_index import NO_ITEM
from m6rec_jax.engine.index.index_files import StoredIndex, open_index, write_index
from m6rec_jax.errors import CheckpointError, DataError
from m6rec_jax.sharding import make_mesh

TEXTS = {f"id {n}": f"text {n}" for n in range(23)}
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(23, 8)).astype(np.float32)
USERS = RNG.normal(size=(5, 8)).astype(np.float32)


def embed(texts: Any) -> np.ndarray:
    return VECTORS[[int(text.split()[1]) for text in texts]]


def build(folder: Path, texts: dict[str, str] = TEXTS, **changes: Any) -> Any:
    settings = {"model": "a", "task": "next", "dim": 8, "progress": False} | changes
    return write_index(folder, texts, settings.pop("embed", embed), **settings)


def lists(index: StoredIndex, k: int, seen: list[list[str]]) -> list[tuple[list[str], np.ndarray]]:
    """Ids and scores of each user, without the fillers; in batches of two, the last one padded."""
    top = index.search.top_k(USERS, k, [*map(index.places_of, seen)], (2,))
    found = []
    for items, scores in zip(top.ids, top.scores, strict=True):
        left = items >= 0
        found.append(([index.ids[item] for item in items[left]], scores[left]))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize("meshed", [False, True])
def test_ids_and_scores_without_what_was_seen(folder: Path, meshed: bool) -> None:
    index = open_index(folder, "a", mesh=make_mesh() if meshed else None)
    assert (index.manifest.task, index.manifest.shape) == ("next", [23, 8])
    scores = USERS @ VECTORS.T
    seen = [["id 3", "not in the catalogue"], [], ["id 1"] * 3, list(TEXTS)[:21], list(TEXTS)]
    found = lists(index, 4, seen)
    for user, (ids, values) in enumerate(found):
        left = [n for n in range(23) if f"id {n}" not in seen[user]]
        order = sorted(left, key=lambda n: -scores[user, n])[:4]
        assert ids == [f"id {n}" for n in order]
        np.testing.assert_allclose(values, scores[user, order], atol=1e-6)
    assert [len(ids) for ids, _ in found] == [4, 4, 4, 2, 0]


@pytest.mark.parametrize("meshed", [False, True])
def test_similarities_of_items_that_are_named(tmp_path: Path, meshed: bool) -> None:
    build(tmp_path / "index")
    mesh = make_mesh() if meshed else None
    ids = RNG.integers(-1, 23, (5, 9))
    assert (ids == NO_ITEM).any()
    expected = np.where(ids < 0, -np.inf, np.einsum("ur,ukr->uk", USERS, VECTORS[ids]))
    here = open_index(tmp_path / "index", "a", mesh=mesh).search.similarities(USERS, ids)
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

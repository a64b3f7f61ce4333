"""Fixtures of a served model: the tiny shop's films, a folder to load, requests answered; gin."""

import functools

import gin
import pytest
from etils import epath

from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.serving import batch_inference, service
from tests.engine.tiny_model import make_model
from tests.pipeline import shop_rows
from tests.serving import served_films


@pytest.fixture
def no_gin():
    """Leaves no setting behind: gin's become defaults of all that is made later."""
    yield
    gin.clear_config()


@pytest.fixture(scope="session")
def shop_vocabulary(tmp_path_factory):
    return shop_rows.make_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="session")
def tiny(shop_vocabulary):
    """(model, variables, vocabulary)"""
    return (*make_model(shop_vocabulary), shop_vocabulary)


@pytest.fixture(scope="session")
def served(tiny, tmp_path_factory):
    """A folder with the model `run`, and `cache` with the data that it was trained on."""
    folder = tmp_path_factory.mktemp("served")
    served_films.write_model(folder / "run", *tiny)
    served_films.write_data(folder / "cache" / served_films.PREPARED)
    books = (served_films.BOOKS_SPEC, served_films.BOOKS)
    served_films.write_data(folder / "cache" / served_films.BOOKS_PREPARED, *books)
    return folder


@pytest.fixture(scope="session")
def served_model(served):
    return load_model(served / "run")


@pytest.fixture
def infer(served, tmp_path, monkeypatch):
    """Answers requests for a task of `run`: (rows with results, rejected rows)."""
    monkeypatch.setenv("M6REC_DATA_DIR", str(served / "cache"))

    def run(rows, task, name="out", **changes):
        requests = served_films.write_rows(tmp_path / f"{name}.requests.jsonl", rows)
        output = tmp_path / f"{name}.jsonl"
        settings = {"task": task, "batch_size": 4, "chunk_size": 10, "progress": False}
        settings |= {"model_dir": served / "run"} | changes
        # The model is the same in all tests, and loading it most of their time.
        monkeypatch.setattr(service, "load_with_bank", lambda path, step, **_: _load(path, step))
        batch_inference.infer_requests(requests, output, **settings)
        rejected = output.with_name(f"{name}.rejected.jsonl")
        return served_films.read_rows(output), served_films.read_rows(rejected)

    return run


@functools.cache
def _load(path, step):
    return load_model(path, step=step)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that stands for gs://bucket."""
    folder = tmp_path / "buckets"
    backend = _FolderAsBucket(folder)
    monkeypatch.setattr(epath.gpath.PosixGPath, "_backend", property(lambda path: backend))
    return folder / "bucket"


class _FolderAsBucket(epath.backend._OsPathBackend):
    """Of etils: what paths do, with local files for those of buckets."""

    def __init__(self, folder):
        self._folder = f"{folder}/"

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found):
            return found
        return lambda *paths, **rest: found(*map(self._local, paths), **rest)

    def _local(self, path):
        return path.replace("gs://", self._folder) if isinstance(path, str) else path

"""A tiny random model over the tiny shop's vocabulary, and a folder that it is served from."""

import functools

import jax
import pytest

from m6rec_jax.inference import batch_inference
from m6rec_jax.inference.bundle import load_model
from m6rec_jax.model import M6Rec, ModelConfig, PromptConfig
from m6rec_jax.model.m6rec import initial_features
from tests.inference import served_films
from tests.pipeline import shop_rows


def make_model(vocabulary, **changes):
    prompts = PromptConfig(
        num_prompts=4,
        num_options=3,
        head="option",
        adapter_rank=2,
        retrieval_dim=16,
        num_tasks=2,
        special_token_ids=vocabulary.special_ids,
    )
    config = ModelConfig(
        vocab_size=vocabulary.size,
        embed_dim=32,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        head_dim=16,
        mlp_dim=64,
        prompts=prompts,
        **changes,
    )
    model = M6Rec(config)
    key = jax.random.key(0)
    variables = jax.jit(model.init)({"params": key, "prompts": key}, initial_features())
    from flax import linen as nn

    return model, nn.meta.unbox(variables)


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
def served_bundle(served):
    return load_model(served / "run")


@pytest.fixture
def infer(served, tmp_path, monkeypatch):
    """Answers requests for a task of `run`: (rows with results, rejected rows)."""
    monkeypatch.setenv("M6REC_DATA_DIR", str(served / "cache"))

    def run(rows, task, name="out", **changes):
        requests = served_films.write_rows(tmp_path / f"{name}.requests.jsonl", rows)
        output = tmp_path / f"{name}.jsonl"
        settings = {"task": task, "batch_size": 4, "chunk_size": 10, "progress": False}
        # The model is the same in all tests, and loading it most of their time.
        load = lambda path, step, **_: _load(path, step)  # noqa: E731
        settings |= {"model_dir": served / "run", "load": load} | changes
        batch_inference.infer_requests(requests, output, **settings)
        rejected = output.with_name(f"{name}.rejected.jsonl")
        return served_films.read_rows(output), served_films.read_rows(rejected)

    return run


@functools.cache
def _load(path, step):
    return load_model(path, step=step)

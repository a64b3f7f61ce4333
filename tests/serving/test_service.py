"""The service: batches of unlike tasks, threads, warm-up, reranking, nearest names."""

import concurrent.futures
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from m6rec_jax.bank.export import add_prompts
from m6rec_jax.engine.candidates.rows import pack_texts
from m6rec_jax.engine.index import catalogue_index
from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.jobs.resources import ServiceOptions
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.serving.service import Service
from tests.engine.programs import num_traced
from tests.serving import served_films
from tests.serving.served_films import ITEMS, request

# One shape: what is asked alone and together runs the same program, up to the order of sums.
SAME = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module")
def folder(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two tasks of scoring, its data with co-occurrence, a bank and an index."""
    folder = tmp_path_factory.mktemp("service")
    run = served_films.copy_run(served / "run", folder / "run", ["ctr", "next", "titles"])
    settings = json.loads((run / "inference" / "settings.json").read_text())
    ctr = settings["tasks"]["ctr"]
    settings["tasks"]["stars"] = ctr | {"task_id": 1, "positive_classes": [2]}
    (run / "inference" / "settings.json").write_text(json.dumps(settings))
    data = served_films.write_data(folder / "data")
    served_films.write_co_occurrence(data)
    add_prompts(folder / "bank", run)
    build_index(folder / "index", run, bank=str(folder / "bank"), task="next", prepared=str(data))
    return folder


def options(folder: Path, **changes: Any) -> ServiceOptions:
    shapes: dict[str, Any] = {"prepared": str(folder / "data"), "index": str(folder / "index")}
    return ServiceOptions(**(shapes | {"batch_sizes": (8,)} | changes))


@pytest.fixture(scope="module")
def service(folder: Path) -> Service:
    """Serves the bank's four tasks."""
    return Service.open(folder / "run", bank=folder / "bank", options=options(folder))


def accept(service: Service, number: int, task: str, **asked: Any) -> Accepted:
    accepted = service.accept(request(number), task=task, number=number, **asked)
    assert isinstance(accepted, Accepted)
    return accepted


def numbers(result: Any) -> list[Any]:
    """All columns of a result, texts and numbers."""
    return [np.asarray(values).tolist() for values in result.values.values()]


def assert_same(found: Any, expected: Any) -> None:
    for a, b in zip(numbers(found), numbers(expected), strict=True):
        if a and isinstance(a[0], str):
            assert a == b
        else:
            np.testing.assert_allclose(a, b, **SAME)


def test_one_batch_mixes_tasks_and_jobs(service: Service) -> None:
    asked = [
        accept(service, number, task)
        for number, task in enumerate(["ctr", "stars", "next", "ctr", "titles", "stars", "next"])
    ]
    asked.append(accept(service, 7, "next", job="reranking"))
    together = service.answer(asked)
    for one, found in zip(asked, together, strict=True):
        (alone,) = service.answer([one])
        assert_same(found, alone)
    # The tasks do differ.
    ctr, stars = (service.answer([accept(service, 1, t)])[0] for t in ("ctr", "stars"))
    assert not np.allclose(ctr.values["probabilities"], stars.values["probabilities"], atol=1e-3)


def test_scores_do_not_depend_on_the_order_of_candidates(service: Service) -> None:
    """A candidate sees the history and itself, whichever others stand in its row."""
    row = request(3) | {"candidates": [item.id for item in ITEMS]}
    asked = service.accept(row, task="ctr")
    assert isinstance(asked, Accepted)
    texts, length = asked.text.candidates, service.model.settings.target_length
    packed = pack_texts(service.model.vocabulary, texts, length, length)
    assert 1 < len(packed.rows) <= len(texts) / 2  # several rows, several candidates in each
    expected = service.answer([asked])[0].values["probabilities"]
    # Farther apart than sums in another order: the ranks are the model's.
    assert np.diff(np.sort(expected)).min() > 2 * SAME["atol"]
    rng = np.random.default_rng(0)
    for _ in range(100):
        order = rng.permutation(len(ITEMS))
        shuffled = row | {"candidates": [ITEMS[index].id for index in order]}
        found = service.answer([service.accept(shuffled, task="ctr")])[0].values["probabilities"]
        np.testing.assert_allclose(found, expected[order], **SAME)
        assert kendalltau(found, expected[order]).statistic == pytest.approx(1.0)


def test_short_histories_have_a_program_of_their_own(service: Service, folder: Path) -> None:
    """Which costs less, and gives the same scores."""
    buckets = (32, service.model.settings.source_length)
    own = Service.open(folder / "run", options=options(folder, source_buckets=buckets))
    rows = [request(1) | {"candidates": ["f1", "f2"]} for _ in range(2)]
    rows[0] |= {"history": [], "user": {"taste": "comedy"}}
    for row in rows:
        asked = [one.accept(row, task="ctr") for one in (own, service)]
        found, expected = (s.answer([a])[0] for s, a in zip((own, service), asked, strict=True))
        np.testing.assert_allclose(
            found.values["probabilities"], expected.values["probabilities"], atol=2e-5
        )


def test_threads_get_the_answers_of_one_after_the_other(folder: Path) -> None:
    """And nothing is compiled once the service is warm, whatever the requests' sizes."""
    service = Service.open(
        folder / "run", bank=folder / "bank", options=options(folder, batch_sizes=(1, 8))
    )
    service.warm_up()
    programs = num_traced(), catalogue_index._top_k._cache_size()
    asked = [accept(service, n, ("ctr", "next", "stars", "titles")[n % 4]) for n in range(24)]
    batches = [asked[n : n + 1 + n % 5] for n in range(0, 24, 3)]
    expected = [service.answer(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(service.answer, batches * 2))
    for results, others in zip(found, expected * 2, strict=True):
        for result, other in zip(results, others, strict=True):
            assert_same(result, other)
    assert (num_traced(), catalogue_index._top_k._cache_size()) == programs


def test_a_request_that_cannot_be_answered_is_returned_with_the_reason(service: Service) -> None:
    problem = service.accept(request(1) | {"time": "then"}, task="ctr")
    assert isinstance(problem, RejectedRow)
    assert problem.kind == "bad_time"
    unknown = service.accept(request(1) | {"candidates": ["f99"]}, task="ctr")
    assert isinstance(unknown, RejectedRow)
    assert "'candidates[0]' is 'f99', which the catalogue does not have" in str(unknown)


def test_names_that_nobody_has(service: Service, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no task 'cttr' \(did you mean 'ctr'\?\): ctr, next"):
        service.accept(request(1), task="cttr")
    with pytest.raises(ConfigError, match=r"not by 'retreival' \(did you mean 'retrieval'\?\)"):
        service.accept(request(1), task="next", job="retreival")
    with pytest.raises(ConfigError, match=r"2 of the model's tasks .* name one of them: ctr, sta"):
        service.accept(request(1), job="scoring")
    with pytest.raises(ConfigError, match=r"'next'.* has no classes"):
        service.accept(request(1), task="next", job="scoring")
    without = Service(service.model, options(folder, index=None))
    with pytest.raises(ConfigError, match="'next' needs an index of the catalogue: make one with"):
        without.accept(request(1), task="next")
    nobody = {"index": {"nxet": str(folder / "index")}}
    with pytest.raises(ConfigError, match=r"an index is named for 'nxet' \(did you mean 'next'"):
        Service(service.model, options(folder, **nobody))
    with pytest.raises(ConfigError, match="an index is named for 'nxet'"):
        service.changed(data=nobody)
    none = Service(service.model, options(folder, batch_sizes=(8, 0)))
    with pytest.raises(ConfigError, match=r"batch sizes \[0, 8\] must be at least 1"):
        none.warm_up()

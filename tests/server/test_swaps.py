"""Prompts and data change while requests come; none is dropped, and none is mixed."""

import concurrent.futures
import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fastapi.testclient import TestClient

from m6rec_jax.bank.export import add_prompts
from m6rec_jax.bank.folder import BankFolder
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.engine.model_folder import restore_model
from m6rec_jax.server.access import Tokens
from m6rec_jax.server.app import make_app
from m6rec_jax.server.metrics import PROGRAMS
from m6rec_jax.server.snapshots import Server
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.serving.service import Service
from tests.server import served
from tests.server.served import request
from tests.server.test_routes import failed, post
from tests.serving import served_films
from tests.serving.served_films import ITEMS

ADMIN = {"Authorization": "Bearer " + "a" * 20}
WAIT = 60


@pytest.fixture(scope="module")
def own_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may change, and `other`: a run with the same backbone and other prompts."""
    own = shutil.copytree(folder, tmp_path_factory.mktemp("swaps") / "own", symlinks=True)
    other = shutil.copytree(own / "run", own / "other", symlinks=True)
    shutil.rmtree(other / "checkpoints")
    restored = restore_model(own / "run")
    prompts = jax.tree.map(lambda leaf: leaf * 1.5 + 0.1, restored.variables["prompts"])
    vocabulary = served.open_service(own, index=None).model.vocabulary
    run = RunDescription(restored.model.config, vocabulary.fingerprint, "prompts", 4)
    with CheckpointStore(other / "checkpoints") as store:
        variables = {"params": restored.variables["params"], "prompts": prompts}
        store.save(9, variables, data={}, run=run, frozen=("params",))
    return own


@pytest.fixture(scope="module")
def swapped(own_folder: Path) -> Iterator[tuple[Server, TestClient]]:
    service = served.open_service(own_folder)
    server = served.make_server(service)
    app = make_app(server, Tokens(admin="a" * 20))
    yield server, TestClient(app, raise_server_exceptions=False)
    server.scheduler.close(10)


def put(client: TestClient, path: str, body: Any) -> Any:
    response = client.put(f"/v1/admin/{path}", json=body, headers=ADMIN)
    assert response.status_code == 200, response.text
    return response.json()


def replace(folder: Path, run: str, task: str) -> None:
    """Puts the task of another run into the bank's folder."""
    BankFolder(folder / "bank").remove(task)
    add_prompts(folder / "bank", folder / run, tasks=[task])


def probabilities(service: Service, task: str) -> np.ndarray:
    accepted: Any = service.accept(request(3), task=task)
    (found,) = service.answer([accepted])
    values: np.ndarray = found.values["probabilities"]
    return values


def test_replaced_under_load(swapped: tuple[Server, TestClient], own_folder: Path) -> None:
    """Every answer is wholly of the prompts that it names."""
    server, client = swapped
    of: dict[str, np.ndarray] = {}
    for run in ("run", "other"):
        replace(own_folder, run, "ctr")
        own = served.open_service(own_folder, index=None)
        of[own.model.fingerprint("ctr")] = probabilities(own, "ctr")
    assert len(of) == 2
    put(client, "prompts/ctr", {})
    version, programs = server.current.version, PROGRAMS.made
    stop, answered = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            answered.append(post(client, "/v1/score", request(3) | {"task": "ctr"}))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load) for _ in range(3)]
        for swap in range(6):
            replace(own_folder, ("run", "other")[swap % 2], "ctr")
            assert put(client, "prompts/ctr", {})["snapshot"] == version + swap + 1
        stop.set()
        for one in loads:
            one.result(WAIT)
    seen = {found["prompts"] for found in answered}
    assert seen == set(of)
    for found in answered:
        scores = [item["score"] for item in found["items"]]
        np.testing.assert_allclose(scores, of[found["prompts"]], atol=2e-5)
    assert len({found["snapshot"] for found in answered}) > 2
    assert PROGRAMS.made == programs


def memory() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("swaps", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_swaps_under_load_hold_one_snapshot(
    swapped: tuple[Server, TestClient], own_folder: Path, swaps: int
) -> None:
    """What was replaced leaves nothing behind, on the devices or the host."""
    server, client = swapped
    body = request(3) | {"task": "ctr"}
    stop = threading.Event()

    def load() -> int:
        answered = 0
        while not stop.is_set():
            answered += bool(post(client, "/v1/score", body))
        return answered

    def swap(number: int) -> list[weakref.ref[Service]]:
        gone = []
        for _ in range(number):
            gone.append(weakref.ref(server.current.service))
            put(client, "prompts/ctr", {})
        return gone

    post(client, "/v1/score", body)
    put(client, "prompts/ctr", {})
    gc.collect()
    arrays = len(jax.live_arrays())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(load) for _ in range(2)]
        try:
            gone = swap(swaps // 10)
            before = memory()
            gone += swap(swaps - len(gone))
            grown = memory() - before
        finally:
            stop.set()
        answered = sum(one.result(WAIT) for one in loads)
    gc.collect()
    assert not any(service() for service in gone)
    assert len(jax.live_arrays()) <= arrays
    assert answered > swaps
    print(f"{swaps} swaps, {answered} answers, {grown / 2**20:.1f} MiB more")
    assert grown < 64 * 2**20


def test_who_asked_before_is_answered_by_what_was_there(
    swapped: tuple[Server, TestClient], own_folder: Path
) -> None:
    server, client = swapped
    old = server.current
    expected = probabilities(old.service, "stars")
    begun, go = threading.Event(), threading.Event()
    server.scheduler.call_together(lambda _: [begun.set() or go.wait(WAIT)], None, (1,))
    assert begun.wait(WAIT)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, client, "/v1/score", request(3) | {"task": "stars"})
        while not server.scheduler.depth:
            pass
        response = client.delete("/v1/admin/prompts/stars", headers=ADMIN)
        assert response.status_code == 200
        assert "stars" not in response.json()["tasks"]
        assert failed(client, "/v1/score", request(3) | {"task": "stars"})[0] == 404
        go.set()
        found = waiting.result(WAIT)
    assert found["snapshot"] == old.version
    scores = [item["score"] for item in found["items"]]
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    # And it can come back.
    put(client, "prompts/stars", {})
    found = post(client, "/v1/score", request(3) | {"task": "stars"})
    np.testing.assert_allclose([i["score"] for i in found["items"]], expected, atol=2e-6)


def test_new_data_and_an_index_of_them(
    swapped: tuple[Server, TestClient], own_folder: Path
) -> None:
    _, client = swapped
    new = served_films.Item("f12", {"title": "Film M", "genre": "drama"})
    data = served_films.write_data(own_folder / "newer", items=[*ITEMS, new])
    manifest = json.loads((data / "prepare.json").read_text())
    (data / "prepare.json").write_text(json.dumps(manifest | {"counts": {"items": 13}}))
    bank = str(own_folder / "bank")
    index = own_folder / "newer.index"
    build_index(index, own_folder / "run", bank=bank, task="next", prepared=str(data))
    asked = request(3) | {"task": "ctr", "candidates": ["f12"]}
    assert failed(client, "/v1/score", asked)[1] == "unknown_item"
    before = post(client, "/v1/score", request(3) | {"task": "ctr"})
    body = {"prepared": str(data), "index": str(index)}
    response = client.put("/v1/admin/data", json=body, headers=ADMIN)
    assert response.status_code == 409
    assert "nobody could ask 'next' for reranking" in response.json()["error"]["message"]
    served_films.write_co_occurrence(data, 13)
    changed = put(client, "data", body | {"items": None})
    found = post(client, "/v1/score", asked)
    assert found["items"][0]["title"] == "Film M"
    assert found["data"] != before["data"]
    assert found["prompts"] == before["prompts"]
    assert found["snapshot"] == changed["snapshot"]
    everything = post(client, "/v1/retrieve", {"user": {"taste": "drama"}, "k": 50})
    assert {item["id"] for item in everything["items"]} == {item.id for item in [*ITEMS, new]}


def test_what_does_not_fit_changes_nothing(
    swapped: tuple[Server, TestClient], own_folder: Path
) -> None:
    server, client = swapped
    before = server.current
    for path, body, said in (
        ("prompts/nothing", {}, "nothing"),
        ("data", {"prepared": "/nowhere"}, "/nowhere holds no prepared data"),
        ("data", {"index": str(own_folder / "data")}, "data"),
        ("data", {"items": "/nowhere/items.csv"}, "items.csv"),
        ("data", {"items": "a" * 5000}, "name too long"),
        ("data", {"index": "a\0b"}, ""),
        ("prompts/ctr", {"index": "/nowhere"}, "an index is named for 'ctr' (of kind 'scoring')"),
    ):
        response = client.put(f"/v1/admin/{path}", json=body, headers=ADMIN)
        assert response.status_code == 409, response.text
        assert said in response.json()["error"]["message"]
    # The index of `next` is of its prompts.
    replace(own_folder, "other", "next")
    response = client.put("/v1/admin/prompts/next", json={}, headers=ADMIN)
    assert response.status_code == 409
    assert client.delete("/v1/admin/prompts/nothing", headers=ADMIN).status_code == 404
    assert server.current is before
    # With its own it may come.
    index, prepared = own_folder / "other.index", str(own_folder / "newer")
    bank = str(own_folder / "bank")
    build_index(index, own_folder / "run", bank=bank, task="next", prepared=prepared)
    put(client, "prompts/next", {"index": str(index)})
    assert post(client, "/v1/retrieve", {"user": {"taste": "drama"}, "k": 1})["items"]
    # Also when a task that an index was named for is gone.
    assert client.delete("/v1/admin/prompts/stars", headers=ADMIN).status_code == 200
    put(client, "prompts/next", {"index": str(index)})
    put(client, "prompts/stars", {})


def test_a_swap_of_prompts_keeps_data_and_takes_nothing_from_other_tasks(
    swapped: tuple[Server, TestClient], own_folder: Path
) -> None:
    server, client = swapped
    before = server.current
    resources = before.service
    index = own_folder / "again.index"
    bank, prepared = str(own_folder / "bank"), str(resources.data("next").folder)
    build_index(index, own_folder / "run", bank=bank, task="next", prepared=prepared)
    # What is prepared may change on disk at any time, and is read anew by `PUT data` alone.
    counted = Path(prepared) / "co_occurrence.npz"
    counted.rename(own_folder / "away.npz")
    put(client, "prompts/ctr", {})
    put(client, "prompts/next", {"index": str(index)})
    known = server.current.service.index("next")
    put(client, "prompts/next", {"index": str(index)})
    (own_folder / "away.npz").rename(counted)
    new = server.current
    assert new.jobs("next") == before.jobs("next")
    assert "reranking" in new.jobs("next")
    assert new.service.data("next") is resources.data("next")
    assert new.service.index("next") is not known  # it may have been built anew


def test_a_run_without_a_bank_stays_as_it_is(own_folder: Path) -> None:
    service = Service.open(own_folder / "run", options=None)
    own = served.make_server(None)

    class Fixed:
        version = 1

    fixed: Any = Fixed()
    fixed.service = service
    own._current = fixed
    client = TestClient(make_app(own, Tokens(admin="a" * 20)))
    response = client.put("/v1/admin/prompts/ctr", json={}, headers=ADMIN)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "no_bank")
    own.scheduler.close()

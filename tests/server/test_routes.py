"""Routes give what `Service.answer` gives, and say what answered."""

import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import export
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.server.app import make_app
from m6rec_jax.server.metrics import PROGRAMS
from m6rec_jax.server.snapshots import Server, Snapshot
from m6rec_jax.serving.service import Service, ServiceOptions
from tests.engine.programs import num_traced
from tests.server import served as served_folder
from tests.server.served import request
from tests.serving import served_films

# Alone and together the same program runs, up to the order of sums.
SAME = 2e-6


def answer(service: Service, row: Any, task: str, job: str | None = None) -> Any:
    accepted = service.accept(row, task=task, job=job)
    assert isinstance(accepted, Accepted), accepted
    return service.answer([accepted])[0]


def fields_of(path: str, body: Any) -> Any:
    """A row as `request` has it, without candidates where a route finds them."""
    finds = path in ("/v1/retrieve", "/v1/recommend")
    return {k: v for k, v in body.items() if k != "candidates"} if finds else body


def post(client: TestClient, path: str, body: Any, **more: Any) -> Any:
    response = client.post(path, json=fields_of(path, body), **more)
    assert response.status_code == 200, response.text
    return response.json()


def failed(client: TestClient, path: str, body: Any, **more: Any) -> tuple[int, str, Any]:
    """Status, code and field of an error."""
    response = client.post(path, json=fields_of(path, body), **more)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"], error["param"]


def assert_items(found: list[Any], expected: Any) -> None:
    assert [(item["id"], item["title"]) for item in found] == [
        (item.id, item.title) for item in expected.items
    ]
    scores = [item.score for item in expected.items]
    np.testing.assert_allclose([item["score"] for item in found], scores, atol=SAME)


def test_scores(client: TestClient, service: Service) -> None:
    for task, job in (("ctr", "scoring"), ("stars", "scoring"), ("plausible", "likelihood")):
        found = post(client, "/v1/score", request(3) | {"task": task})
        assert_items(found["items"], answer(service, request(3), task))
        assert (found["task"], found["job"], found["snapshot"]) == (task, job, 1)
        assert found["prompts"] == service.model.fingerprint(task)
        assert found["data"] == service.data(task).fingerprint
    data = [service.data(task, any_data_set=True) for task in ("ctr", "stars", "next")]
    assert data[0] is data[1] is data[2]
    zero_shot = post(client, "/v1/score", request(3) | {"task": "ctr", "job": "likelihood"})
    assert_items(zero_shot["items"], answer(service, request(3), "ctr", "likelihood"))


def test_likelihood_is_asked_of_a_model_without_scorers(
    served: Path, folder: Path, tmp_path: Path
) -> None:
    run = served_films.copy_run(served / "run", tmp_path / "run", ["letters"])
    options = ServiceOptions(prepared=str(folder / "data"), batch_sizes=(1,))
    service = Service.open(run, options=options)
    snapshot = Snapshot(service, 1, ["likelihood"])
    traced = num_traced()
    (found,) = service.answer([snapshot.accept(request(3), "letters", "likelihood")])
    assert len(found.values["probabilities"]) == len(request(3)["candidates"])
    assert num_traced() == traced


def test_reranks_items_of_a_user_as_it_scores_them(client: TestClient) -> None:
    """What a request says of its user and the moment stands in candidates' texts, too."""
    row = request(3) | {"statistics": {"item_positive_percent": 77}}
    items = [{"id": "f3"}, {"title": "Film X", "genre": "drama"}]
    scored = post(client, "/v1/score", row | {"task": "ctr", "candidates": items})
    body = {"model": "ctr", "query": row, "documents": [items[0], "Film A, drama", items[1]]}
    found = post(client, "/v1/rerank", body)["results"]
    scores = {one["index"]: one["relevance_score"] for one in found}
    expected = [item["score"] for item in scored["items"]]
    np.testing.assert_allclose([scores[0], scores[2]], expected, atol=SAME)
    for query in (row, "user"):
        unknown = {"model": "ctr", "query": query, "documents": ["a", items[0], {"id": "f99"}]}
        assert failed(client, "/v1/rerank", unknown) == (404, "unknown_item", "documents[2]")
        silent = {"model": "ctr", "query": query, "documents": [items[0], "a", " "]}
        assert failed(client, "/v1/rerank", silent) == (409, "no_text", "documents[2]")


def test_retrieves(client: TestClient, service: Service) -> None:
    row = request(5) | {"k": 4, "exclude": ["f3"]}
    found = post(client, "/v1/retrieve", row)
    assert_items(found["items"], answer(service, row, "next"))
    assert found["task"] == "next"


def test_recommends_what_was_found_reranked_and_scored(
    client: TestClient, service: Service
) -> None:
    row = request(5) | {"k": 3}
    found = post(client, "/v1/recommend", row | {"scorer": ""})
    assert_items(found["items"], answer(service, row, "next", "reranking"))
    assert "scored_by" not in found
    # All that is found is scored by the one task of scoring on its data; the best are left.
    found = post(client, "/v1/recommend", row)
    assert found["scored_by"]["task"] == "ctr"
    reranked = answer(service, row | {"k": 20}, "next", "reranking")
    of_id = {item.id: item.score for item in reranked.items}
    scored = answer(service, row | {"candidates": list(of_id)}, "ctr")
    best = sorted(scored.items, key=lambda item: -item.score)[:3]
    assert [item["id"] for item in found["items"]] == [item.id for item in best]
    for item in found["items"]:
        assert item["retrieval_score"] == pytest.approx(of_id[item["id"]], abs=SAME)


def test_without_a_catalogue_ids_are_not_scored(
    client: TestClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = server.current.handlers["ctr", "scoring"]
    monkeypatch.setattr(scorer, "data", dataclasses.replace(scorer.data, items={}))
    assert "scored_by" not in post(client, "/v1/recommend", request(5))


def test_recommends_by_titles(client: TestClient, service: Service) -> None:
    row = request(5) | {"k": 3, "task": "titles", "about": {"genre": "drama"}}
    found = post(client, "/v1/recommend", row | {"by": "titles"})
    assert_items(found["items"], answer(service, row, "titles", "title_recommendation"))


def test_writes(client: TestClient, service: Service) -> None:
    expected = answer(service, request(3), "titles")
    for path in ("/v1/write", "/v1/explain"):
        found = post(client, path, request(3) | {"task": "titles"})
        assert [text["text"] for text in found["texts"]] == expected.values["texts"]
        assert [text["id"] for text in found["texts"]] == ["f10", "f4", "f3"]
    one = post(client, "/v1/write", request(3) | {"task": "contents"})
    expected = answer(service, request(3), "contents")
    assert [text["text"] for text in one["texts"]] == expected.values["texts"]


def test_a_completion_of_a_request_says_what_an_explanation_says(client: TestClient) -> None:
    """What a text tells of liked items is known of a request, not of a history as text."""
    liked = [{"item": "f0", "time": 5.0, "value": 5}, {"item": "f1", "time": 6.0, "value": 1}]
    row = {"user": {"taste": "comedy"}, "history": liked}
    found = post(client, "/v1/explain", row | {"candidates": ["f3", "f4"]})
    assert [text["text"] for text in found["texts"]] == ["comedy again", ""]
    body = {"model": "reasons", "prompt": row, "item": "f3"}
    whole = post(client, "/v1/completions", body)
    assert whole["choices"][0]["text"] == "comedy again"
    assert whole["usage"]["prompt_tokens"] > 0
    lines = client.post("/v1/completions", json=body | {"stream": True}).text.split("\n\n")
    events = [
        json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")
    ]
    assert "".join(event["choices"][0]["text"] for event in events) == "comedy again"
    for item, wrong in ((None, (409, "missing_field")), ("f99", (404, "unknown_item"))):
        assert failed(client, "/v1/completions", body | {"item": item}) == (*wrong, "item")


def test_what_is_wrong_is_named(client: TestClient) -> None:
    row = request(3) | {"task": "ctr"}
    assert failed(client, "/v1/score", row | {"candidates": ["f99"]}) == (
        *(404, "unknown_item", "candidates[0]"),
    )
    assert failed(client, "/v1/score", row | {"time": "then"}) == (409, "bad_time", "time")
    assert failed(client, "/v1/score", row | {"task": "cttr"}) == (404, "unknown_task", None)
    assert failed(client, "/v1/score", row | {"task": None}) == (409, "cannot_be_answered", None)
    assert failed(client, "/v1/score", row | {"task": "next"}) == (409, "cannot_be_answered", None)
    assert failed(client, "/v1/score", row | {"candidates": 3}) == (
        *(422, "invalid_field", "candidates"),
    )
    assert failed(client, "/v1/retrieve", request(3) | {"k": 0}) == (422, "invalid_field", "k")
    assert failed(client, "/v1/retrieve", request(3) | {"k": 500}) == (409, "k_too_large", "k")
    asked = {"model": "ctr", "query": "user", "documents": [5.5]}
    assert failed(client, "/v1/rerank", asked) == (422, "invalid_field", "documents[0]")
    assert failed(client, "/v1/rerank", {"documents": ["a"]}) == (422, "invalid_field", "query")
    too_long = client.get("/v1/items", params={"query": "a" * 201}).json()["error"]
    assert (too_long["code"], too_long["param"]) == ("invalid_field", "query")
    assert failed(client, "/v1/nothing", {}) == (404, "not_found", None)
    assert client.get("/v1/score").json()["error"]["code"] == "method_not_allowed"
    # That would compile, and hold up all others.
    titles = request(3) | {"task": "ctr", "by": "titles"}
    del titles["candidates"]
    assert failed(client, "/v1/recommend", titles) == (409, "cannot_be_answered", None)
    unfit = client.post("/v1/recommend", json=titles).json()["error"]["message"]
    assert "serve.jobs" not in unfit  # it was started with them
    jobless = client.post("/v1/score", json=row | {"task": "next"}).json()["error"]["message"]
    assert "serve.jobs" not in jobless
    missing = client.post("/v1/score", json=row | {"task": "cttr"}).json()["error"]["message"]
    assert "did you mean 'ctr'?" in missing


def test_many_clients_get_what_one_gets(client: TestClient, server: Server) -> None:
    asked = [
        (path, request(n) | {"task": task})
        for n in range(6)
        for path, task in (
            *(("/v1/score", "ctr"), ("/v1/score", "stars"), ("/v1/retrieve", "next")),
            ("/v1/write", "contents"),
        )
    ]
    alone = [post(client, path, body) for path, body in asked]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: post(client, *one), asked))
    for found, expected in zip(together, alone, strict=True):
        for name in ("items", "texts"):
            for a, b in zip(found.get(name, ()), expected.get(name, ()), strict=True):
                scores = [one.pop("score", None) or one.pop("log_probability") for one in (a, b)]
                assert a == b
                assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert server.scheduler.depth == 0


def test_vertex_ai(client: TestClient, service: Service) -> None:
    body = {
        "instances": [request(3), request(4) | {"time": "then"}, request(5)],
        "parameters": {"task": "ctr"},
    }
    found = post(client, "/predict", body)["predictions"]
    for index, number in ((0, 3), (2, 5)):
        expected = answer(service, request(number), "ctr").values["probabilities"]
        np.testing.assert_allclose(found[index]["probabilities"], expected, atol=SAME)
    assert found[1]["error"]["code"] == "bad_time"
    assert failed(client, "/predict", {"instances": [], "parameters": {"task": 3}})[2] == (
        "parameters.task"
    )


def test_vertex_ai_names_the_routes(
    server: Server, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/1")
    found = served_folder.make_server(None)
    found._current = server.current
    own = TestClient(make_app(found))
    assert own.get("/v1/endpoints/1").status_code == 200
    body = {"instances": [request(3)], "parameters": {"task": "ctr"}}
    assert "probabilities" in post(own, "/v1/endpoints/1:predict", body)["predictions"][0]
    found.scheduler.close()


def test_nobody_waits_for_a_model_that_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading = served_folder.make_server(None)
    own = TestClient(make_app(loading))
    assert own.get("/healthz").status_code == 200
    assert own.get("/readyz").status_code == 503
    response = own.post("/v1/score", json=request(1))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    for route in ("/healthz", "/"):  # as Vertex AI has it, it says whether requests are answered
        monkeypatch.setenv("AIP_HEALTH_ROUTE", route)
        assert TestClient(make_app(loading)).get(route).status_code == 503
    loading.scheduler.close()


def test_metrics_and_documentation(client: TestClient, server: Server) -> None:
    post(client, "/v1/score", request(3) | {"task": "ctr"})
    assert client.request("INVENTED", "/v1/score").status_code == 405
    text = client.get("/metrics").text
    assert "INVENTED" not in text
    assert 'm6rec_http_requests_total{method="POST",route="/v1/score",status="200"}' in text
    for name in (
        *("m6rec_queue_depth 0.0", "m6rec_ready 1.0", 'm6rec_batch_size_bucket{job="scoring"'),
        *("m6rec_programs", 'm6rec_wait_seconds_count{job="scoring"}'),
    ):
        assert name in text
    page = client.get("/openapi.json").json()
    for path in ("/v1/score", "/v1/rerank", "/v1/chat/completions", "/predict"):
        assert "application/json" in page["paths"][path]["post"]["requestBody"]["content"]
    assert client.get("/docs").status_code == 200


def test_nothing_compiles_once_it_is_ready(client: TestClient, service: Service) -> None:
    programs = PROGRAMS.made
    for number in range(12):
        body = request(number)
        post(client, "/v1/score", body | {"task": "ctr"})
        post(client, "/v1/score", body | {"task": "plausible"})
        post(client, "/v1/recommend", body | {"k": 3})
        post(client, "/v1/recommend", body | {"k": 3, "task": "contents", "by": "titles"})
        post(client, "/v1/write", body | {"task": "titles"})
        texts = ["user, likes comedy"] * (number + 1)
        post(client, "/v1/embeddings", {"model": "next", "input": texts})
        post(client, "/v1/embeddings", {"model": "next:items", "input": texts})
        message = {"role": "user", "content": "Film A " * number + "!"}
        post(client, "/v1/chat/completions", {"model": "m6rec", "messages": [message]})
    assert PROGRAMS.made == programs


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_log_has_no_word_of_a_user(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        body = request(3) | {"task": "ctr", "user": {"taste": "secrets"}}
        post(client, "/v1/score", body)
        client.post("/v1/score", json=body | {"candidates": ["secrets"]})
        client.post("/v1/score", content=json.dumps(body)[:-1] + "secrets")
    lines = [r.getMessage() for r in caplog.records if r.name == "m6rec_jax.access"]
    assert [line.split()[:3] for line in lines] == [
        *(["POST", "/v1/score", "200"], ["POST", "/v1/score", "404"]),
        ["POST", "/v1/score", "422"],  # it is no JSON by its type
    ]
    assert "secrets" not in caplog.text


def test_traces_name_routes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = InMemorySpanExporter()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda: spans)
    monkeypatch.setattr(export, "BatchSpanProcessor", SimpleSpanProcessor)
    own = TestClient(make_app(server))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = request(3) | {"task": "ctr", "user": {"taste": "secrets"}}
    post(own, "/v1/score", body, headers={"traceparent": parent})
    own.get("/v1/models/secrets")
    scored, other = spans.get_finished_spans()
    assert (scored.name, other.name) == ("POST /v1/score", "GET /v1/models/{name}")
    assert "secrets" not in str(scored.attributes)
    assert scored.parent is not None
    assert format(scored.parent.trace_id, "x") == parent.split("-")[1].lstrip("0")

"""Files of requests: results equal those of one request at a time, whatever happens meanwhile."""

import collections
import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gin
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.engine import catalogue_index
from m6rec_jax.engine.bundle import Bundle, InferenceSettings, load_model
from m6rec_jax.engine.index_files import open_index
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.jobs.request_data import open_serving_data
from m6rec_jax.jobs.request_jobs import RetrievalJob, ScoringJob
from m6rec_jax.jobs.requested_job import JobParts, job_of, make_job
from m6rec_jax.requests.files import open_requests
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow, RequestParser
from m6rec_jax.requests.serving_data import ServingData
from m6rec_jax.serving import batch_inference
from m6rec_jax.serving.batch_inference import infer_requests, run_job
from m6rec_jax.serving.build_index import build_index
from tests.serving import served_films
from tests.serving.served_films import MAX_EVENTS, S, T, read_rows, request, write_requests

NUMBER = 45
BAD_ROWS = (3, 11, 12, 30, 44)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data, an index and requests."""
    folder = tmp_path_factory.mktemp("served")
    served_films.write_model(folder / "run", *tiny)
    served_films.write_data(folder / "data")
    write_requests(folder / "requests.jsonl", NUMBER, BAD_ROWS)
    build_index(
        folder / "index",
        folder / "run",
        task="next",
        prepared=str(folder / "data"),
        block=5,
        progress=False,
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """The model is the same in all tests, and loading it most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        cached = functools.cache(load_model)
        patch.setattr(
            batch_inference, "load_model", lambda path, step, **_: cached(path, step=step)
        )
        yield


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_model(folder / "run")


@pytest.fixture(scope="module")
def scored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all requests, made in one go."""
    output = tmp_path_factory.mktemp("scored") / "out.jsonl"
    infer(folder, output)
    return output


@pytest.fixture(scope="module")
def data(bundle: Bundle, folder: Path) -> ServingData:
    return open_serving_data(bundle, "ctr", str(folder / "data"))


def infer(folder: Path, output: Path, task: str = "ctr", **changes: Any) -> Any:
    settings = {
        "requests": folder / "requests.jsonl",
        "output": output,
        "model_dir": folder / "run",
        "task": task,
        "prepared": str(folder / "data"),
        "batch_size": 4,
        "chunk_size": 10,
        "progress": False,
    }
    return infer_requests(**(settings | changes))


def accepted(data: ServingData, rows: Any, with_candidates: bool) -> list[Any]:
    parser = RequestParser(
        data.spec,
        data.items,
        data.statistics_names(),
        "candidates" if with_candidates else None,
    )
    renderer = RequestRenderer(data.template, data.statistics, MAX_EVENTS)
    requests = [parser.parse(row) for row in rows]
    return [(one, renderer.render(one)) for one in requests]


GOOD = [row for row in range(NUMBER) if row not in BAD_ROWS]


def test_scores_equal_those_of_one_request_at_a_time(
    folder: Path, bundle: Bundle, data: ServingData, scored: Path
) -> None:
    report = infer(folder, scored)  # reports what was done before
    found = read_rows(scored)
    assert [row["number"] for row in found] == GOOD
    scorer = bundle.scorer("ctr")
    told = accepted(data, [request(row) for row in GOOD], True)
    for row, (_, text) in zip(found, told, strict=True):
        assert {name: row[name] for name in request(0)} == request(row["number"])
        (expected,) = scorer.score_requests([text.history], [text.candidates])
        np.testing.assert_allclose(row["probabilities"], expected, atol=2e-6)
    assert report.totals.answered == len(GOOD)
    rejected = read_rows(scored.with_name("out.rejected.jsonl"))
    assert [row["row"] for row in rejected] == list(BAD_ROWS)
    assert [row["kind"] for row in rejected] == [
        "invalid_json",
        "invalid_utf8",
        "bad_time",
        "wrong_type",
        "wrong_type",
    ]
    assert rejected[0]["raw"] == "{half a row"
    assert "'then' is neither unix seconds" in rejected[2]["reason"]
    assert str(report) == (
        f"45 requests: 40 answered ({scored}), 5 rejected "
        f"({scored.with_name('out.rejected.jsonl')}: wrong_type 2, invalid_json 1, invalid_utf8 1, "
        "bad_time 1)"
    )


def test_all_batches_run_the_same_programs(
    folder: Path, bundle: Bundle, data: ServingData, tmp_path: Path
) -> None:
    """Three chunks, the last one smaller, and requests of all sizes."""
    renderer = RequestRenderer(data.template, data.statistics, MAX_EVENTS)
    shapes = {"batch_sizes": (4,), "source_buckets": (S,), "target_buckets": (T,)}
    scorer, retriever = bundle.scorer("ctr", **shapes), bundle.retriever("next", **shapes)
    index = open_index(folder / "index", bundle.fingerprint("next"))
    searches = catalogue_index._top_k._cache_size()
    for job in (ScoringJob(scorer, renderer), RetrievalJob(retriever, index, renderer)):
        parser = RequestParser(data.spec, data.items, (), job.candidates_field)
        file = open_requests(folder / "requests.jsonl", job.result_types)
        output = tmp_path / f"{type(job).__name__}.jsonl"
        run_job(job, parser, file, output, job.describe(), 20, progress=False)
    assert scorer.num_compilations == 2  # histories, candidates
    assert retriever.num_compilations == 1
    assert catalogue_index._top_k._cache_size() == searches + 1


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_retrieval_gives_ids_and_scores(
    folder: Path, bundle: Bundle, data: ServingData, tmp_path: Path, exclude_seen: bool
) -> None:
    rows = [request(number) for number in range(12)]
    rows[2] |= {"k": 12}
    rows[3] |= {"k": 2, "exclude": ["f4", "f5", "none of these"]}
    rows[4] |= {"k": 101}
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bound = f"RetrievalJob.exclude_seen = {exclude_seen}\nRetrievalJob.k = 5"
    with gin_config(bound):
        report = infer(
            folder,
            tmp_path / "out.jsonl",
            "next",
            requests=path,
            index=str(folder / "index"),
        )
    assert report.totals.rejected == {"k_too_large": 1}
    del rows[4]
    told = accepted(data, rows, False)
    retriever = bundle.retriever("next")
    users = retriever.embed_users([text.history for _, text in told])
    vectors = retriever.embed_items(list(data.item_texts().values()))
    for row, user, (asked, _) in zip(read_rows(tmp_path / "out.jsonl"), users, told, strict=True):
        out = set(asked.exclude)
        out |= {item.id for _, item in asked.behaviours} if exclude_seen else set()
        scores = dict(zip(data.items, (vectors @ user).tolist(), strict=True))
        best = sorted((id_ for id_ in scores if id_ not in out), key=lambda id_: -scores[id_])
        best = best[: asked.k or 5]
        assert row["item_ids"] == best
        np.testing.assert_allclose(row["scores"], [scores[id_] for id_ in best], atol=1e-5)


@contextlib.contextmanager
def gin_config(text: str) -> Iterator[None]:
    gin.clear_config()
    gin.parse_config(text)
    try:
        yield
    finally:
        gin.clear_config()


def test_what_was_found_can_be_scored(folder: Path, tmp_path: Path) -> None:
    """The output of retrieval is the input of scoring: the scorer ranks the retriever's best."""
    infer(folder, tmp_path / "found.jsonl", "next", index=str(folder / "index"))
    with gin_config("ScoringJob.candidates_field = 'item_ids'"):
        infer(folder, tmp_path / "ranked.jsonl", requests=tmp_path / "found.jsonl")
    rows = read_rows(tmp_path / "ranked.jsonl")
    assert len(rows) == len(GOOD)
    for row in rows:
        assert len(row["probabilities"]) == len(row["item_ids"]) == len(row["scores"]) > 0


def test_parquet_in_and_out(folder: Path, scored: Path, tmp_path: Path) -> None:
    def item(entry: Any) -> dict[str, Any]:
        return entry if isinstance(entry, dict) else {"id": entry}

    rows = [request(number) for number in range(25)]
    for row in rows:
        row["behaviours"] = [b | {"item": item(b["item"])} for b in row["behaviours"]]
        row["candidates"] = [item(entry) for entry in row["candidates"]]
    rows[7]["time"] = float("nan")
    rows[8]["behaviours"] = None
    writer = pq.ParquetWriter(
        tmp_path / "requests.parquet", schema := pa.Table.from_pylist(rows).schema
    )
    for first, end in ((0, 12), (12, 25)):
        writer.write_table(pa.Table.from_pylist(rows[first:end], schema))
    writer.close()
    report = infer(folder, tmp_path / "out.parquet", requests=tmp_path / "requests.parquet")
    assert report.totals.rejected == {"nan": 1, "missing_field": 1}
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == [*schema.names, "probabilities"]
    by_number = {row["number"]: row["probabilities"] for row in read_rows(scored)}
    numbers = [n for n in range(25) if n not in (7, 8)]
    assert table.column("number").to_pylist() == numbers
    for number, found in zip(numbers, table.column("probabilities").to_pylist(), strict=True):
        if number in by_number:
            np.testing.assert_allclose(found, by_number[number], atol=2e-6)


@pytest.mark.parametrize("dies_at", [1, 4])
def test_going_on_after_an_interruption(
    folder: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    asked: list[int] = []
    answer = ScoringJob.answer

    def counted(self: ScoringJob, requests: Any) -> Any:
        if len(asked) == dies_at:
            asked.append(-1)
            raise KeyboardInterrupt
        asked.append(len(requests))
        return answer(self, requests)

    monkeypatch.setattr(ScoringJob, "answer", counted)
    with pytest.raises(KeyboardInterrupt):
        infer(folder, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    # Another batch size changes no result, so it may be chosen on the way.
    report = infer(folder, tmp_path / "out.jsonl", chunk_size=7, batch_size=8)
    assert sum(n for n in asked if n > 0) == len(GOOD)
    uninterrupted, found = read_rows(scored), read_rows(tmp_path / "out.jsonl")
    assert [row["number"] for row in found] == GOOD
    for a, b in zip(uninterrupted, found, strict=True):
        np.testing.assert_allclose(a["probabilities"], b["probabilities"], atol=2e-6)
    sides = [path.with_name("out.rejected.jsonl") for path in (scored, tmp_path / "out.jsonl")]
    assert sides[0].read_text() == sides[1].read_text()
    assert report.totals.rejected.total() == len(BAD_ROWS)
    # Once complete, it is only reported.
    monkeypatch.setattr(ScoringJob, "answer", None)
    assert infer(folder, tmp_path / "out.jsonl") == report


def test_ignored_fields_are_told_once(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    rows = [request(n) | {"user": {"taste": "x", "tatse\ud800": 1}} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = infer(folder, tmp_path / "out.jsonl", requests=path)
    assert str(report).endswith("were ignored, in rows: user.tatse\\ud800 3")


def test_requests_alone_are_enough(folder: Path, data: ServingData, tmp_path: Path) -> None:
    """No catalogue and no statistics: items bring their columns, and ids lead nowhere."""
    rows = [request(number) for number in range(6)]
    for row in rows:
        row["behaviours"] = [b | {"item": whole(data, b["item"])} for b in row["behaviours"]]
        row["candidates"] = [whole(data, entry) for entry in row["candidates"]]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, request(1)]))
    report = infer(folder, tmp_path / "out.jsonl", requests=path, prepared="")
    assert [row["number"] for row in read_rows(tmp_path / "out.jsonl")] == list(range(6))
    assert report.totals.rejected == {"unknown_item": 1}


def whole(data: ServingData, entry: Any) -> Any:
    return entry if isinstance(entry, dict) else dict(data.items[entry].attributes)


def test_candidates_of_which_no_token_is_left_are_refused(bundle: Bundle) -> None:
    class Renderer:
        def render(self, asked: Any) -> RequestText:
            return RequestText(["profile"], ["Film A", "\u200b"])

    job = ScoringJob(bundle.scorer("ctr"), Renderer())  # type: ignore[arg-type]
    with pytest.raises(RejectedRow, match=r"'candidates\[1\]' has no text to score"):
        job.accept(None, 0)  # type: ignore[arg-type]


def test_clear_errors(folder: Path, tmp_path: Path, bundle: Bundle) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match=r"in the format of the requests, '\.jsonl'"):
        infer(folder, tmp_path / "out.parquet")
    with pytest.raises(ConfigError, match="is the file of requests itself"):
        infer(folder, folder / "requests.jsonl")
    with pytest.raises(ConfigError, match=r"out\.rejected\.jsonl is the file of requests itself"):
        infer(folder, out, requests=tmp_path / "out.rejected.jsonl")
    with pytest.raises(ConfigError, match=r"gs://bucket/out\.jsonl: .* local disk"):
        infer(folder, "gs://bucket/out.jsonl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"gs://bucket/index: .* local disk"):
        build_index("gs://bucket/index", "run")
    with pytest.raises(ConfigError, match=r"make one with `m6rec index build`"):
        infer(folder, out, "next")
    with pytest.raises(ConfigError, match=r"answered by scoring, retrieval, .*, not by 'chat'"):
        infer(folder, out, job="chat")
    with pytest.raises(ConfigError, match="several tasks; name one: books_next, contents, ctr"):
        infer(folder, out, "")
    with pytest.raises(CheckpointError, match="was built by another model"):
        infer(folder, out, "ctr", job="retrieval", index=str(folder / "index"))
    with pytest.raises(DataError, match="there is no file"):
        infer(folder, out, requests=tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
        infer(folder, out, requests=tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match=r"RetrievalJob\.k = 0"):
        RetrievalJob(None, None, None, k=0)  # type: ignore[arg-type]
    # Nothing was committed, so once there are rows they are answered.
    (tmp_path / "empty.jsonl").write_text("{}\n")
    assert infer(folder, out, requests=tmp_path / "empty.jsonl").totals.rejected.total() == 1
    (tmp_path / "two.jsonl").write_text("{}\n{}\n")
    with pytest.raises(DataError, match=r"another job, which differs in: requests"):
        infer(folder, out, requests=tmp_path / "two.jsonl")


def test_a_job_without_a_kind_is_what_the_model_is_built_for(bundle: Bundle) -> None:
    kinds = collections.Counter()
    prompts = type(bundle.model.config.prompts)
    for head, dim in (("option", 0), ("none", 8), ("option", 8), ("none", 0)):
        options = {"num_options": 2} if head == "option" else {}
        config = bundle.model.config.replace(
            prompts=prompts(num_prompts=2, head=head, retrieval_dim=dim, **options)
        )
        settings = InferenceSettings(
            S, T, {"": TaskSettings(), "like": TaskSettings(kind="scoring")}
        )
        model = type(bundle.model)(config)
        other = dataclasses.replace(bundle, model=model, settings=settings)
        try:
            kinds[job_of(other, "")] += 1
        except ConfigError:
            kinds["unknown"] += 1
        assert job_of(other, "like") == "scoring"
    assert kinds == {"scoring": 1, "retrieval": 1, "unknown": 2}


def test_reranking_answers_no_requests(bundle: Bundle, data: ServingData) -> None:
    """Its candidates' texts are of another kind than a request's renderer tells."""
    task = TaskSettings(kind="scoring", view="reranking")
    other = dataclasses.replace(bundle, settings=InferenceSettings(S, T, {"near": task}))
    with pytest.raises(ConfigError, match="tasks of reranking answer no requests"):
        make_job(job_of(other, "near"), JobParts(other, data, "near", {}))


def test_a_value_that_no_words_can_tell_is_a_rejected_row(folder: Path, tmp_path: Path) -> None:
    rows = [request(number) for number in range(3)]
    rows[1]["behaviours"][0]["value"] = 1.7e308
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = infer(folder, tmp_path / "out.jsonl", requests=path)
    assert report.totals.answered == 2
    assert report.totals.rejected == {"no_text": 1}


def test_a_model_that_answers_nan_answers_nobody(
    folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    broken = dataclasses.replace(
        bundle, variables=jax.tree.map(lambda leaf: leaf * np.nan, bundle.variables)
    )
    with pytest.raises(DataError, match=r"jsonl, row 0: the model's probabilities hold numbers"):
        infer(folder, tmp_path / "out.jsonl", load=lambda *_, **__: broken)
    assert not (tmp_path / "out.jsonl").exists()

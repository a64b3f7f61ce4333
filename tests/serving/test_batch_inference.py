"""Files of requests: results equal those of one request at a time, whatever happens meanwhile."""

import contextlib
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.engine.index import catalogue_index
from m6rec_jax.engine.model_folder import LoadedModel, load_model
from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.io.workers import Threads
from m6rec_jax.jobs.resources import ServiceOptions, open_serving_data
from m6rec_jax.requests.files import Shard
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RequestFields, RequestParser
from m6rec_jax.requests.serving_data import ServingData
from m6rec_jax.serving import service
from m6rec_jax.serving.batch_inference import answer_file, infer_requests
from m6rec_jax.serving.build_index import build_index
from m6rec_jax.serving.service import Service
from tests.engine.programs import num_traced
from tests.serving import served_films
from tests.serving.served_films import MAX_EVENTS, read_rows, request, write_requests

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
        progress=False,
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """The model is the same in all tests, and loading it most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        cached = functools.cache(load_model)
        patch.setattr(service, "load_with_bank", lambda path, step, **_: cached(path, step=step))
        yield


@pytest.fixture(scope="module")
def bundle(folder: Path) -> LoadedModel:
    return load_model(folder / "run")


@pytest.fixture(scope="module")
def scored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all requests, made in one go."""
    output = tmp_path_factory.mktemp("scored") / "out.jsonl"
    infer(folder, output)
    return output


@pytest.fixture(scope="module")
def data(bundle: LoadedModel, folder: Path) -> ServingData:
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
    reports = infer_requests(**(settings | changes))
    return reports[0] if len(reports) == 1 else reports


def accepted(data: ServingData, rows: Any, with_candidates: bool) -> list[Any]:
    parser = RequestParser(
        data.spec,
        data.items,
        data.statistics_names(),
        RequestFields("candidates" if with_candidates else None),
    )
    renderer = RequestRenderer(data.template, data.statistics, MAX_EVENTS)
    requests = [parser.parse(row) for row in rows]
    return [(one, renderer.render(one)) for one in requests]


GOOD = [row for row in range(NUMBER) if row not in BAD_ROWS]


def test_scores_equal_those_of_one_request_at_a_time(
    folder: Path, bundle: LoadedModel, data: ServingData, scored: Path
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
    assert report.totals["answered"] == len(GOOD)
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
    assert "'then', neither" in rejected[2]["reason"]
    summary, gaps = str(report).splitlines()
    told = [request(row)["history"] for row in GOOD]
    assert gaps == f"Answered with what is known, in rows: no_history {told.count([])}"
    assert summary == (
        f"45 requests: 40 answered ({scored}), 5 rejected "
        f"({scored.with_name('out.rejected.jsonl')}: wrong_type 2, invalid_json 1, invalid_utf8 1, "
        "bad_time 1)"
    )


def test_all_batches_run_the_same_programs(
    folder: Path, bundle: LoadedModel, tmp_path: Path
) -> None:
    """Three chunks, the last one smaller, and requests of all sizes."""
    options = ServiceOptions(str(folder / "data"), index=str(folder / "index"), batch_sizes=(4,))
    searches = catalogue_index._top_k._cache_size()
    for task in ("ctr", "next"):
        answering = Service(bundle, options)
        answering.warm_up([(task, answering.job(task))])
        traced = num_traced()
        output = tmp_path / f"{task}.jsonl"
        workers = Threads(answering)
        requests = folder / "requests.jsonl"
        answer_file(workers, requests, output, task=task, chunk_size=20, progress=False)
        assert num_traced() == traced
    assert catalogue_index._top_k._cache_size() == searches + 1


def test_parts_of_a_file_are_the_whole(folder: Path, scored: Path, tmp_path: Path) -> None:
    for index in (2, 0, 1):
        infer(folder, tmp_path / "out.jsonl", shard=Shard(index, 3))
    for ending in ("", ".rejected"):
        parts = [tmp_path / f"out-0000{n}-of-00003{ending}.jsonl" for n in range(3)]
        whole = scored.with_name(f"out{ending}.jsonl")
        assert "".join(part.read_text() for part in parts) == whole.read_text()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_part_without_rows_is_an_empty_file(folder: Path, tmp_path: Path, suffix: str) -> None:
    """Of more parts than rows; the same command again finds it."""
    rows = [request(number) | {"candidates": [{"id": "f1"}]} for number in (1, 2)]
    requests, outputs = tmp_path / f"in{suffix}", []
    if suffix == ".jsonl":
        served_films.write_rows(requests, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), requests)
    for index in (0, 0, 1, 2):
        own = {"requests": requests, "shard": Shard(index, 3)}
        report = infer(folder, tmp_path / f"out{suffix}", **own)
        outputs.append((report.totals["answered"], Path(report.output)))
        assert read_rows(Path(report.rejected)) == []
    assert sorted(number for number, _ in outputs[1:]) == [0, 1, 1]
    empty = next(path for number, path in outputs if not number)
    if suffix == ".jsonl":
        assert empty.read_bytes() == b""
    else:
        whole = pq.read_schema(next(path for number, path in outputs if number))
        assert (pq.read_schema(empty), pq.read_table(empty).num_rows) == (whole, 0)


def test_several_files_in_a_bucket(folder: Path, scored: Path, tmp_path: Path, bucket: Any) -> None:
    lines = (folder / "requests.jsonl").read_bytes().splitlines(keepends=True)
    (bucket / "in").mkdir(parents=True)
    for n in range(3):
        (bucket / "in" / f"{n}.jsonl").write_bytes(b"".join(lines[15 * n : 15 * n + 15]))
    settings = {"requests": "gs://bucket/in/*.jsonl", "model_dir": folder / "run", "task": "ctr"}
    settings |= {"prepared": str(folder / "data"), "batch_size": 4, "progress": False}
    for index in range(2):
        reports = infer_requests(output="gs://bucket/out", shard=Shard(index, 2), **settings)
        assert [report.output.name for report in reports] == [["0.jsonl", "2.jsonl"], ["1.jsonl"]][
            index
        ]
    found = [row for n in range(3) for row in read_rows(bucket / "out" / f"{n}.jsonl")]
    wanted = read_rows(scored)
    assert [row["number"] for row in found] == [row["number"] for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(row["probabilities"], other["probabilities"], atol=2e-6)
    names = {
        f"{n}{end}" for n in range(3) for end in (".jsonl", ".rejected.jsonl", ".summary.json")
    }
    assert {path.name for path in (bucket / "out").iterdir()} == names
    # The same again does nothing; another job is told so, by the bucket's name.
    before = (bucket / "out" / "0.jsonl").stat().st_mtime_ns
    reports = infer_requests(output="gs://bucket/out", **settings)
    assert sum(report.totals["answered"] for report in reports) == len(wanted)
    assert (bucket / "out" / "0.jsonl").stat().st_mtime_ns == before
    (bucket / "in" / "0.jsonl").write_bytes(lines[0])
    with pytest.raises(DataError, match=r"results of another job"):
        infer_requests(output="gs://bucket/out", **settings)
    with pytest.raises(DataError, match=r"gs://bucket/none\*: there are no .jsonl or .parquet"):
        infer_requests(output="gs://bucket/out", **(settings | {"requests": "gs://bucket/none*"}))
    (bucket / "out" / "0.summary.json").unlink()
    with pytest.raises(DataError, match=r"gs://bucket/out/0.jsonl exists already, and was not"):
        infer_requests(output="gs://bucket/out", **settings)
    assert {path.name for path in (bucket / "out").iterdir()} == names - {"0.summary.json"}
    shutil.rmtree(bucket / "out")
    (bucket / "out").write_text("no folder")
    with pytest.raises(DataError, match=r"gs://bucket/out cannot be written: .*Error"):
        infer_requests(output="gs://bucket/out", **settings)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_retrieval_gives_ids_and_scores(
    folder: Path, bundle: LoadedModel, data: ServingData, tmp_path: Path, exclude_seen: bool
) -> None:
    rows = [request(number) for number in range(12)]
    rows[2] |= {"k": 12}
    rows[3] |= {"k": 2, "exclude": ["f4", "f5", "none of these"]}
    rows[4] |= {"k": 101}
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bound = f"RetrievalAnswers.exclude_seen = {exclude_seen}\nRetrievalAnswers.k = 5"
    with gin_config(bound):
        report = infer(
            folder,
            tmp_path / "out.jsonl",
            "next",
            requests=path,
            index=str(folder / "index"),
        )
    assert report.numbers("rejected") == {"k_too_large": 1}
    del rows[4]
    told = accepted(data, rows, False)
    retriever = bundle.retriever("next")
    users = retriever.embed_users([text.history for _, text in told])
    vectors = retriever.embed_items(list(data.item_texts().values()))
    for row, user, (asked, _) in zip(read_rows(tmp_path / "out.jsonl"), users, told, strict=True):
        out = set(asked.exclude)
        out |= {item.id for _, item in asked.history} if exclude_seen else set()
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


def test_lists_with_titles_and_without_doubles(folder: Path, tmp_path: Path) -> None:
    """A film is in the catalogue a second time, with the same text and so the same score."""
    twin = served_films.Item("twin", dict(served_films.ITEMS[4].attributes))
    data = served_films.write_data(tmp_path / "data", items=[*served_films.ITEMS, twin])
    index = str(tmp_path / "index")
    build_index(index, folder / "run", task="next", prepared=str(data), progress=False)
    row = request(1) | {"history": [], "k": 13}
    requests = served_films.write_rows(tmp_path / "requests.jsonl", [row])
    own = {"requests": requests, "index": index, "prepared": str(data)}
    infer(folder, tmp_path / "found.jsonl", "next", **own)
    (found,) = read_rows(tmp_path / "found.jsonl")
    titles = {item.id: item.attributes["title"] for item in served_films.ITEMS}
    assert sorted(found["item_ids"]) == sorted(titles)
    assert found["titles"] == [titles[id_] for id_ in found["item_ids"]]
    assert found["scores"] == sorted(found["scores"], reverse=True)
    # Where no more are searched for than are wanted, the twin leaves a gap.
    k = found["item_ids"].index("f4") + 2
    served_films.write_rows(tmp_path / "requests.jsonl", [row | {"k": k}])
    bound = f"RetrievalAnswers.k = {k}\nRetrievalAnswers.max_k = {k}\n"
    for depth, number in ((k, k - 1), ("None", k)):
        with gin_config(f"{bound}RetrievalAnswers.depth = {depth}"):
            infer(folder, tmp_path / f"{depth}.jsonl", "next", **own)
        (filled,) = read_rows(tmp_path / f"{depth}.jsonl")
        assert filled["item_ids"] == found["item_ids"][:number]


def test_what_was_found_can_be_scored(folder: Path, tmp_path: Path) -> None:
    """The output of retrieval is the input of scoring: the scorer ranks the retriever's best.

    Of a folder, too, whose side files are no requests.
    """
    for name in ("a", "b"):
        write_requests(tmp_path / f"{name}.jsonl", 8, (3,))
    found, ranked = tmp_path / "found", tmp_path / "ranked"
    infer(folder, found, "next", requests=tmp_path, index=str(folder / "index"))
    assert (found / "a.rejected.jsonl").is_file()
    with gin_config("ScoringAnswers.candidates_field = 'item_ids'"):
        infer(folder, ranked, requests=found)
    rows = read_rows(ranked / "a.jsonl") + read_rows(ranked / "b.jsonl")
    assert len(rows) == 14
    for row in rows:
        assert len(row["probabilities"]) == len(row["item_ids"]) == len(row["scores"]) > 0


def test_parquet_in_and_out(folder: Path, scored: Path, tmp_path: Path) -> None:
    def item(entry: Any) -> dict[str, Any]:
        return entry if isinstance(entry, dict) else {"id": entry}

    rows = [request(number) for number in range(25)]
    for row in rows:
        row["history"] = [b | {"item": item(b["item"])} for b in row["history"]]
        row["candidates"] = [item(entry) for entry in row["candidates"]]
    rows[7]["time"] = float("nan")
    rows[8]["history"] = None
    writer = pq.ParquetWriter(
        tmp_path / "requests.parquet", schema := pa.Table.from_pylist(rows).schema
    )
    for first, end in ((0, 12), (12, 25)):
        writer.write_table(pa.Table.from_pylist(rows[first:end], schema))
    writer.close()
    report = infer(folder, tmp_path / "out.parquet", requests=tmp_path / "requests.parquet")
    assert report.numbers("rejected") == {"bad_time": 1}
    assert report.totals["without no_history"] > 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == [*schema.names, "probabilities"]
    by_number = {row["number"]: row["probabilities"] for row in read_rows(scored)}
    numbers = [n for n in range(25) if n != 7]
    assert table.column("number").to_pylist() == numbers
    for number, found in zip(numbers, table.column("probabilities").to_pylist(), strict=True):
        if number in by_number and number != 8:
            np.testing.assert_allclose(found, by_number[number], atol=2e-6)


def test_ignored_fields_are_told_once(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    rows = [request(n) | {"user": {"taste": "x", "tatse": 1}} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = infer(folder, tmp_path / "out.jsonl", requests=path)
    assert str(report).endswith("does not have, in rows: user.tatse 3")


def test_requests_alone_are_enough(folder: Path, data: ServingData, tmp_path: Path) -> None:
    """No catalogue and no statistics: items bring their columns, and ids lead nowhere."""
    rows = [request(number) for number in range(6)]
    for row in rows:
        row["history"] = [b | {"item": whole(data, b["item"])} for b in row["history"]]
        row["candidates"] = [whole(data, entry) for entry in row["candidates"]]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, request(1)]))
    report = infer(folder, tmp_path / "out.jsonl", requests=path, prepared="")
    assert [row["number"] for row in read_rows(tmp_path / "out.jsonl")] == list(range(6))
    assert report.numbers("rejected") == {"unknown_item": 1}


def whole(data: ServingData, entry: Any) -> Any:
    return entry if isinstance(entry, dict) else dict(data.items[entry].attributes)


def test_clear_errors(folder: Path, tmp_path: Path, bundle: LoadedModel) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match=r"in the format of the requests, '\.jsonl'"):
        infer(folder, tmp_path / "out.parquet")
    with pytest.raises(ConfigError, match="would overwrite"):
        infer(folder, folder / "requests.jsonl")
    with pytest.raises(ConfigError, match="would overwrite"):
        infer(folder, out, requests=tmp_path / "out.rejected.jsonl")
    with pytest.raises(ConfigError, match=r"make one with `m6rec index build`"):
        infer(folder, out, "next")
    with pytest.raises(ConfigError, match=r"answered by .*retrieval, scoring.*, not by 'chat'"):
        infer(folder, out, job="chat")
    with pytest.raises(CheckpointError, match="was computed by another model"):
        infer(folder, out, "ctr", job="retrieval", index=str(folder / "index"))
    with pytest.raises(DataError, match="there is no file"):
        infer(folder, out, requests=tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl has no rows"):
        infer(folder, out, requests=tmp_path / "empty.jsonl")
    # Nothing was committed, so once there are rows they are answered.
    (tmp_path / "empty.jsonl").write_text("{}\n")
    assert infer(folder, out, requests=tmp_path / "empty.jsonl").numbers("rejected").total() == 1
    (tmp_path / "two.jsonl").write_text("{}\n{}\n")
    with pytest.raises(DataError, match=r"another job, which differs in: requests"):
        infer(folder, out, requests=tmp_path / "two.jsonl")


def test_a_value_that_no_words_can_tell_is_a_rejected_row(folder: Path, tmp_path: Path) -> None:
    rows = [request(number) for number in range(3)]
    rows[1]["history"][0]["value"] = 1.7e308
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = infer(folder, tmp_path / "out.jsonl", requests=path)
    assert report.totals["answered"] == 2
    assert report.numbers("rejected") == {"no_text": 1}

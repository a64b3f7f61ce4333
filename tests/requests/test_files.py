"""Files of requests: any chunks, from any position, give every row once; rows keep their bytes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.requests.files import Shard, open_requests

SCORES = {"scores": pa.list_(pa.float32()), "ids": pa.list_(pa.string())}
LINES = [
    b'{"n": 0}',
    b"",
    b'  {"n": 2, "text": "caf\xc3\xa9 \\ud83d\\ude00", "deep": {"a": [1.50, 1e3]}}  ',
    b"{not json",
    b'{"n": 4, "text": "caf\xe9"}',
    b"[5]",
    b'{"n": NaN}',
    b'{"n": 7, "scores": 1}',
    b'{"n": 8, "n": 9}\r',
    b"[" * 100_000,
    b"\x00\xff",
    b'{"n": 11}',
]
KINDS = {
    3: "invalid_json",
    4: "invalid_utf8",
    5: "not_an_object",
    6: "invalid_json",
    7: "field_taken",
    9: "invalid_json",
    10: "invalid_json",
}


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(LINES))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "requests.parquet"
    rows = [{"n": n, "items": [{"id": str(n), "price": None}]} for n in range(20)]
    writer = pq.ParquetWriter(path, pa.Table.from_pylist(rows).schema)
    for first, end in ((0, 7), (7, 7), (7, 8), (8, 20)):
        writer.write_table(pa.Table.from_pylist(rows[first:end], writer.schema))
    writer.close()
    return path


def test_lines_that_are_no_objects_are_handed_on_with_the_reason(lines: Path) -> None:
    (chunk,) = open_requests(lines, SCORES).chunks(0, 100, 12)
    assert [row.number for row in chunk.rows] == [0, *range(2, 12)]
    assert {r.number: r.problem.kind for r in chunk.rows if r.problem is not None} == KINDS
    assert chunk.rows[0].values == {"n": 0}
    shown = {r.number: r.rejected(r.problem)["raw"] for r in chunk.rows if r.problem is not None}
    assert shown[3] == "{not json"
    assert shown[4] == '{"n": 4, "text": "caf\\xe9"}'
    assert shown[10] == "\x00\\xff"
    assert len(shown[9]) < 10_100
    assert shown[9].endswith("(cut)")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("kind", ["lines", "table"])
def test_every_row_once_from_any_position(kind, size, request):
    file = open_requests(request.getfixturevalue(kind), SCORES)
    starts, found = [0], []
    for chunk in file.chunks(0, size, file.num_rows):
        assert 0 < len(chunk.rows) <= size
        starts.append(chunk.end)
        found += chunk.rows
    numbers = [0, *range(2, 12)] if kind == "lines" else list(range(20))
    assert [row.number for row in found] == numbers
    assert starts[-1] == file.num_rows
    for start in starts:
        rest = [row for chunk in file.chunks(start, 4, file.num_rows) for row in chunk.rows]
        assert [row.number for row in rest] == [n for n in numbers if n >= start]
        wanted = [row.values for row in found if row.number >= start]
        assert [row.values for row in rest] == wanted
    for count in (2, 5, 30):  # the last of more parts than rows
        shards = [Shard(index, count).rows(file.num_rows) for index in range(count)]
        parts = [file.chunks(start, size, end) for start, end in shards]
        rest = [row for part in parts for chunk in part for row in chunk.rows]
        assert [row.number for row in rest] == numbers
        assert [row.values for row in rest] == [row.values for row in found]


@pytest.mark.parametrize("text", ["1", "3/3", "-1/2", "0/0", "0/2/3"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        Shard.parse(text)
    assert Shard.parse("07/8") == Shard(7, 8)
    assert Shard(7, 8).of(Path("a/b.jsonl")) == Path("a/b-00007-of-00008.jsonl")


def test_results_go_into_the_rows_own_text(lines: Path, tmp_path: Path) -> None:
    file = open_requests(lines, SCORES)
    parts = []
    for number, chunk in enumerate(file.chunks(0, 5, 12)):
        kept = [i for i, row in enumerate(chunk.rows) if row.values is not None]
        results = {
            "scores": [np.array([0.1, 1e-9], np.float32) for _ in kept],
            "ids": [["é"] for _ in kept],
        }
        parts.append(tmp_path / f"{number}.jsonl")
        file.write_part(parts[-1], chunk, kept, results)
    file.join(parts, tmp_path / "joined.jsonl")
    added = ', "scores": [0.1, 1e-09], "ids": ["é"]}\n'.encode()
    expected = b"".join(LINES[n].strip()[:-1] + added for n in (0, 2, 8, 11))
    assert (tmp_path / "joined.jsonl").read_bytes() == expected
    for line in expected.splitlines():
        json.loads(line)


def test_parquet_rows_keep_their_columns_and_types(table: Path, tmp_path: Path) -> None:
    file = open_requests(table, SCORES)
    parts = []
    for number, chunk in enumerate(file.chunks(0, 6, 20)):
        kept = [i for i, row in enumerate(chunk.rows) if row.number % 3 == 0 and row.number > 5]
        results = {
            "scores": [np.arange(row % 2, dtype=np.float32) for row in kept],
            "ids": [["a", "b"][: row % 3] for row in kept],
        }
        parts.append(tmp_path / f"{number}.parquet")
        file.write_part(parts[-1], chunk, kept, results)
    file.join(parts, tmp_path / "joined.parquet")
    original, joined = pq.read_table(table), pq.read_table(tmp_path / "joined.parquet")
    assert joined.column("n").to_pylist() == [6, 9, 12, 15, 18]
    assert joined.select(["n", "items"]).schema == original.schema
    assert joined.schema.field("scores").type == pa.list_(pa.float32())
    assert joined.schema.field("ids").type == pa.list_(pa.string())


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    raw = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    nested = pa.StructArray.from_arrays(
        [pa.array([b"x", b"y", b"\xff"]).view(pa.string())], ["title"]
    )
    pq.write_table(pa.table({"text": raw, "n": [0, 1, 2], "item": nested}), path)
    file = open_requests(path, SCORES)
    (chunk,) = file.chunks(0, 10, 3)
    assert [row.values is None for row in chunk.rows] == [False, True, True]
    rejected = [row.rejected(row.problem) for row in chunk.rows if row.problem]
    assert {row["kind"] for row in rejected} == {"invalid_utf8"}
    assert "row 1 of" in rejected[0]["raw"]
    file.write_part(tmp_path / "part.parquet", chunk, [0], {"scores": [[]], "ids": [["a"]]})
    assert pq.read_table(tmp_path / "part.parquet").column("text").to_pylist() == ["good"]


def test_clear_errors(tmp_path: Path, table: Path) -> None:
    other, damaged = tmp_path / "requests.csv", tmp_path / "damaged.parquet"
    other.write_text("a\n")
    content = bytearray(table.read_bytes())
    content[4:200] = b"\xff" * 196
    damaged.write_bytes(content)
    for path, columns, error in (
        (tmp_path / "none.jsonl", SCORES, DataError),
        (other, SCORES, ConfigError),
        (table, {"n": pa.string()}, DataError),
        (damaged, SCORES, DataError),
    ):
        with pytest.raises(error):
            list(open_requests(path, columns).chunks(0, 5, 20))

"""Writes rows as shards of TFRecords that TFDS and seqio read, without tensorflow; reads some back.

A record is a `tf.train.Example`, in the encoding of TFDS's features; a folder gets the two JSON
files by which `tfds.builder_from_directory` knows it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.ipc

from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.data.store import views
from m6rec_jax.io.atomic import replaced_folder

# Of a shard of texts, about; and rows that are written together before.
_SHARD_BYTES, _BATCH_ROWS = 256 << 20, 1_000
_FEATURES = "tensorflow_datasets.core.features."
_TIME = struct.Struct("<d")


class _Kind(NamedTuple):
    """How TFDS stores the values of a column: the field of `tf.train.Feature`, what is done to a
    value before and after, and type and encoding of a tensor.
    """

    field: str
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None
    tensor: tuple[str, str] | None = None


_KINDS: Mapping[str, _Kind] = {
    "str": _Kind("bytes_list", str.encode, bytes.decode),
    "int": _Kind("int64_list", tensor=("int64", "none")),
    # As a 32-bit number a time would be off by minutes.
    "time": _Kind("bytes_list", _TIME.pack, lambda b: _TIME.unpack(b)[0], ("float64", "bytes")),
    "value": _Kind("float_list", tensor=("float32", "none")),
}


class ShardFile(NamedTuple):
    """A file of records of a part: how many there are, and their bytes."""

    path: Path
    part: str
    records: int
    bytes: int


def examples(table: pa.Table, view: str) -> Iterator[bytes]:
    """The rows of a view, each as a serialized `tf.train.Example`."""
    described = [(name, _KINDS[kind], many) for name, (kind, many) in views.COLUMNS[view].items()]
    columns = [
        _lists(table.column(name).combine_chunks(), kind, many) for name, kind, many in described
    ]
    message = _message()
    for row in zip(*columns, strict=True):
        example = message()
        features = example.features.feature
        for (name, kind, _), values in zip(described, row, strict=True):
            listed = getattr(features[name], kind.field)
            listed.SetInParent()  # an empty list is there, too
            listed.value.extend(values)
        yield example.SerializeToString(deterministic=True)


def write_shard(path: Path, part: str, records: Iterable[bytes]) -> ShardFile:
    """Writes a file of records of a part."""
    number = size = 0
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _masked(length) + record + _masked(record))
            number += 1
            size += len(record)
    return ShardFile(path, part, number, size)


def write_view(target: Path, view: str, files: Sequence[ShardFile]) -> dict[str, int]:
    """Makes a folder that TFDS knows, in place of what is there.

    Args:
      target: `.../<config name>/<version>`.
      view: gives the columns.
      files: are moved there.

    Returns:
      part -> rows.
    """
    features = {name: _feature(*column) for name, column in sorted(views.COLUMNS[view].items())}
    described = {
        "pythonClassName": f"{_FEATURES}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    info = {
        "configName": target.parent.name,
        "description": f"{view}: see docs/prepared_data.md of m6rec_jax",
        "fileFormat": "tfrecord",
        "name": views.TFDS_NAME,
        "splits": [],
        "version": views.VERSION,
    }
    with replaced_folder(target) as folder:
        (folder / "features.json").write_text(json.dumps(described, indent=4))
        return _move(files, folder, info)


def add_part(target: Path, files: Sequence[ShardFile], out: Path) -> dict[str, int]:
    """Writes to a new folder what gives the view in `target` another part, as `write_view` does."""
    out.mkdir(parents=True)
    return _move(files, out, json.loads((target / views.INFO).read_text()))


def _move(files: Sequence[ShardFile], folder: Path, info: dict[str, Any]) -> dict[str, int]:
    """Gives files their places, and adds their parts to what TFDS knows of the view."""
    of_parts: dict[str, list[ShardFile]] = {part: [] for part in PARTS}
    for file in files:
        of_parts.setdefault(file.part, []).append(file)
    rows = {}
    for part, some in of_parts.items():
        if not some:
            continue
        for number, file in enumerate(some):
            name = f"{views.TFDS_NAME}-{part}.tfrecord-{number:05d}-of-{len(some):05d}"
            shutil.move(file.path, folder / name)
        rows[part] = sum(file.records for file in some)
        info["splits"].append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": part,
                "numBytes": str(sum(file.bytes for file in some)),
                "shardLengths": [str(file.records) for file in some],
            }
        )
    (folder / views.INFO).write_text(json.dumps(info, indent=2))
    return rows


def spool_rows(rows: Iterable[tuple[str, str, views.Row]], folder: Path) -> None:
    """Writes rows (view, part and row) to a folder, where they wait until all are there."""
    rows, writers = iter(rows), dict[tuple[str, str], Any]()
    with contextlib.ExitStack() as stack:
        while some := list(itertools.islice(rows, _BATCH_ROWS)):
            for view, part in dict.fromkeys((view, part) for view, part, _ in some):
                schema = views.schema(view)
                if (view, part) not in writers:
                    file = pa.ipc.new_file(str(folder / f"{view}-{part}"), schema)
                    writers[view, part] = stack.enter_context(file)
                of_both = [row for *names, row in some if names == [view, part]]
                writers[view, part].write_batch(pa.RecordBatch.from_pylist(of_both, schema))


def write_spooled(target: Path, view: str, folder: Path) -> dict[str, int]:
    """Makes the folder of a view, as `write_view` does, of its rows of `spool_rows`, shuffled."""
    files = []
    for seed, part in enumerate(PARTS):
        path = folder / f"{view}-{part}"
        if path.exists():
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            order = np.random.default_rng(seed).permutation(len(table))
            number = -(-table.nbytes // _SHARD_BYTES)
            for shard in range(number):
                records = examples(table.take(order[shard::number]), view)
                files.append(write_shard(folder / f"{view}-{part}-{shard}", part, records))
    return write_view(target, view, files)


def read_shards(folder: Path, view: str, part: str) -> Iterator[dict[str, Any]]:
    """Rows of a view, in order, as `pipeline.prepared_rows.read_rows` gives them."""
    for path in sorted(folder.glob(f"*-{part}.tfrecord-*")):
        with path.open("rb") as file:
            while head := file.read(12):  # its length, and a checksum
                record = file.read(int.from_bytes(head[:8], "little"))
                file.read(4)  # the record's checksum
                features = _message().FromString(record).features.feature
                row = {}
                for name, (kind, many) in views.COLUMNS[view].items():
                    values = list(getattr(features[name], _KINDS[kind].field).value)
                    if decode := _KINDS[kind].decode:
                        values = list(map(decode, values))
                    row[name] = values if many else values[0]
                yield row


@functools.cache
def _message() -> Any:
    """The class `tf.train.Example`; imported late, since who serves does without."""
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    return Example


def _lists(column: pa.Array, kind: _Kind, many: bool) -> Iterator[Sequence[Any]]:
    """The values of each row, as examples hold them; each distinct text is encoded once."""

    def encoded(values: pa.Array) -> list[Any]:
        listed = values.to_pylist()
        return list(map(kind.encode, listed)) if kind.encode else listed

    values = column.flatten() if many else column
    if pa.types.is_dictionary(values.type):
        distinct = encoded(values.dictionary)
        listed = [distinct[code] for code in values.indices.to_pylist()]
    else:
        listed = encoded(values)
    ends = np.cumsum(column.value_lengths()).tolist() if many else range(1, len(column) + 1)
    for start, end in itertools.pairwise([0, *ends]):
        yield listed[start:end]


def _feature(kind: str, many: bool) -> dict[str, object]:
    """One column as TFDS describes it."""
    inner: dict[str, object] = {"pythonClassName": f"{_FEATURES}text_feature.Text", "text": {}}
    if of_tensor := _KINDS[kind].tensor:
        tensor = {"shape": {}, "dtype": of_tensor[0], "encoding": of_tensor[1]}
        inner = {"pythonClassName": f"{_FEATURES}tensor_feature.Tensor", "tensor": tensor}
    if not many:
        return inner
    return {
        "pythonClassName": f"{_FEATURES}sequence_feature.Sequence",
        "sequence": {"feature": inner, "length": "-1"},
    }


def _masked(data: bytes) -> bytes:
    """The checksum of TFRecord: CRC-32C, rotated and moved."""
    checksum = google_crc32c.value(data)
    rotated = checksum >> 15 | checksum << 17
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFF_FFFF)

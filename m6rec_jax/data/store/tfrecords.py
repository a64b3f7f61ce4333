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
from collections import defaultdict
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
    """How TFDS stores the values of a column: the field of `tf.train.Feature`, its description of
    the column, and what is done to a value before it is written and after it is read.
    """

    field: str
    described: Mapping[str, Any]
    encode: Callable[[Any], Any] | None = None
    decode: Callable[[Any], Any] | None = None


def _tensor(kind: str, encoding: str) -> Mapping[str, Any]:
    tensor = {"shape": {}, "dtype": kind, "encoding": encoding}
    return {"pythonClassName": f"{_FEATURES}tensor_feature.Tensor", "tensor": tensor}


_TEXT = {"pythonClassName": f"{_FEATURES}text_feature.Text", "text": {}}
_KINDS: Mapping[str, _Kind] = {
    "str": _Kind("bytes_list", _TEXT, str.encode, bytes.decode),
    "int": _Kind("int64_list", _tensor("int64", "none")),
    # As a 32-bit number a time would be off by minutes.
    "time": _Kind(
        "bytes_list", _tensor("float64", "bytes"), _TIME.pack, lambda b: _TIME.unpack(b)[0]
    ),
    "value": _Kind("float_list", _tensor("float32", "none")),
}

# Of lists of numbers.
_DTYPES = {"int": np.int64, "value": np.float32}


class ShardFile(NamedTuple):
    """A file of records of a split: how many there are, and their bytes."""

    path: Path
    split: str
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


def write_shard(path: Path, split: str, records: Iterable[bytes]) -> ShardFile:
    """Writes a file of records of a split."""
    number = size = 0
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _masked(length) + record + _masked(record))
            number += 1
            size += len(record)
    return ShardFile(path, split, number, size)


def write_view(target: Path, view: str, files: Sequence[ShardFile]) -> dict[str, int]:
    """Makes a folder that TFDS knows, `.../<config name>/<version>`, in place of what is there;
    moves the files of a view there, and returns split -> rows.
    """
    features = {}
    for name, (kind, many) in sorted(views.COLUMNS[view].items()):
        features[name] = _KINDS[kind].described
        if many:
            features[name] = {
                "pythonClassName": f"{_FEATURES}sequence_feature.Sequence",
                "sequence": {"feature": features[name], "length": "-1"},
            }
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
        return add_splits(info, files, folder)


def add_splits(info: dict[str, Any], files: Sequence[ShardFile], folder: Path) -> dict[str, int]:
    """Moves files of new splits into a folder, and writes `INFO` with them; as `write_view`."""
    of_splits: dict[str, list[ShardFile]] = {split: [] for split in PARTS}
    for file in files:
        of_splits.setdefault(file.split, []).append(file)
    of_splits = {split: some for split, some in of_splits.items() if some}
    for split, some in of_splits.items():
        for number, file in enumerate(some):
            name = f"{views.TFDS_NAME}-{split}.tfrecord-{number:05d}-of-{len(some):05d}"
            shutil.move(file.path, folder / name)
        info["splits"].append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(file.bytes for file in some)),
                "shardLengths": [str(file.records) for file in some],
            }
        )
    (folder / views.INFO).write_text(json.dumps(info, indent=2))
    return {split: sum(file.records for file in some) for split, some in of_splits.items()}


def spool_rows(rows: Iterable[tuple[str, str, views.Row]], folder: Path) -> None:
    """Writes rows (view, split and row) to a folder, where they wait until all are there."""
    rows, writers = iter(rows), dict[tuple[str, str], Any]()
    with contextlib.ExitStack() as stack:
        while some := list(itertools.islice(rows, _BATCH_ROWS)):
            batches = defaultdict[tuple[str, str], list[views.Row]](list)
            for view, split, row in some:
                batches[view, split].append(row)
            for (view, split), batch in batches.items():
                schema = views.schema(view)
                if (view, split) not in writers:
                    file = pa.ipc.new_file(str(folder / f"{view}-{split}"), schema)
                    writers[view, split] = stack.enter_context(file)
                writers[view, split].write_batch(pa.RecordBatch.from_pylist(batch, schema))


def write_spooled(target: Path, view: str, folder: Path) -> dict[str, int]:
    """Makes the folder of a view, as `write_view` does, of its rows of `spool_rows`, shuffled."""
    files = []
    for seed, split in enumerate(PARTS):
        path = folder / f"{view}-{split}"
        if path.exists():
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            order = np.random.default_rng(seed).permutation(len(table))
            number = -(-table.nbytes // _SHARD_BYTES)
            for shard in range(number):
                records = examples(table.take(order[shard::number]), view)
                files.append(write_shard(folder / f"{view}-{split}-{shard}", split, records))
    return write_view(target, view, files)


def read_shards(
    folder: Path, view: str, split: str, columns: Iterable[str] | None = None
) -> Iterator[views.Row]:
    """Some columns, or all, of a view's rows, in order: str, int, float, lists of str, arrays."""
    kinds = [(name, *views.COLUMNS[view][name]) for name in columns or views.COLUMNS[view]]
    for path in sorted(folder.glob(f"*-{split}.tfrecord-*")):
        with path.open("rb") as file:
            while head := file.read(12):  # its length, and a checksum
                record = file.read(int.from_bytes(head[:8], "little"))
                file.read(4)  # the record's checksum
                features = _message().FromString(record).features.feature
                row = {}
                for name, kind, many in kinds:
                    values: Any = list(getattr(features[name], _KINDS[kind].field).value)
                    if decode := _KINDS[kind].decode:
                        values = list(map(decode, values))
                    if many and kind in _DTYPES:
                        values = np.asarray(values, _DTYPES[kind])
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
        return list(map(kind.encode, values.to_pylist())) if kind.encode else values.to_pylist()

    values = column.flatten() if many else column
    if pa.types.is_dictionary(values.type):
        distinct = encoded(values.dictionary)
        listed = [distinct[code] for code in values.indices.to_pylist()]
    else:
        listed = encoded(values)
    ends = np.cumsum(column.value_lengths()).tolist() if many else range(1, len(column) + 1)
    for start, end in itertools.pairwise([0, *ends]):
        yield listed[start:end]


def _masked(data: bytes) -> bytes:
    """The checksum of TFRecord: CRC-32C, rotated and moved."""
    checksum = google_crc32c.value(data)
    rotated = checksum >> 15 | checksum << 17
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFF_FFFF)

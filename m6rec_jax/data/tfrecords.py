"""Writes rows as shards of TFRecords that TFDS and seqio read, without tensorflow; reads some back.

A record is a `tf.train.Example`, in the encoding of TFDS's features; a folder gets the two JSON
files by which `tfds.builder_from_directory` knows it.
"""

from __future__ import annotations

import collections
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

from m6rec_jax.data import views
from m6rec_jax.io.atomic import replaced_folder

# Of a shard of texts, about; and rows that are written together before.
_SHARD_BYTES, _BATCH_ROWS = 256 << 20, 1_000
_FEATURES = "tensorflow_datasets.core.features."
# The field of `tf.train.Feature` for each kind of a column, and how a value is encoded for it.
_LISTS = {"str": "bytes_list", "time": "bytes_list", "int": "int64_list", "value": "float_list"}
_TIME = struct.Struct("<d")
_ENCODERS: Mapping[str, Callable[[Any], bytes]] = {"str": str.encode, "time": _TIME.pack}
_DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    "str": bytes.decode,
    "time": lambda value: _TIME.unpack(value)[0],
}
# As a 32-bit number a time would be told by minutes.
_TENSORS = {"time": ("float64", "bytes"), "int": ("int64", "none"), "value": ("float32", "none")}


class ShardFile(NamedTuple):
    """A file of records: where it is, how many there are, and their bytes."""

    path: Path
    records: int
    bytes: int


def examples(table: pa.Table, view: str) -> Iterator[bytes]:
    """The rows of a view, each as a serialized `tf.train.Example`."""
    columns = [
        _lists(table.column(name).combine_chunks(), kind, many)
        for name, (kind, many) in views.COLUMNS[view].items()
    ]
    message = _message()
    for row in zip(*columns, strict=True):
        example = message()
        features = example.features.feature
        for (name, (kind, _)), values in zip(views.COLUMNS[view].items(), row, strict=True):
            listed = getattr(features[name], _LISTS[kind])
            listed.SetInParent()  # an empty list is there, too
            listed.value.extend(values)
        yield example.SerializeToString(deterministic=True)


def write_shard(path: Path, records: Iterable[bytes]) -> ShardFile:
    """Writes a file of records."""
    number = size = 0
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _masked(length) + record + _masked(record))
            number += 1
            size += len(record)
    return ShardFile(path, number, size)


def write_view(target: Path, view: str, shards: Mapping[str, Sequence[ShardFile]]) -> None:
    """Makes a folder that TFDS knows, in place of what is there.

    Args:
      target: `.../<config name>/<version>`.
      view: gives the columns.
      shards: the files of each part, which are moved there.
    """
    features = {name: _feature(*column) for name, column in sorted(views.COLUMNS[view].items())}
    described = {
        "pythonClassName": f"{_FEATURES}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    with replaced_folder(target) as folder:
        (folder / "features.json").write_text(json.dumps(described, indent=4))
        info = {
            "configName": target.parent.name,
            "description": f"{view}: see docs/prepared_data.md of m6rec_jax",
            "fileFormat": "tfrecord",
            "name": views.TFDS_NAME,
            "splits": [_move(p, shards[p], folder) for p in views.PARTS if p in shards],
            "version": views.VERSION,
        }
        (folder / views.INFO).write_text(json.dumps(info, indent=2))


def add_part(target: Path, part: str, files: Sequence[ShardFile], out: Path) -> int:
    """Makes the files that give a view another part; returns how many rows it has.

    Args:
      target: folder of the view, of `write_view`, which stays as it is.
      part: its name.
      files: of the part, which are moved.
      out: a new folder for the new files of `target`.
    """
    out.mkdir(parents=True)
    info = json.loads((target / views.INFO).read_text())
    info["splits"].append(_move(part, files, out))
    (out / views.INFO).write_text(json.dumps(info, indent=2))
    return sum(file.records for file in files)


def _move(part: str, files: Sequence[ShardFile], folder: Path) -> dict[str, object]:
    """Gives the files of a part their place; returns the part as TFDS describes it."""
    for number, file in enumerate(files):
        name = f"{views.TFDS_NAME}-{part}.tfrecord-{number:05d}-of-{len(files):05d}"
        shutil.move(file.path, folder / name)
    return {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": part,
        "numBytes": str(sum(file.bytes for file in files)),
        "shardLengths": [str(file.records) for file in files],
    }


def spool_rows(
    rows: Iterable[tuple[str, str, views.Row]], folder: Path
) -> dict[str, dict[str, int]]:
    """Writes rows that come one by one to a folder, where they wait until all are there.

    Args:
      rows: view, part and row, in any order.

    Returns:
      view -> part -> number of rows.
    """
    waiting = collections.defaultdict[tuple[str, str], list[views.Row]](list)
    counts = collections.defaultdict[str, dict[str, int]](dict)
    writers: dict[tuple[str, str], Any] = {}
    with contextlib.ExitStack() as stack:

        def flush(view: str, part: str) -> None:
            some, schema = waiting.pop((view, part)), views.schema(view)
            if (view, part) not in writers:
                file = pa.ipc.new_file(str(folder / f"{view}-{part}"), schema)
                writers[view, part] = stack.enter_context(file)
            writers[view, part].write_batch(pa.RecordBatch.from_pylist(some, schema))
            counts[view][part] = counts[view].get(part, 0) + len(some)

        for view, part, row in rows:
            waiting[view, part].append(row)
            if len(waiting[view, part]) == _BATCH_ROWS:
                flush(view, part)
        for key in list(waiting):
            flush(*key)
    return counts


def write_spooled(target: Path, view: str, folder: Path) -> None:
    """Makes the folder of a view, as `write_view` does, of its rows of `spool_rows`, shuffled."""
    shards = {}
    for seed, part in enumerate(views.PARTS):
        path = folder / f"{view}-{part}"
        if path.exists():
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            order = np.random.default_rng(seed).permutation(len(table))
            number = -(-table.nbytes // _SHARD_BYTES)
            shards[part] = [
                write_shard(
                    folder / f"{view}-{part}-{shard}",
                    examples(table.take(order[shard::number]), view),
                )
                for shard in range(number)
            ]
    write_view(target, view, shards)


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
                    values = list(getattr(features[name], _LISTS[kind]).value)
                    if kind in _DECODERS:
                        values = list(map(_DECODERS[kind], values))
                    row[name] = values if many else values[0]
                yield row


@functools.cache
def _message() -> Any:
    """The class `tf.train.Example`; imported late, since who serves does without."""
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    return Example


def _lists(column: pa.Array, kind: str, many: bool) -> Iterator[Sequence[Any]]:
    """The values of each row, as examples hold them; each distinct text is encoded once."""

    def encoded(values: pa.Array) -> list[Any]:
        listed = values.to_pylist()
        return list(map(_ENCODERS[kind], listed)) if kind in _ENCODERS else listed

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
    if kind in _TENSORS:
        dtype, encoding = _TENSORS[kind]
        tensor = {"shape": {}, "dtype": dtype, "encoding": encoding}
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

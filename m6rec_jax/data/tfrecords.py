"""Writes rows as shards of TFRecords that TFDS and seqio read, without tensorflow; reads some back.

A record is a `tf.train.Example`, in the encoding of TFDS's features; a folder gets the two JSON
files by which `tfds.builder_from_directory` knows it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import mmap
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa

from m6rec_jax.data import views
from m6rec_jax.io.atomic import replaced_folder

# Of a shard of texts, about.
_SHARD_BYTES = 256 << 20
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
    columns = {
        name: _lists(table.column(name).combine_chunks(), kind, many)
        for name, (kind, many) in views.COLUMNS[view].items()
    }
    for row in zip(*columns.values(), strict=True):
        yield _example(view, dict(zip(columns, row, strict=True)))


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


class RowWriter:
    """Rows of one view that come one by one: they wait on disk until all are there to be shuffled.

    Args:
      folder: for them; is made.
      view: gives the columns.
    """

    def __init__(self, folder: Path, view: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._view = folder, view
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}
        self._ends: dict[str, list[int]] = {}

    @property
    def num_rows(self) -> dict[str, int]:
        """Of each part."""
        return {part: len(ends) - 1 for part, ends in self._ends.items()}

    def write(self, part: str, row: views.Row) -> None:
        """Adds a row to a part."""
        if part not in self._files:
            self._files[part] = self._stack.enter_context((self._folder / part).open("wb"))
            self._ends[part] = [0]
        values = {
            name: _encoded(kind, row[name] if many else [row[name]])
            for name, (kind, many) in views.COLUMNS[self._view].items()
        }
        size = self._files[part].write(_example(self._view, values))
        self._ends[part].append(self._ends[part][-1] + size)

    def build(self, target: Path) -> None:
        """Makes the view's folder, as `write_view` does; nothing can be written after it."""
        self._stack.close()
        shards = {
            part: list(self._shuffled(part, seed))
            for seed, part in enumerate(views.PARTS)
            if part in self._ends
        }
        write_view(target, self._view, shards)

    def _shuffled(self, part: str, seed: int) -> Iterator[ShardFile]:
        ends = np.asarray(self._ends[part])
        order = np.random.default_rng(seed).permutation(len(ends) - 1)
        number = -(-int(ends[-1]) // _SHARD_BYTES)
        with (
            (self._folder / part).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as rows,
        ):
            for shard in range(number):
                records = (rows[ends[n] : ends[n + 1]] for n in order[shard::number].tolist())
                yield write_shard(self._folder / f"{part}-{shard}", records)


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


def _example(view: str, columns: Mapping[str, Sequence[Any]]) -> bytes:
    """A row as a serialized example; the values of its columns are those of `_encoded`."""
    example = _message()()
    features = example.features.feature
    for name, (kind, _) in views.COLUMNS[view].items():
        listed = getattr(features[name], _LISTS[kind])
        listed.SetInParent()  # an empty list is there, too
        listed.value.extend(columns[name])
    return example.SerializeToString(deterministic=True)


def _lists(column: pa.Array, kind: str, many: bool) -> Iterator[Sequence[Any]]:
    """The values of each row, as examples hold them; each distinct text is encoded once."""
    values = column.values if many else column
    if pa.types.is_dictionary(values.type):
        distinct = _encoded(kind, values.dictionary.to_pylist())
        encoded: Sequence[Any] = [distinct[code] for code in values.indices.to_pylist()]
    else:
        encoded = _encoded(kind, values.to_pylist())
    offsets = column.offsets.to_pylist() if many else range(len(column) + 1)
    for start, end in itertools.pairwise(offsets):
        yield encoded[start:end]


def _encoded(kind: str, values: Sequence[Any]) -> Sequence[Any]:
    """Values of a column as examples hold them."""
    return list(map(_ENCODERS[kind], values)) if kind in _ENCODERS else values


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

"""Writes Arrow tables as shards of TFRecords that TFDS and seqio read, without tensorflow; reads
some rows back.

A record is a `tf.train.Example`, in the encoding of TFDS's features; a folder gets the two JSON
files by which `tfds.builder_from_directory` knows it. Of a column of lists whose values are
dictionary-encoded, each distinct value is encoded once.
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
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data import views
from m6rec_jax.io.atomic import replaced_folder

# Protocol buffers: the tag of a length-delimited field 1, 2 or 3.
_FIRST, _SECOND, _THIRD = b"\x0a", b"\x12", b"\x1a"
# Of a shard, about.
_SHARD_BYTES = 256 << 20
# Files that are written in one pass; systems allow a process few more.
_MOST_OPEN = 256
_FEATURES = "tensorflow_datasets.core.features."


def examples(table: pa.Table, view: str) -> Iterator[bytes]:
    """The rows of a view, each as a serialized `tf.train.Example`."""
    columns = sorted(views.COLUMNS[view].items())
    payloads = [
        _features(name, kind, table.column(name).combine_chunks(), many)
        for name, (kind, many) in columns
    ]
    for row in zip(*payloads, strict=True):
        entries = b"".join(row)
        yield _FIRST + _varint(len(entries)) + entries


def write_shard(path: Path, records: Iterable[bytes]) -> tuple[int, int]:
    """Writes a file of records; returns their number and their bytes."""
    number = size = 0
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _masked(length) + record + _masked(record))
            number += 1
            size += len(record)
    return number, size


def write_view(
    target: Path, view: str, shards: Mapping[str, Sequence[tuple[Path, int, int]]]
) -> None:
    """Makes a folder that TFDS knows, in place of what is there.

    Args:
      target: `.../<config name>/<version>`.
      view: gives the columns.
      shards: part -> for each of its files, its path, from where it is moved, and what
        `write_shard` returned.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(target) as folder:
        for part, files in shards.items():
            _move(files, part, folder)
        _write_metadata(folder, target.parent.name, view, shards)


def build_view(rendered: Path, target: Path, view: str) -> None:
    """Makes a view's folder, as `write_view` does, of what `views.RowWriter` wrote, shuffled."""
    shards = {
        part: _shards(rendered / f"{part}.parquet", view, seed)
        for seed, part in enumerate(views.PARTS)
        if (rendered / f"{part}.parquet").is_file()
    }
    write_view(target, view, shards)


def add_part(files: Sequence[tuple[Path, int, int]], target: Path, part: str, out: Path) -> None:
    """Makes the files that give a view another part.

    Args:
      files: as `write_view` takes them.
      target: folder of the view, of `write_view`, which stays as it is.
      part: its name.
      out: for the new files of `target`; exists.
    """
    _move(files, part, out)
    info = json.loads((target / views.INFO).read_text())
    info["splits"].append(_split(part, files))
    (out / views.INFO).write_text(json.dumps(info, indent=2))


def read_shards(folder: Path, view: str, part: str) -> Iterator[dict[str, Any]]:
    """Rows of a view, in order, as `pipeline.prepared_rows.read_rows` gives them."""
    # Late: writing goes without it, and it takes a second.
    from tensorflow_datasets.proto.tf_example_generated_pb2 import Example

    lists = {"str": "bytes_list", "time": "bytes_list", "int": "int64_list", "value": "float_list"}
    decoders: dict[str, Callable[[Any], Any]] = {
        "str": bytes.decode,
        "time": lambda value: struct.unpack("<d", value)[0],
    }
    for path in sorted(folder.glob(f"*-{part}.tfrecord-*")):
        with path.open("rb") as file:
            while head := file.read(12):  # its length, and a checksum
                record = file.read(int.from_bytes(head[:8], "little"))
                file.read(4)  # the record's checksum
                features = Example.FromString(record).features.feature
                row: dict[str, Any] = {}
                for name, (kind, many) in views.COLUMNS[view].items():
                    decode = decoders.get(kind, lambda value: value)
                    values = [decode(value) for value in getattr(features[name], lists[kind]).value]
                    row[name] = values if many else values[0]
                yield row


def _shards(path: Path, view: str, seed: int) -> list[tuple[Path, int, int]]:
    """The rows of a Parquet file, shuffled, as files beside it: see `write_view`."""
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        order = np.random.default_rng(seed).permutation(file.metadata.num_rows)
        number = -(-size // _SHARD_BYTES) or 1
        dealt = [path.with_name(f"{path.stem}-{shard}.arrow") for shard in range(number)]
        _deal(file, order, dealt)
    found = []
    for shard, rows in enumerate(dealt):
        with pa.OSFile(str(rows)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        # They lie there in the order of the whole file.
        places = np.argsort(np.argsort(order[shard::number]))
        scratch = path.with_name(f"{path.stem}-{shard}")
        records = examples(table.take(pa.array(places)), view)
        found.append((scratch, *write_shard(scratch, records)))
        rows.unlink()
    return found


def _deal(file: pq.ParquetFile, order: np.ndarray, dealt: Sequence[Path]) -> None:
    """Writes the rows of a file to several: file k gets `order[k::number]`, in the file's order."""
    owner = np.empty(len(order), np.int32)
    owner[order] = np.arange(len(order)) % len(dealt)
    for begin in range(0, len(dealt), _MOST_OPEN):
        with contextlib.ExitStack() as opened:
            writers = [
                opened.enter_context(pa.ipc.new_stream(str(path), file.schema_arrow))
                for path in dealt[begin : begin + _MOST_OPEN]
            ]
            first = 0
            for batch in file.iter_batches():
                own = owner[first : first + batch.num_rows] - begin
                for shard, writer in enumerate(writers):
                    writer.write_batch(batch.filter(pa.array(own == shard)))
                first += batch.num_rows


def _move(files: Sequence[tuple[Path, int, int]], part: str, folder: Path) -> None:
    for number, (path, _, _) in enumerate(files):
        name = f"{views.TFDS_NAME}-{part}.tfrecord-{number:05d}-of-{len(files):05d}"
        shutil.move(path, folder / name)


def _split(part: str, files: Sequence[tuple[Path, int, int]]) -> dict[str, object]:
    """A part as TFDS describes it."""
    return {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": part,
        "numBytes": str(sum(size for _, _, size in files)),
        "shardLengths": [str(records) for _, records, _ in files],
    }


def _write_metadata(
    folder: Path, config: str, view: str, shards: Mapping[str, Sequence[tuple[Path, int, int]]]
) -> None:
    features = {name: _feature(*column) for name, column in sorted(views.COLUMNS[view].items())}
    described = {
        "pythonClassName": f"{_FEATURES}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(described, indent=4))
    info = {
        "configName": config,
        "description": f"{view}: see docs/prepared_data.md of m6rec_jax",
        "fileFormat": "tfrecord",
        "name": views.TFDS_NAME,
        "splits": [_split(part, files) for part, files in shards.items()],
        "version": views.VERSION,
    }
    (folder / views.INFO).write_text(json.dumps(info, indent=2))


def _feature(kind: str, many: bool) -> dict[str, object]:
    """One column as TFDS describes it."""
    inner: dict[str, object]
    if kind == "str":
        inner = {"pythonClassName": f"{_FEATURES}text_feature.Text", "text": {}}
    else:
        # As a number a time would be stored in 32 bits: a minute is then the finest step.
        dtype, encoding = {
            "time": ("float64", "bytes"),
            "int": ("int64", "none"),
            "value": ("float32", "none"),
        }[kind]
        tensor = {"shape": {}, "dtype": dtype, "encoding": encoding}
        inner = {"pythonClassName": f"{_FEATURES}tensor_feature.Tensor", "tensor": tensor}
    if not many:
        return inner
    return {
        "pythonClassName": f"{_FEATURES}sequence_feature.Sequence",
        "sequence": {"feature": inner, "length": "-1"},
    }


def _features(name: str, kind: str, column: pa.Array, many: bool) -> Iterator[bytes]:
    """A column's entry of the map of features, row by row."""
    if many:
        offsets = column.offsets.to_numpy()
        values = column.values
    else:
        offsets = np.arange(len(column) + 1)
        values = column
    key = name.encode()
    begin = _FIRST + _varint(len(key)) + key + _SECOND
    tag = {"str": _FIRST, "time": _FIRST, "int": _THIRD, "value": _SECOND}[kind]
    data, ends = _encoded(kind, values)
    packed = kind in ("int", "value")

    def entry(listed: bytes) -> bytes:
        if packed and listed:
            listed = _FIRST + _varint(len(listed)) + listed
        feature = tag + _varint(len(listed)) + listed
        # The key is short: its length and the tag before it are one byte each.
        feature = begin + _varint(len(feature)) + feature
        return _FIRST + _varint(len(feature)) + feature

    # Lists of texts hardly ever come twice, all else does.
    made = entry if many and kind == "str" else functools.lru_cache(maxsize=10_000)(entry)
    for start, end in itertools.pairwise(ends[offsets].tolist()):
        yield made(data[start:end])


def _encoded(kind: str, values: pa.Array) -> tuple[bytes, np.ndarray]:
    """All values as they stand in their lists, one after the other, and where each begins."""
    if kind == "str":
        dictionary = values.dictionary if pa.types.is_dictionary(values.type) else values
        encoded = [
            _FIRST + _varint(len(text)) + text for text in dictionary.cast(pa.binary()).to_pylist()
        ]
        if dictionary is not values:
            taken = pa.array(encoded, pa.large_binary()).take(values.indices)
            ends = np.frombuffer(taken.buffers()[1], np.int64)[: len(taken) + 1]
            return taken.buffers()[2].to_pybytes() if taken.buffers()[2] else b"", ends
    elif kind == "time":
        encoded = [_FIRST + b"\x08" + struct.pack("<d", value) for value in values.to_pylist()]
    elif kind == "value":
        return values.to_numpy().astype("<f4").tobytes(), 4 * np.arange(len(values) + 1)
    else:
        encoded = list(map(_varint, values.to_pylist()))
    return b"".join(encoded), np.concatenate([[0], np.cumsum(list(map(len, encoded)))]).astype(
        np.int64
    )


def _varint(number: int) -> bytes:
    if 0 <= number < len(_SHORT):
        return _SHORT[number]
    return _long_varint(number)


def _long_varint(number: int) -> bytes:
    number &= 0xFFFF_FFFF_FFFF_FFFF  # of a negative one, the two's complement
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


_SHORT = [_long_varint(number) for number in range(1 << 14)]


def _masked(data: bytes) -> bytes:
    """The checksum of TFRecord: CRC-32C, rotated and moved."""
    checksum = google_crc32c.value(data)
    rotated = checksum >> 15 | checksum << 17
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFF_FFFF)

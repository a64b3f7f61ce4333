"""`m6rec export --format onnx`: programs for ONNX Runtime, on servers and in browsers.

jax2onnx converts what JAX traces, without loops over layers; products are of float32. Each program
is a file; their weights are in one more, each of them once.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from m6rec_jax.export.device_client import ONNX_FORMAT
from m6rec_jax.export.device_programs import CLIENT, Signature, write_device_export
from m6rec_jax.export.held_out import Asked
from m6rec_jax.model.dense import is_plain

CHECK, WEIGHTS = CLIENT, "weights.bin"
# That are scored at a time.
CANDIDATES = 32
# Of constants that are weights; smaller ones stay in a program's own file.
_LEAST_BYTES = 1024


def write(folder: Path, asked: Asked) -> None:
    """See `write_device_export`. Texts are left to other formats."""
    write_device_export(folder, asked, "float32", ONNX_FORMAT, convert, CANDIDATES, ["generate"])


def convert(folder: Path, signatures: Mapping[str, Signature], precision: str) -> None:
    """Writes each program, and a file of weights."""
    del precision
    places: dict[bytes, int] = {}
    with (folder / WEIGHTS).open("wb") as weights:
        for name, own in signatures.items():
            proto = _converted(name, own)
            _move_weights(proto, weights, places)
            (folder / f"{name}.onnx").write_bytes(proto.SerializeToString())


def _converted(name: str, own: Signature) -> Any:
    """A program as ONNX's message."""
    # Of the extra `onnx`. They warn of what nobody needs.
    for library in ("jax2onnx", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    from jax2onnx import to_onnx

    token = is_plain.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return to_onnx(
                own.function,
                list(own.inputs.values()),
                model_name=name,
                input_names=list(own.inputs),
                output_names=list(own.outputs),
            )
    finally:
        is_plain.reset(token)


def _move_weights(proto: Any, weights: BinaryIO, places: dict[bytes, int]) -> None:
    """Large constants to the common file, but for those that are there already."""
    from onnx import TensorProto
    from onnx.external_data_helper import set_external_data

    for tensor in proto.graph.initializer:
        data = tensor.raw_data
        if len(data) < _LEAST_BYTES:
            continue
        digest = hashlib.sha256(data).digest()
        if digest not in places:
            places[digest] = weights.tell()
            weights.write(data)
        set_external_data(tensor, WEIGHTS, places[digest], len(data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL

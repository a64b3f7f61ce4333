"""`m6rec export --format litert`: one file of programs for phones, and a client that runs it.

`int8` stores weights as bytes and multiplies bytes.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import tensorflow as tf
from jax import export as jax_export

from m6rec_jax.export.device_client import LITERT_FORMAT, MODEL
from m6rec_jax.export.device_programs import CLIENT, Signature, write_device_export
from m6rec_jax.export.held_out import Asked
from m6rec_jax.export.tensorflow_op import call_program

CHECK = CLIENT
PRECISIONS = ("float32", "float16", "int8")
# That are scored at a time.
CANDIDATES = 8


def write(folder: Path, asked: Asked) -> None:
    """See `write_device_export`; the precision is one of `PRECISIONS`, None: int8."""
    precision = asked.precision or "int8"
    write_device_export(folder, asked, precision, LITERT_FORMAT, convert, CANDIDATES)


def convert(folder: Path, signatures: Mapping[str, Signature], precision: str) -> None:
    """Writes the programs as one flatbuffer, which holds each weight once."""
    functions = {name: _function(own) for name, own in signatures.items()}
    module = tf.Module()
    module.functions = list(functions.values())
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(module, saved, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=list(functions))
        if precision == "float16":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        data: bytes = converter.convert()
    (folder / MODEL).write_bytes(_quantized(data) if precision == "int8" else data)


def _function(own: Signature) -> Any:
    """A program as a concrete function, without the inputs that it does not read."""
    exported = jax_export.export(jax.jit(own.function), platforms=["cpu"])(*own.inputs.values())
    kept = [list(own.inputs)[place] for place in exported.module_kept_var_idx]

    def run(**inputs: Any) -> dict[str, Any]:
        found = call_program(exported, [inputs[name] for name in kept])
        return dict(zip(own.outputs, found, strict=True))

    specs = {
        name: tf.TensorSpec(own.inputs[name].shape, own.inputs[name].dtype, name=name)
        for name in kept
    }
    return tf.function(run).get_concrete_function(**specs)


def _quantized(data: bytes) -> bytes:
    """With weights of products as bytes, a scale per channel; inputs are rounded at run time."""
    # Of the extra `litert`.
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        path.write_bytes(data)
        # It reports on standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            made = quantizer.Quantizer(str(path), recipe.dynamic_wi8_afp32()).quantize()
    return _shared(bytes(made.quantized_model))


def _shared(data: bytes) -> bytes:
    """The file with equal weights once: the quantizer puts all of them, aligned, at its end."""
    # Of the extra `litert`.
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = schema.Model.GetRootAs(data, 0)
    buffers = [model.Buffers(number) for number in range(model.BuffersLength())]
    placed = {
        number: data[own.Offset() : own.Offset() + own.Size()]
        for number, own in enumerate(buffers)
        if own.Size() > 1
    }
    if not placed:
        return data
    found = bytearray(data[: min(buffers[number].Offset() for number in placed)])
    offsets: dict[bytes, int] = {}
    for content in placed.values():
        if content not in offsets:
            found += bytes(-len(found) % 16)
            offsets[content] = len(found)
            found += content
    model = schema.Model.GetRootAs(found, 0)
    for number, content in placed.items():
        flatbuffer_utils.update_packed_buffer(
            model.Buffers(number), offset=offsets[content], size=len(content)
        )
    return bytes(found)

"""A program of `jax.export` as an operation of a TensorFlow graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from jax import export as jax_export
from jaxlib.mlir.dialects import stablehlo
from tensorflow.compiler.tf2xla.python import xla as tf_xla

# What TensorFlow 2.21 reads; newer versions of jax write newer programs.
STABLEHLO_VERSION = "1.13.7"


def call_program(exported: jax_export.Exported, arguments: Sequence[Any]) -> list[Any]:
    """Its results, for those of its arguments that it reads (`module_kept_var_idx`), in order."""
    module = stablehlo.serialize_portable_artifact_str(exported.mlir_module(), STABLEHLO_VERSION)
    found = tf_xla.call_module(
        [tf.convert_to_tensor(value) for value in arguments],
        version=exported.calling_convention_version,
        module=module,
        Tout=[tf.as_dtype(aval.dtype) for aval in exported.out_avals],
        Sout=[
            [size if isinstance(size, int) else None for size in aval.shape]
            for aval in exported.out_avals
        ],
        platforms=[name.upper() for name in exported.platforms],
        use_shardy_partitioner=False,
    )
    return list(found)

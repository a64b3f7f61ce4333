"""What TF Serving reads beside a SavedModel: requests that warm it up, and how it batches."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

WARM_UP = "assets.extra/tf_serving_warmup_requests"
BATCHING = "batching.txt"


def write_warm_up(
    version: Path,
    functions: Mapping[str, Any],
    task_of: Mapping[str, str],
    batch_sizes: Sequence[int],
    candidates: Sequence[int],
) -> None:
    """Writes a request of each size, so that no user's request waits for a compilation.

    Args:
      version: folder of the SavedModel.
      functions: signatures by name.
      task_of: by signature, a task that it may be asked for.
      batch_sizes, candidates: that programs are compiled for.
    """
    # Of the extra `saved-model`.
    from tensorflow_serving.apis.predict_pb2 import PredictRequest
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

    path = version / WARM_UP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for name, function in functions.items():
            inputs = list(inspect.signature(function.python_function).parameters)
            lists = candidates if "candidates" in inputs else [1]
            for size, number in itertools.product(batch_sizes, lists):
                values: dict[str, Any] = {
                    "history": [["a"]] * size,
                    "history_length": [1] * size,
                    "candidates": [["a"] * number] * size,
                    "num_candidates": [number] * size,
                    "repeats": [[False] * number] * size,
                    "text": ["a"] * size,
                    "prefix": [""] * size,
                    "task": [task_of[name]] * size,
                }
                request = PredictRequest()
                request.model_spec.signature_name = name
                for key in inputs:
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(values[key]))
                log = PredictionLog(predict_log=PredictLog(request=request))
                file.write(log.SerializeToString())


def write_batching(path: Path, batch_sizes: Sequence[int]) -> None:
    """Writes the file of `--batching_parameters_file`; batches have the sizes of programs.

    Histories and lists of candidates are of unlike lengths, and say so themselves.
    """
    sizes = "".join(f"allowed_batch_sizes: {size}\n" for size in batch_sizes)
    path.write_text(
        f"max_batch_size {{ value: {batch_sizes[-1]} }}\n"
        "batch_timeout_micros { value: 2000 }\n"
        "max_enqueued_batches { value: 100 }\n"
        "num_batch_threads { value: 4 }\n"
        f"pad_variable_length_inputs: true\n{sizes}",
        "utf-8",
    )

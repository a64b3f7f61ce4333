"""Checks the SavedModel of the folder that this file lies in; needs tensorflow and tensorflow_text.

    python exported/films/check.py

Asks every signature in text about the held-out rows, one, seven and 64 requests at a time, and
compares the answers with the model's own. Prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the ops of the graph)

SIZES = (1, 7, 64)


def check(folder: Path) -> dict[str, Any]:
    """By signature and task `rows`, `largest_difference` of the largest number, `equal` texts.

    Raises:
      SystemExit: a file is missing or changed; names it.
    """
    manifest = json.loads((folder / "export.json").read_text("utf-8"))
    for name, checksum in manifest["files"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            raise SystemExit(f"{path} is missing or damaged; export the model anew")
    model = tf.saved_model.load(str(folder / manifest["version"]))
    asked = json.loads((folder / "held_out.json").read_text("utf-8"))
    results: dict[str, Any] = {}
    for signature, task in dict.fromkeys((one["signature"], one["task"]) for one in asked):
        own = [one for one in asked if (one["signature"], one["task"]) == (signature, task)]
        apart, largest, equal = 0.0, 1e-30, 0
        for part in _parts(own):
            found = model.signatures[signature](**arguments(part))
            values = found["scores"] if "scores" in found else next(iter(found.values()))
            for one, answer in zip(part, values.numpy(), strict=True):
                if isinstance(one["output"], str):
                    equal += answer.decode("utf-8") == one["output"]
                else:
                    expected = np.asarray(one["output"], np.float32)
                    # Unlike `max` this keeps NaN.
                    apart = np.maximum(apart, np.abs(answer[: len(expected)] - expected).max())
                    largest = max(largest, float(np.abs(expected).max()))
        is_text = isinstance(own[0]["output"], str)
        results[f"{signature} {task}"] = {
            "rows": len(own),
            "largest_difference": float(apart / largest),
            "equal": equal / len(own) if is_text else 1.0,
        }
    return results


def arguments(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Requests as the signature takes them, lists padded at the end."""
    found = {"task": tf.constant([one["task"] for one in requests])}
    for name in requests[0]["inputs"].keys() - {"labels"}:
        values = [one["inputs"][name] for one in requests]
        if isinstance(values[0], str):
            found[name] = tf.constant(values)
            continue
        width = max(1, *map(len, values))
        filler = False if name == "repeats" else ""
        found[name] = tf.constant([[*own, *[filler] * (width - len(own))] for own in values])
        if name != "repeats":
            counted = "history_length" if name == "history" else "num_candidates"
            found[counted] = tf.constant(list(map(len, values)), tf.int32)
    return found


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start, sizes = 0, list(SIZES)
    while start < len(rows):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        yield rows[start : start + size]
        start += size


if __name__ == "__main__":
    at = Path(__file__).resolve().parent
    results, manifest = check(at), json.loads((at / "export.json").read_text("utf-8"))
    found = {
        "results": results,
        "tensorflow": tf.__version__,
        "imported": sorted({"flax", "m6rec_jax"} & set(sys.modules)),
    }
    print(json.dumps(found))
    wrong = [
        name
        for name, own in results.items()
        if not own["largest_difference"] <= manifest["tolerance"]
        or own["equal"] < manifest["equal_texts"]
    ]
    sys.exit(f"not as the model answers: {', '.join(wrong)}" if wrong else 0)

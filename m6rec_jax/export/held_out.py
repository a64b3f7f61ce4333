"""Asks a model's engines about held-out rows of its tasks, so that programs are recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.errors import DataError
from m6rec_jax.export.recording import Recorder
from m6rec_jax.pipeline.prepared_rows import TaskPart
from m6rec_jax.pipeline.registration import TaskInfo

# The sizes of batches that every program is checked with.
BATCH_SIZES = (1, 7, 64)
KINDS = ("scoring", "retrieval", "generation")


def ask(
    model: LoadedModel,
    task: TaskInfo,
    recorder: Recorder,
    *,
    split: str = "test",
    rows: int = 500,
    num_beams: int = 4,
) -> int:
    """Answers the first rows of a task's part; returns how many there were.

    Args:
      model, task: one of the model's tasks, of `KINDS`.
      recorder: keeps programs and calls.
      split, rows: which rows, at most.
      num_beams: of beam search.

    Raises:
      DataError: the part has no rows, or its data are not on this machine.
    """
    found = list(itertools.islice(TaskPart(task, split).rows(), rows))
    if not found:
        raise DataError(f"{task.name} has no rows in {split!r} to check an export with")
    settings = model.settings
    options: dict[str, Any] = {
        "batch_sizes": BATCH_SIZES,
        "source_buckets": (settings.source_length,),
        "target_buckets": (settings.target_length,),
        "segments": None,
    }
    if task.kind == "scoring":
        scorer = model.scorer(task.name, programs=recorder, **options)
        for part in _parts(found):
            scorer.score_requests([r["history"] for r in part], [r["candidates"] for r in part])
    elif task.kind == "retrieval":
        retriever = model.retriever(task.name, programs=recorder, **options)
        for part in _parts(found):
            retriever.embed_users([r["history"] for r in part])
            retriever.embed_items([text for r in part for text in r["items"]])
    else:
        greedy = model.generator(task.name, programs=recorder, **options)
        beams = model.generator(task.name, programs=recorder, **options)
        for part in _parts(found):
            asked = [r["source"] for r in part], [r["prefix"] for r in part]
            greedy.greedy(*asked)
            beams.beam_search(*asked, num_beams=num_beams)
    return len(found)


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """One row, then seven, then the rest in the largest batches."""
    start = 0
    for size in itertools.chain(BATCH_SIZES, itertools.repeat(BATCH_SIZES[-1])):
        if start >= len(rows):
            return
        yield rows[start : start + size]
        start += size

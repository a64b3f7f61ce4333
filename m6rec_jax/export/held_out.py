"""Held-out rows of a model's tasks: its engines' answers, and through a recorder their programs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.errors import DataError
from m6rec_jax.export.recording import Recorder
from m6rec_jax.pipeline.prepared_rows import TaskPart
from m6rec_jax.pipeline.registration import TaskInfo

# The sizes of batches that every program is checked with.
BATCH_SIZES = (1, 7, 64)
KINDS = ("scoring", "retrieval", "generation")


class Answered(NamedTuple):
    """One request in text, and what the model answered.

    Attributes:
      signature: 'score', 'user', 'item' or 'generate'.
      task: that was asked.
      inputs: `history` (segments), `candidates` or `text` (a list and a text), `prefix`.
      output: scores, a vector or a text.
    """

    signature: str
    task: str
    inputs: Mapping[str, Any]
    output: Any


def ask(
    model: LoadedModel,
    task: TaskInfo,
    recorder: Recorder,
    *,
    split: str = "test",
    rows: int = 500,
    num_beams: int = 4,
) -> list[Answered]:
    """Answers the first rows of a task's part.

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
    answered: list[Answered] = []
    for part in _parts(found):
        answered += answer(model, task.name, task.kind, part, recorder, num_beams)
    return answered


def answer(
    model: LoadedModel,
    task: str,
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    recorder: Recorder,
    num_beams: int = 4,
) -> list[Answered]:
    """Answers rows as the task's view has them; arguments as `ask`."""
    settings = model.settings
    options: dict[str, Any] = {
        "batch_sizes": BATCH_SIZES,
        "source_buckets": (settings.source_length,),
        "target_buckets": (settings.target_length,),
        "segments": None,
        "programs": recorder,
    }
    if kind == "scoring":
        columns = [r["history"] for r in rows], [r["candidates"] for r in rows]
        scores = model.scorer(task, **options).score_requests(*columns)
        return [
            Answered("score", task, {"history": history, "candidates": candidates}, own)
            for history, candidates, own in zip(*columns, scores, strict=True)
        ]
    if kind == "retrieval":
        retriever = model.retriever(task, **options)
        histories = [r["history"] for r in rows]
        texts = list(dict.fromkeys(text for r in rows for text in r["items"]))
        users, items = retriever.embed_users(histories), retriever.embed_items(texts)
        return [
            *(
                Answered("user", task, {"history": h}, u)
                for h, u in zip(histories, users, strict=True)
            ),
            *(Answered("item", task, {"text": t}, i) for t, i in zip(texts, items, strict=True)),
        ]
    # One room for texts of all tasks.
    generator = model.generator(**options)
    asked = [r["source"] for r in rows], [r["prefix"] for r in rows]
    texts = generator.greedy(*asked, tasks=[task] * len(rows))
    generator.beam_search(*asked, num_beams=num_beams, tasks=[task] * len(rows))
    return [
        Answered("generate", task, {"history": source, "prefix": prefix}, text.text)
        for source, prefix, text in zip(*asked, texts, strict=True)
    ]


def _parts(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """One row, then seven, then the rest in the largest batches."""
    start = 0
    for size in itertools.chain(BATCH_SIZES, itertools.repeat(BATCH_SIZES[-1])):
        if start >= len(rows):
            return
        yield rows[start : start + size]
        start += size

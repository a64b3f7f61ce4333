"""Rows of the tiny films, asked of a model's engines."""

from collections.abc import Mapping
from typing import Any

from m6rec_jax.export import held_out
from m6rec_jax.export.recording import Recorder
from tests.pipeline import shop_rows

TASKS = {"ctr": "scoring", "next": "retrieval", "titles": "generation"}
HISTORIES = [["user, likes drama", "liked a film"], ["user"], ["user", "hated one", "Monday"]]
CANDIDATES = [["Film A"], list(shop_rows.ITEMS), ["B", "C"]]


def ask(
    model: Any, recorder: Recorder, tasks: Mapping[str, str] = TASKS
) -> list[held_out.Answered]:
    """Three rows of each task, and then six."""
    answered = []
    for task, kind in tasks.items():
        rows = [
            {"history": h, "source": h, "prefix": prefix, "candidates": texts, "items": texts}
            for h, prefix, texts in zip(HISTORIES, ("", "film", ""), CANDIDATES, strict=True)
        ]
        for copies in (1, 2):
            answered += held_out.answer(model, task, kind, rows * copies, recorder)
    return answered

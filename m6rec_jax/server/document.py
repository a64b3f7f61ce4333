"""The OpenAPI document of what is served: columns of its data sets, and examples that work."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from fastapi import FastAPI

from m6rec_jax.errors import M6RecError
from m6rec_jax.server import schemas
from m6rec_jax.server.errors import STATUSES
from m6rec_jax.server.snapshots import ANY_TASK, Snapshot

_SAMPLES = {"string": "text", "int": 24, "float": 0.5, "bool": True, "list<string>": ["text"]}
# Schemas that each data set has of its own.
_OF_DATA_SETS = ("User", "Event", "Item", "Statistics", "Known")
_JOBS = {
    "Score": "scoring",
    "Retrieve": "retrieval",
    "Recommend": "retrieval",
    "Write": "generation",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route, for the document."""
    return {s: {"model": schemas.Error, "description": STATUSES[s]} for s in statuses}


def of_snapshot(app: FastAPI, snapshot: Snapshot | None) -> dict[str, Any]:
    """The document of an app; without a snapshot it says nothing of columns."""
    document = copy.deepcopy(FastAPI.openapi(app))
    if snapshot is None:
        return document
    components = document["components"]["schemas"]
    for name in _OF_DATA_SETS:
        components[name] = {"anyOf": []}
    for types in snapshot.all_row_types():
        for name, schema in types.schemas().items():
            components[name] = schema
            if (kind := name.partition("-")[0]) in _OF_DATA_SETS:
                components[kind]["anyOf"].append({"$ref": f"#/components/schemas/{name}"})
    for name, example in _examples(snapshot).items():
        components[name]["examples"] = [example]
    return document


def _examples(snapshot: Snapshot) -> dict[str, Any]:
    """A body that is answered, by schema; none where nothing can be asked."""
    found: dict[str, Any] = {}
    for name, job in _JOBS.items():
        for task in snapshot.tasks:
            if snapshot.answers(task, job) and (row := _row(snapshot, task, job)):
                found[name] = row
                break
    tasks = {job: found[name]["task"] for name, job in _JOBS.items() if name in found}
    if "scoring" in tasks:
        documents = [{"id": item} for item in found["Score"]["candidates"]]
        found["Rerank"] = {"model": tasks["scoring"], "query": "liked it", "documents": documents}
        instance = {k: v for k, v in found["Score"].items() if k != "task"}
        parameters = {"task": tasks["scoring"], "job": "scoring"}
        found["Predict"] = {"instances": [instance], "parameters": parameters}
    if "retrieval" in tasks:
        found["Embeddings"] = {"model": tasks["retrieval"], "input": "liked it"}
    if "generation" in tasks:
        found["Completion"] = {"model": tasks["generation"], "prompt": "liked it"}
    if snapshot.conversation is not None:
        messages = [{"role": "user", "content": "I liked it. What else?"}]
        found["Chat"] = {"model": ANY_TASK, "messages": messages}
    return found


def _row(snapshot: Snapshot, task: str, job: str) -> dict[str, Any] | None:
    """A request of a task that can be answered; None: none was thought of."""
    data = snapshot.service.data(task, job)
    ids = list(itertools.islice(data.items, 3))
    yesterday = int(snapshot.since) - 86_400
    event: dict[str, Any] = {"item": ids[0], "time": yesterday} if ids else {}
    if event and data.spec.events.value:
        liked = data.spec.label.at_least
        event["value"] = 1 if liked is None else liked
    user = {name: _SAMPLES[kind] for name, kind in data.spec.users.columns.items()}
    row: dict[str, Any] = {"task": task, "history": [event] if event else []}
    row |= {"k": 3} if job == "retrieval" else {"candidates": ids[1:]}
    for more in ({}, {"user": user}):
        try:
            snapshot.accept({k: v for k, v in (row | more).items() if k != "task"}, task, job)
        except (M6RecError, ValueError):
            continue
        return row | more
    return None

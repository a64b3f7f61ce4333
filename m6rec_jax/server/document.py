"""The OpenAPI document of what is served: columns of its data sets, and examples that work."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import msgspec
from fastapi import FastAPI

from m6rec_jax.errors import M6RecError
from m6rec_jax.server.errors import ApiError
from m6rec_jax.server.snapshots import ANY_TASK, Snapshot

_SAMPLES = {"string": "text", "int": 24, "float": 0.5, "bool": True, "list<string>": ["text"]}
# Schemas of bodies that are requests of a job.
_JOBS = {"scoring": ["Score"], "retrieval": ["Retrieve", "Recommend"], "generation": ["Write"]}


def of_snapshot(app: FastAPI, snapshot: Snapshot | None) -> dict[str, Any]:
    """The document of an app; without a snapshot it says nothing of columns."""
    document = copy.deepcopy(FastAPI.openapi(app))
    if snapshot is None:
        return document
    components = document["components"]["schemas"]
    data_sets = list(snapshot.data_sets.values())
    for name in data_sets[0].kinds if data_sets else ():
        shown, parts = msgspec.json.schema_components(
            [types.kinds[name] for types in data_sets], ref_template="#/components/schemas/{name}"
        )
        components |= parts
        components[name] = {"anyOf": list(shown)}
    for name, example in _examples(snapshot).items():
        components[name]["examples"] = [example]
    return document


def _examples(snapshot: Snapshot) -> dict[str, Any]:
    """A body that is answered, by schema; none where nothing can be asked."""
    bodies: dict[str, Any] = {}
    for task, job in sorted(snapshot.handlers):
        if (
            job not in _JOBS
            or _JOBS[job][0] in bodies
            or (row := _row(snapshot, task, job)) is None
        ):
            continue
        bodies |= {name: {"task": task, **row} for name in _JOBS[job]}
        match job:
            case "scoring":
                documents: list[Any] = [{"id": item} for item in row["candidates"]] or ["a film"]
                bodies["Rerank"] = {"model": task, "query": row, "documents": documents}
                parameters = {"task": task, "job": job}
                bodies["Predict"] = {"instances": [row], "parameters": parameters}
            case "retrieval":
                bodies["Embeddings"] = {"model": task, "input": "liked it"}
            case "generation":
                bodies["Completion"] = {"model": task, "prompt": "liked it"}
    if snapshot.conversation is not None:
        messages = [{"role": "user", "content": "I liked it. What else?"}]
        bodies["Chat"] = {"model": ANY_TASK, "messages": messages}
    return bodies


def _row(snapshot: Snapshot, task: str, job: str) -> dict[str, Any] | None:
    """A request of a task that can be answered; None: none was thought of."""
    data = snapshot.handlers[task, job].data
    ids = list(itertools.islice(data.items, 3))
    event: dict[str, Any] = {"item": ids[0], "time": int(snapshot.since) - 86_400} if ids else {}
    if event and data.spec.events.value:
        event["value"] = data.spec.label.at_least or 1
    row: dict[str, Any] = {"history": [event] if event else []}
    row |= {"k": 3} if job == "retrieval" else {"candidates": ids[1:]}
    user = {name: _SAMPLES[kind] for name, kind in data.spec.users.columns.items()}
    for body in (row, row | {"user": user}):
        try:
            snapshot.accept(body, task, job)
        except (M6RecError, ApiError):
            continue
        return body
    return None

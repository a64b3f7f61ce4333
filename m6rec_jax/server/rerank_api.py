"""`/v1/rerank` and `/v2/rerank`, as Cohere's and Jina's clients call them."""

from __future__ import annotations

import dataclasses
import re
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.requests.request import Request as UserRequest
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Asking, Server, asking
from m6rec_jax.server.errors import StrictRoute
from m6rec_jax.server.snapshots import ANY_TASK, Snapshot, text_request
from m6rec_jax.text.records import Item

# Kinds of tasks that score candidates, the best for it first, and the job that does.
_JOBS = {"scoring": "scoring", "likelihood": "likelihood"}


def routes(server: Server) -> APIRouter:
    """The routes, for `FastAPI.include_router`."""
    router = APIRouter(route_class=StrictRoute, tags=["Cohere and Jina"])

    @router.post("/v1/rerank")
    @router.post("/v2/rerank")
    async def rerank(body: schemas.Rerank, request: Request) -> dict[str, Any]:
        """Documents, likeliest first, for a user described in text."""
        async with asking(server, request) as asked:
            task, job = _task(asked, body.model)
            accepted = await run_in_threadpool(_accept, asked.snapshot, body, task, job)
            (result,) = await asked.answer(accepted)
            scores = [item.score for item in result.items]  # type: ignore[attr-defined]
            order = sorted(range(len(scores)), key=lambda index: -scores[index])
            results = [
                {"index": index, "relevance_score": scores[index]}
                | ({"document": _shown(body.documents[index])} if body.return_documents else {})
                for index in order[: body.top_n]
            ]
            text = accepted.text
            texts = [*text.history, *text.candidates]
            tokens = await run_in_threadpool(asked.snapshot.num_tokens, texts)
            return {
                "id": str(uuid.uuid4()),
                "object": "list",
                "model": task,
                "results": results,
                "usage": {"total_tokens": tokens},
                "meta": {
                    "api_version": {"version": request.url.path[2]},
                    "billed_units": {"search_units": 1},
                    "m6rec": {**asked.snapshot.describe(task, job), "ignored": body.ignored},
                },
            }

    return router


def _task(asked: Asking, model: str) -> tuple[str, str]:
    snapshot = asked.snapshot
    if model != ANY_TASK:
        task = snapshot.task(model, "scoring", "model")
        if snapshot.tasks[task].kind in _JOBS:
            return task, _JOBS[snapshot.tasks[task].kind]
        raise ConfigError(f"'{task}' scores nothing; its kind is '{snapshot.tasks[task].kind}'")
    for kind, job in _JOBS.items():
        if found := snapshot.named(kind):
            return snapshot.task(found[0] if len(found) == 1 else None, job), job
    raise ConfigError("the model has no task of scoring or likelihood")


def _accept(snapshot: Snapshot, body: schemas.Rerank, task: str, job: str) -> Accepted:
    """Objects are rendered as items, texts are read as they are."""
    texts = {i: text for i, doc in enumerate(body.documents) if (text := _text(doc)) is not None}
    objects = {i: doc for i, doc in enumerate(body.documents) if i not in texts}
    entries = [*objects.values()]
    user: UserRequest = text_request()
    history: Sequence[str] = ()
    rendered: Sequence[str] = ()
    try:
        if not isinstance(body.query, str):
            # What is known of a user counts for the texts of candidates, too.
            accepted = snapshot.accept({**body.query, "candidates": entries}, task, job)
            user, (history, rendered) = accepted.request, accepted.text
        else:
            history = body.query.splitlines() or [""]
            if entries:
                user, rendered = snapshot.candidates(entries, task, job)
    except RejectedRow as problem:
        raise _of_documents(problem, [*objects]) from None
    items = dict(zip(objects, user.candidates, strict=True))
    texts |= zip(objects, rendered, strict=True)
    about = tuple(items.get(index, Item("", {})) for index in range(len(texts)))
    documents = [texts[index] for index in range(len(texts))]
    user = dataclasses.replace(user, candidates=about)
    try:
        return snapshot.accept_text(history, task, job, documents, user)
    except RejectedRow as problem:
        raise _of_documents(problem, range(len(documents))) from None


def _of_documents(problem: RejectedRow, places: Sequence[int]) -> RejectedRow:
    """What is wrong with a candidate, said of the document that it stands for."""
    said = re.sub(
        r"^'candidates\[(\d+)\]", lambda at: f"'documents[{places[int(at[1])]}]", str(problem)
    )
    return RejectedRow(problem.kind, said)


def _text(document: Any) -> str | None:
    """A document that is text; None: an item."""
    if isinstance(document, dict) and set(document) == {"text"}:
        document = document["text"]
    return document if isinstance(document, str) else None


def _shown(document: Any) -> dict[str, Any]:
    if isinstance(document, dict):
        return document
    return {"text" if isinstance(document, str) else "id": document}

"""`/v1/rerank` and `/v2/rerank`, as Cohere's and Jina's clients call them."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Asking, Server, asking
from m6rec_jax.server.limits import strict_route
from m6rec_jax.server.snapshots import ANY_TASK
from m6rec_jax.text.records import Item

# Kinds of tasks that score candidates, the best for it first, and the job that does.
_JOBS = {"scoring": "scoring", "reranking": "scoring", "likelihood": "likelihood"}


def routes(server: Server) -> APIRouter:
    """The routes, for `FastAPI.include_router`."""
    router = APIRouter(route_class=strict_route(server.limits), tags=["Cohere and Jina"])

    @router.post("/v1/rerank")
    @router.post("/v2/rerank")
    async def rerank(body: schemas.Rerank, request: Request) -> dict[str, Any]:
        """Documents, likeliest first, for a user described in text."""
        async with asking(server, request) as asked:
            task, job = _task(asked, body.model)
            accepted = await _accept(asked, body, task, job)
            (result,) = await asked.answer(accepted)
            scores = [item.score for item in result.items]  # type: ignore[attr-defined]
            if job == "likelihood":  # mean log probabilities
                scores = [math.exp(score) for score in scores]
            order = sorted(range(len(scores)), key=lambda index: -scores[index])
            results = [
                {"index": index, "relevance_score": scores[index]}
                | ({"document": _shown(body.documents[index])} if body.return_documents else {})
                for index in order[: body.top_n]
            ]
            text = accepted.text
            tokens = asked.snapshot.num_tokens([*text.history, *text.candidates])
            return {
                "id": str(uuid.uuid4()),
                "object": "list",
                "model": task,
                "results": results,
                "usage": {"total_tokens": tokens},
                "meta": {
                    "api_version": {"version": request.url.path[2]},
                    "billed_units": {"search_units": 1},
                    "m6rec": asked.snapshot.describe(task, job),
                },
            }

    return router


def _task(asked: Asking, model: str) -> tuple[str, str]:
    snapshot = asked.snapshot
    if model != ANY_TASK:
        task = snapshot.task(model, "scoring")
        if snapshot.tasks[task].kind in _JOBS:
            return task, _JOBS[snapshot.tasks[task].kind]
        raise ConfigError(f"'{task}' scores nothing; its kind is '{snapshot.tasks[task].kind}'")
    for kind, job in _JOBS.items():
        if found := snapshot.named(kind):
            return snapshot.task(found[0] if len(found) == 1 else None, job), job
    raise ConfigError("the model has no task of scoring, reranking or likelihood")


async def _accept(asked: Asking, body: schemas.Rerank, task: str, job: str) -> Accepted:
    """Objects are rendered as items, texts are read as they are."""
    texts = {i: text for i, doc in enumerate(body.documents) if (text := _text(doc)) is not None}
    objects = [doc for i, doc in enumerate(body.documents) if i not in texts]
    asks_text = isinstance(body.query, str)
    rendered: Accepted | None = None
    if objects or not asks_text:
        fields: Mapping[str, Any] = {} if isinstance(body.query, str) else body.query
        try:
            rendered = await asked.accept({**fields, "candidates": objects}, task, job)
        except RejectedRow as problem:
            # Indices are those among the documents that are objects.
            said = str(problem).replace("candidates[", "objects[")
            raise RejectedRow(problem.kind, said) from None
    items = iter(() if rendered is None else rendered.request.candidates)
    of_objects = iter(() if rendered is None else rendered.text.candidates)
    candidates = [texts[i] if i in texts else next(of_objects) for i in range(len(body.documents))]
    about = [Item("", {}) if i in texts else next(items) for i in range(len(body.documents))]
    query = body.query if isinstance(body.query, str) else ""
    accepted: Accepted = await asked.accept_text(query, task, job, candidates, about)
    if rendered is not None and not asks_text:
        accepted = accepted._replace(text=RequestText(rendered.text.history, candidates))
    return accepted


def _text(document: schemas.AnyItem) -> str | None:
    """A document that is text; None: an item."""
    if isinstance(document, str):
        return document
    text = document.get("text") if set(document) == {"text"} else None
    return text if isinstance(text, str) else None


def _shown(document: schemas.AnyItem) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else document

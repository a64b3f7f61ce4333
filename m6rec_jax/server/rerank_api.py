"""`/v1/rerank` and `/v2/rerank`, as Cohere's and Jina's clients call them."""

from __future__ import annotations

import dataclasses
import itertools
import re
import uuid
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Asked
from m6rec_jax.server.errors import StrictRoute
from m6rec_jax.server.native import scoring_task
from m6rec_jax.server.snapshots import Snapshot, parsed
from m6rec_jax.text.records import Item

router = APIRouter(route_class=StrictRoute, tags=["Cohere and Jina"])


@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(body: schemas.Rerank, request: Request, asked: Asked) -> dict[str, Any]:
    """Documents, likeliest first, for a user described in text."""
    task, job = scoring_task(asked.snapshot, body.model)
    accepted = await run_in_threadpool(_accept, asked.snapshot, body, task, job)
    (result,) = await asked.answer(accepted)
    scores = [item.score for item in result.items]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results = [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": _shown(body.documents[index])} if body.return_documents else {})
        for index in order[: body.top_n]
    ]
    texts = itertools.chain(*accepted.text)
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
            "m6rec": {**asked.snapshot.described[task, job], "ignored": body.ignored},
        },
    }


def _accept(snapshot: Snapshot, body: schemas.Rerank, task: str, job: str) -> Accepted:
    """Objects are rendered as items, texts are read as they are."""
    handler, documents = snapshot.handler(task, job), [_text(one) for one in body.documents]
    places = [index for index, text in enumerate(documents) if text is None]
    entries = {"candidates": [body.documents[index] for index in places]}
    try:
        if isinstance(body.query, str):
            request, history = parsed(entries, handler), body.query.splitlines() or [""]
            rendered = handler.renderer.candidates(request) if places else []
        else:
            # What is known of a user counts for the texts of candidates, too.
            request = parsed(body.query | entries, handler)
            history, rendered = handler.render(request)
        items = zip(request.candidates, rendered, strict=True)
        pairs = [next(items) if text is None else (Item("", {}), text) for text in documents]
        candidates, texts = zip(*pairs, strict=True)
        places = [*range(len(documents))]
        handler.check_candidates(texts)
    except RejectedRow as problem:  # of a candidate: said of the document that it stands for
        said = re.sub(
            r"^'candidates\[(\d+)", lambda at: f"'documents[{places[int(at[1])]}", str(problem)
        )
        raise RejectedRow(problem.kind, said.replace("'candidates.", "'documents.")) from None
    request = dataclasses.replace(request, candidates=candidates)
    accepted: Accepted = handler.rendered(request, RequestText(history, list(texts)))
    return accepted


def _text(document: Any) -> str | None:
    """A document that is text; None: an item."""
    if isinstance(document, dict) and set(document) == {"text"}:
        document = document["text"]
    return document if isinstance(document, str) else None


def _shown(document: Any) -> dict[str, Any]:
    if isinstance(document, dict):
        return document
    return {"text" if isinstance(document, str) else "id": document}

"""The routes of our own: score, retrieve, recommend, explain, write, all below `/v1`; and that of
Vertex AI's contract for containers, `AIP_PREDICT_ROUTE`.

Answers say what answered: `task`, `job`, `prompts` and `data`, fingerprints of which equal ones
give equal answers, and `snapshot`, which counts the server's changes; `unknown_items` of the
history, which were left out, since neither the catalogue has them nor were they described; and with
`debug` what the model read for each task.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import Accepted, Answer, title_of
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Asked, Asking
from m6rec_jax.server.errors import ApiError, StrictRoute, as_api_error
from m6rec_jax.server.snapshots import Snapshot
from m6rec_jax.text.records import Item

# Items that are found for a scorer to order, at least.
_SCORED = 20
# Fields of a body that say how to answer, and are no fields of a request.
_OURS = frozenset({"task", "job", "by", "scorer", "seed", "debug"})


router = APIRouter(route_class=StrictRoute, tags=["recommendation"])


@router.post("/v1/score")
async def score(body: schemas.Score, asked: Asked) -> dict[str, Any]:
    """How likely the user likes, clicks or buys each candidate: `items` in their order, each
    with `id`, `title`, `score`, `details` (what is known of it beside its title) and `because`
    (titles of the history that people have together with it, at most two).
    """
    return await _ranked(asked, body, *scoring_task(asked.snapshot, body.task, body.job))


@router.post("/v1/retrieve")
async def retrieve(body: schemas.Retrieve, asked: Asked) -> dict[str, Any]:
    """The `items` of the catalogue that fit the user best, best first."""
    return await _ranked(asked, body, body.task, "retrieval")


@router.post("/v1/recommend")
async def recommend(body: schemas.Recommend, asked: Asked) -> dict[str, Any]:
    """`items` that were found, reranked by co-occurrence if prepared, and scored: where
    `scored_by` names a scorer, `retrieval_score` is what they were found by.
    """
    if body.by == "titles":
        return await _ranked(asked, body, body.task, "title_recommendation")
    snapshot = asked.snapshot
    task = snapshot.task(body.task, "retrieval")
    job = "reranking" if (task, "reranking") in snapshot.handlers else "retrieval"
    scorer, handler = _scorer(snapshot, task, body.scorer), snapshot.handler(task, job)
    wanted = body.k or handler.default_k
    depth = max(wanted, min(_SCORED, handler.max_k)) if scorer else wanted
    items = await _items(asked, body, task, job, k=depth)
    if not scorer or not items:
        return _answered(asked, body, task, job, items=items)
    candidates = [item["id"] for item in items]
    scores = await _items(asked, body, scorer, "scoring", candidates=candidates)
    pairs = zip(items, scores, strict=True)
    both = [item | {"score": new["score"], "retrieval_score": item["score"]} for item, new in pairs]
    both.sort(key=lambda item: -item["score"])  # equal ones stay as they were found
    scored_by = snapshot.described[scorer, "scoring"]
    return _answered(asked, body, task, job, items=both[:wanted], scored_by=scored_by)


@router.post("/v1/explain")
async def explain(body: schemas.Write, asked: Asked) -> dict[str, Any]:
    """Why the user may like each candidate: `texts` in their order, each with `id` and `title`
    of the item, `text` and `log_probability`.
    """
    return await _write(asked, body, "explanations")


@router.post("/v1/write")
async def write(body: schemas.Write, asked: Asked) -> dict[str, Any]:
    """What a task of generation writes, about each candidate or about none."""
    return await _write(asked, body)


async def predict(body: schemas.Predict, asked: Asked) -> dict[str, list[dict[str, Any]]]:
    """A prediction for each instance: the columns of files of requests, or its error."""
    parameters = body.parameters or schemas.Parameters()
    task = asked.snapshot.task(parameters.task, parameters.job or "scoring")
    job = asked.snapshot.service.job(task, parameters.job)
    checked: list[Accepted | ApiError] = []
    for row in body.instances:
        try:
            checked.append(await asked.accept(row, task, job))
        except Exception as error:
            checked.append(problem := as_api_error(error))
            if problem.status_code >= 500:
                raise
    answers = iter(await asked.answer(*asked.accepted))
    return {
        "predictions": [
            one.body() if isinstance(one, ApiError) else _columns(next(answers)) for one in checked
        ]
    }


async def _items(
    asked: Asking, body: schemas.Ask, task: str, job: str, **changes: Any
) -> list[dict[str, Any]]:
    """Items that a job answers with for the body's request, for JSON."""
    row = {name: value for name, value in body if name not in _OURS} | changes
    (answer,) = await asked.answer(await asked.accept(row, task, job))
    return [item._asdict() for item in answer.items]


async def _ranked(asked: Asking, body: schemas.Ask, task: str | None, job: str) -> dict[str, Any]:
    task = asked.snapshot.task(task, job)
    return _answered(asked, body, task, job, items=await _items(asked, body, task, job))


def _answered(
    asked: Asking, body: schemas.Ask, task: str, job: str, **answer: Any
) -> dict[str, Any]:
    """An answer with what gave it, what people read of its items, and what the model read."""
    accepted, data = asked.accepted, asked.snapshot.handlers[task, job].data
    if items := answer.get("items"):
        history = [item.id for _, item in accepted[0].request.history]
        try:
            because = data.together([item["id"] for item in items], history)
        except (ConfigError, DataError):  # such as data without co-occurrence
            because = [[] for _ in items]
        for item, titles in zip(items, because, strict=True):
            item["because"] = [title for title in titles if title != item["title"]]
            known = data.items.get(item["id"])
            item["details"] = "" if known is None else data.details(known)
    answer["unknown_items"] = sorted({item for one in accepted for item in one.request.unknown})
    if body.debug:
        answer["debug"] = {
            "read": [
                {"task": one.handler.task, "job": one.handler.job, **one.text._asdict()}
                for one in accepted
            ]
        }
    return {**asked.snapshot.described[task, job], **answer}


def _scorer(snapshot: Snapshot, task: str, name: str | None) -> str | None:
    """The task that orders what was found; None: none does."""
    if name is not None:
        return snapshot.task(name, "scoring") if name else None
    beside = snapshot.service.beside(task, "scoring")
    handler = snapshot.handlers.get((beside or "", "scoring"))
    # Without a catalogue ids say nothing of their items.
    return beside if handler is not None and handler.data.items else None


async def _write(asked: Asking, body: schemas.Write, kind: str | None = None) -> dict[str, Any]:
    task = writing_task(asked.snapshot, body.task, kind)
    row = {name: value for name, value in body if name not in _OURS}
    accepted = await asked.accept(row, task, "generation", body.seed)
    (answer,) = await asked.answer(accepted)
    # One text about nothing, or one about each candidate, of which there may be none.
    about = accepted.request.candidates or [Item("", {})] * len(answer.texts)
    rows = zip(about, *answer.values.values(), strict=True)
    texts = [
        {"id": item.id, "title": title_of(item), "text": text, "log_probability": score}
        for item, text, score in rows
    ]
    return _answered(asked, body, task, "generation", texts=texts)


def scoring_task(snapshot: Snapshot, name: str | None, job: str | None = None) -> tuple[str, str]:
    """The task that scores candidates, named or the only one, and its job."""
    best = "scoring" if snapshot.named("scoring") else "likelihood"
    task = snapshot.task(name, job or best)
    return task, job or ("likelihood" if snapshot.tasks[task].kind == "likelihood" else "scoring")


def writing_task(snapshot: Snapshot, name: str | None, kind: str | None = None) -> str:
    """The task of generation that is named, else the only one of that kind of texts, or of all."""
    writing = snapshot.named("generation")
    of_kind = [task for task in writing if snapshot.tasks[task].writing == kind]
    if name is None and len(of_kind) == 1:
        return of_kind[0]
    return snapshot.task(name, "generation")


def _columns(answer: Answer) -> dict[str, Any]:
    """As files of requests have them."""
    return {
        name: values.tolist() if hasattr(values, "tolist") else list(values)
        for name, values in answer.values.items()
    }

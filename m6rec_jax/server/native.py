"""The routes of our own: score, retrieve, recommend, explain, write, all below `/v1`; and that of
Vertex AI's contract for containers, `AIP_PREDICT_ROUTE`.

Answers say what answered: `task`, `job`, `prompts` and `data`, fingerprints of which equal ones
give equal answers, and `snapshot`, which counts the server's changes; `unknown_items` of the
history, which were left out, since neither the catalogue has them nor were they described; and with
`debug` what the model read for each task, and `milliseconds` (`accept` checks and renders, `wait`
is the queue, `run` the batch).
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
    task, job = scoring_task(asked.snapshot, body.task, body.job)
    return await _ranked(asked, body, task, job)


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
    return await _by_retrieval(asked, body)


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
    return {"predictions": await _predict(asked, body)}


def _row(body: schemas.Ask, **changes: Any) -> dict[str, Any]:
    """The fields of a request."""
    fields = [name for name in type(body).model_fields if name not in _OURS]
    return {name: getattr(body, name) for name in fields} | changes


def _answered(
    asked: Asking, body: schemas.Ask, task: str, job: str, **answer: Any
) -> dict[str, Any]:
    """An answer with what gave it, and how if that is asked."""
    more = {"debug": asked.debug()} if body.debug else {}
    answer["unknown_items"] = asked.unknown_items
    if "items" in answer:
        _describe(asked, task, job, answer["items"])
    return {**asked.snapshot.described[task, job], **answer, **more}


def _describe(asked: Asking, task: str, job: str, items: list[dict[str, Any]]) -> None:
    """Adds what people read of items: details, and what of the history goes with them."""
    data = asked.snapshot.handlers[task, job].data
    try:
        because = data.together([item["id"] for item in items], asked.history)
    except (ConfigError, DataError):  # such as data without co-occurrence
        because = [[] for _ in items]
    for item, titles in zip(items, because, strict=True):
        item["because"] = [title for title in titles if title != item["title"]]
        item["details"] = data.details(data.items[item["id"]]) if item["id"] in data.items else ""


def _items(answer: Answer) -> list[dict[str, Any]]:
    """Items for JSON."""
    return [item._asdict() for item in answer.items]


async def _ranked(asked: Asking, body: schemas.Ask, task: str | None, job: str) -> dict[str, Any]:
    task = asked.snapshot.task(task, job)
    (result,) = await asked.answer(await asked.accept(_row(body), task, job))
    return _answered(asked, body, task, job, items=_items(result))


async def _by_retrieval(asked: Asking, body: schemas.Recommend) -> dict[str, Any]:
    snapshot = asked.snapshot
    task = snapshot.task(body.task, "retrieval")
    job = "reranking" if (task, "reranking") in snapshot.handlers else "retrieval"
    scorer = _scorer(asked, task, body.scorer)
    handler = snapshot.handler(task, job)
    wanted = body.k or handler.default_k
    depth = min(_SCORED, handler.max_k)
    row = _row(body, k=max(wanted, depth) if scorer else wanted)
    (found,) = await asked.answer(await asked.accept(row, task, job))
    items: list[dict[str, Any]] = _items(found)
    if not scorer or not items:
        return _answered(asked, body, task, job, items=items)
    row = _row(body, candidates=[item["id"] for item in items])
    scoring: Accepted = await asked.accept(row, scorer, "scoring")
    (scores,) = await asked.answer(scoring)
    pairs = zip(items, _items(scores), strict=True)
    both = [item | {"score": new["score"], "retrieval_score": item["score"]} for item, new in pairs]
    both.sort(key=lambda item: -item["score"])  # equal ones stay as they were found
    scored_by = snapshot.described[scorer, "scoring"]
    return _answered(asked, body, task, job, items=both[:wanted], scored_by=scored_by)


def _scorer(asked: Asking, task: str, name: str | None) -> str | None:
    """The task that orders what was found; None: none does."""
    snapshot = asked.snapshot
    if name is not None:
        return snapshot.task(name, "scoring", "scorer") if name else None
    beside = snapshot.service.beside(task, "scoring")
    handler = snapshot.handlers.get((beside or "", "scoring"))
    # Without a catalogue ids say nothing of their items.
    return beside if handler is not None and handler.data.items else None


async def _write(asked: Asking, body: schemas.Write, kind: str | None = None) -> dict[str, Any]:
    task = writing_task(asked.snapshot, body.task, kind)
    accepted = await asked.accept(_row(body), task, "generation", body.seed)
    (result,) = await asked.answer(accepted)
    # One text about nothing, or one about each candidate, of which there may be none.
    about = accepted.request.candidates or [Item("", {})] * len(result.texts)
    rows = zip(about, *result.columns().values(), strict=True)
    texts = [
        {"id": item.id, "title": title_of(item), "text": text, "log_probability": score}
        for item, text, score in rows
    ]
    return _answered(asked, body, task, "generation", texts=texts)


def scoring_task(
    snapshot: Snapshot, name: str | None, job: str | None = None, field: str = "task"
) -> tuple[str, str]:
    """The task that scores candidates, named or the only one, and its job; raises as
    `Snapshot.task`.
    """
    best = "scoring" if snapshot.named("scoring") else "likelihood"
    task = snapshot.task(name, job or best, field)
    return task, job or ("likelihood" if snapshot.tasks[task].kind == "likelihood" else "scoring")


def writing_task(
    snapshot: Snapshot, name: str | None, kind: str | None = None, field: str = "task"
) -> str:
    """The task of generation that is meant: the one named, the only one of that kind of texts, or
    the only one; raises as `Snapshot.task`.
    """
    writing = snapshot.named("generation")
    of_kind = [task for task in writing if snapshot.tasks[task].writing == kind]
    if name is None and len(of_kind) == 1:
        return of_kind[0]
    return snapshot.task(name, "generation", field)


async def _predict(asked: Asking, body: schemas.Predict) -> list[dict[str, Any]]:
    parameters = body.parameters or schemas.Parameters()
    task = asked.snapshot.task(parameters.task, parameters.job or "scoring")
    job = asked.snapshot.service.job(task, parameters.job)
    checked: list[Accepted | ApiError] = []
    for row in body.instances:
        try:
            checked.append(await asked.accept(row, task, job))
        except Exception as error:
            problem = as_api_error(error)
            if problem.status_code >= 500:
                raise
            checked.append(problem)
    results = iter(await asked.answer(*(one for one in checked if isinstance(one, Accepted))))
    return [one.body() if isinstance(one, ApiError) else _columns(next(results)) for one in checked]


def _columns(result: Answer) -> dict[str, Any]:
    """As files of requests have them."""
    return {
        name: values.tolist() if hasattr(values, "tolist") else list(values)
        for name, values in result.columns().items()
    }

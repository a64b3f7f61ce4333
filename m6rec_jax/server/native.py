"""The routes of our own: score, retrieve, recommend, explain, write, all below `/v1`.

Answers say what answered: `task`, `job`, `prompts` and `data`, fingerprints of which equal ones
give equal answers, and `snapshot`, which counts the server's changes; `unknown_items` of the
history, which were left out, since neither the catalogue has them nor were they described; and with
`debug` what the model read for each task, and `milliseconds` (`accept` checks and renders, `wait`
is the queue, `run` the batch).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import Accepted, ScoredItem, title_of
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Asking, Server, asking
from m6rec_jax.server.errors import StrictRoute
from m6rec_jax.server.snapshots import ANY_TASK
from m6rec_jax.text.records import Item

# Items that are found for a scorer to order, at least.
_SCORED = 20
# Fields of a body that say how to answer, and are no fields of a request.
_OURS = frozenset({"task", "job", "by", "scorer", "seed", "debug"})


def routes(server: Server) -> APIRouter:
    """The routes, for `FastAPI.include_router`."""
    router = APIRouter(route_class=StrictRoute, tags=["recommendation"])

    @router.post("/v1/score")
    async def score(body: schemas.Score, request: Request) -> dict[str, Any]:
        """How likely the user likes, clicks or buys each candidate: `items` in their order, each
        with `id`, `title`, `score`, `details` (what is known of it beside its title) and `because`
        (titles of the history that people have together with it, at most two).
        """
        async with asking(server, request) as asked:
            task = asked.snapshot.task(body.task, body.job or "scoring")
            is_likelihood = asked.snapshot.tasks[task].kind == "likelihood"
            return await _ranked(
                asked, body, task, body.job or ("likelihood" if is_likelihood else "scoring")
            )

    @router.post("/v1/retrieve")
    async def retrieve(body: schemas.Retrieve, request: Request) -> dict[str, Any]:
        """The `items` of the catalogue that fit the user best, best first."""
        async with asking(server, request) as asked:
            return await _ranked(asked, body, body.task, "retrieval")

    @router.post("/v1/recommend")
    async def recommend(body: schemas.Recommend, request: Request) -> dict[str, Any]:
        """`items` that were found, reranked by co-occurrence if prepared, and scored: where
        `scored_by` names a scorer, `retrieval_score` is what they were found by.
        """
        async with asking(server, request) as asked:
            if body.by == "titles":
                return await _ranked(asked, body, body.task, "title_recommendation")
            return await _by_retrieval(asked, body)

    @router.post("/v1/explain")
    async def explain(body: schemas.Write, request: Request) -> dict[str, Any]:
        """Why the user may like each candidate: `texts` in their order, each with `id` and `title`
        of the item, `text` and `log_probability`.
        """
        async with asking(server, request) as asked:
            return await _write(asked, body, "explanations")

    @router.post("/v1/write")
    async def write(body: schemas.Write, request: Request) -> dict[str, Any]:
        """What a task of generation writes, about each candidate or about none."""
        async with asking(server, request) as asked:
            return await _write(asked, body)

    return router


def _row(body: schemas.Ask, **changes: Any) -> dict[str, Any]:
    """The fields of a request."""
    row = {name: getattr(body, name) for name in type(body).model_fields if name not in _OURS}
    return {name: value for name, value in row.items() if value is not None} | changes


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


def _items(result: Any) -> list[dict[str, Any]]:
    """Items of a result for JSON."""
    items: Iterable[ScoredItem] = result.items
    return [item._asdict() for item in items]


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
    task = writing_task(asked, body.task, kind)
    accepted = await asked.accept(_row(body), task, "generation", body.seed)
    (result,) = await asked.answer(accepted)
    # One text about nothing, or one about each candidate, of which there may be none.
    about = accepted.request.candidates or [Item("", {})] * len(result.texts)  # type: ignore[attr-defined]
    rows = zip(about, *result.columns().values(), strict=True)
    texts = [
        {"id": item.id, "title": title_of(item), "text": text, "log_probability": score}
        for item, text, score in rows
    ]
    return _answered(asked, body, task, "generation", texts=texts)


def writing_task(
    asked: Asking, name: str | None, kind: str | None = None, field: str = "task"
) -> str:
    """The task of generation that is meant: the one named, the only one of that kind of texts, or
    the only one.

    Raises:
      ApiError, ConfigError: as `Snapshot.task`.
    """
    snapshot = asked.snapshot
    if name not in (None, ANY_TASK):
        return snapshot.task(name, "generation", field)
    own = snapshot.named("generation")
    fitting = [task for task in own if snapshot.tasks[task].writing == kind] or own
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(sorted(fitting or snapshot.tasks))
    if not fitting:
        raise ConfigError(f"no task that is served writes texts; served are: {names}")
    raise ConfigError(f"several tasks write texts: name one of them in '{field}': {names}")

"""Changing prompts and data while the server runs; all routes want the admin token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from m6rec_jax.bank.loading import LoadedBank
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Served
from m6rec_jax.server.errors import ApiError, StrictRoute
from m6rec_jax.server.snapshots import Server, Snapshot
from m6rec_jax.serving.service import Service

router = APIRouter(prefix="/v1/admin", route_class=StrictRoute, tags=["admin"])


@router.get("/snapshot")
async def snapshot(server: Served) -> dict[str, Any]:
    """What requests are answered with now."""
    return _shown(server.current)


@router.put("/prompts/{task}")
async def put_prompts(
    task: str, server: Served, body: schemas.PutPrompts | None = None
) -> dict[str, Any]:
    """Adds a task of the bank's folder, or replaces it by what the folder holds now."""

    def changed(service: Service) -> Service:
        bank = _bank(service)
        bank = bank.without(task) if task in bank.tasks else bank
        index = None if body is None or body.index is None else {task: body.index}
        return service.changed(model=bank.with_tasks(task), index=index)

    return await _swapped(server, "prompts", changed)


@router.delete("/prompts/{task}")
async def remove_prompts(task: str, server: Served) -> dict[str, Any]:
    """Takes a task out; the bank's folder keeps it."""

    def changed(service: Service) -> Service:
        bank = _bank(service)
        if task not in bank.tasks:
            names = ", ".join(sorted(bank.tasks)) or "none"
            raise ApiError(404, "unknown_task", f"there is no task '{task}': {names}", "task")
        return service.changed(model=bank.without(task))

    return await _swapped(server, "prompts", changed)


@router.put("/data")
async def put_data(body: schemas.PutData, server: Served) -> dict[str, Any]:
    """Reads catalogue, statistics and indexes anew, from these folders or the same ones."""
    data = body.model_dump(exclude_none=True)
    return await _swapped(server, "data", lambda service: service.changed(data=data))


async def _swapped(
    server: Server, what: str, change: Callable[[Service], Service]
) -> dict[str, Any]:
    new = await run_in_threadpool(server.swap, change, keeps_jobs=what == "data")
    server.metrics.swaps.labels(what).inc()
    return _shown(new)


def _bank(service: Service) -> LoadedBank:
    if not isinstance(service.model, LoadedBank):
        raise ApiError(409, "no_bank", "the server was started without --bank: its tasks are fixed")
    return service.model


def _shown(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "snapshot": snapshot.version,
        "since": snapshot.since,
        "tasks": {name: settings.kind for name, settings in sorted(snapshot.tasks.items())},
        "answers": list(snapshot.described.values()),
    }

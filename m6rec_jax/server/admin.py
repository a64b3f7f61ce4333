"""Changing prompts and data while the server runs; all routes want the admin token."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Served
from m6rec_jax.server.errors import StrictRoute
from m6rec_jax.server.snapshots import Snapshot

router = APIRouter(prefix="/v1/admin", route_class=StrictRoute, tags=["admin"])


@router.get("/snapshot")
async def snapshot(server: Served) -> dict[str, Any]:
    """What requests are answered with now."""
    return _shown(server.snapshots.current)


@router.put("/prompts/{task}")
async def put_prompts(
    task: str, server: Served, body: schemas.PutPrompts | None = None
) -> dict[str, Any]:
    """Adds a task of the bank's folder, or replaces it by what the folder holds now."""
    index = None if body is None else body.index
    return _shown(await run_in_threadpool(server.snapshots.change_prompts, "put", task, index))


@router.delete("/prompts/{task}")
async def remove_prompts(task: str, server: Served) -> dict[str, Any]:
    """Takes a task out; the bank's folder keeps it."""
    return _shown(await run_in_threadpool(server.snapshots.change_prompts, "remove", task))


@router.put("/data")
async def put_data(body: schemas.PutData, server: Served) -> dict[str, Any]:
    """Reads catalogue, statistics and indexes anew, from these folders or the same ones."""
    data = body.model_dump(exclude_none=True)
    return _shown(await run_in_threadpool(server.snapshots.put_data, data))


def _shown(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "snapshot": snapshot.version,
        "since": snapshot.since,
        "tasks": {name: settings.kind for name, settings in sorted(snapshot.tasks.items())},
        "answers": list(snapshot.described.values()),
    }

"""Vertex AI's contract for containers: `AIP_PREDICT_ROUTE`, `AIP_HEALTH_ROUTE`, `AIP_HTTP_PORT`."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Request

from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Server, asking
from m6rec_jax.server.errors import StrictRoute, as_api_error


def predict_route() -> str:
    """Where Vertex AI asks; `/predict` elsewhere."""
    return os.environ.get("AIP_PREDICT_ROUTE", "/predict")


def health_route() -> str | None:
    """Where Vertex AI looks whether requests are answered; None: not under Vertex AI."""
    return os.environ.get("AIP_HEALTH_ROUTE")


def routes(server: Server) -> APIRouter:
    """The routes, for `FastAPI.include_router`."""
    router = APIRouter(route_class=StrictRoute, tags=["Vertex AI"])

    @router.post(predict_route())
    async def predict(body: schemas.Predict, request: Request) -> dict[str, list[dict[str, Any]]]:
        """A prediction for each instance: the columns of files of requests, or its error."""
        parameters = body.parameters or schemas.Parameters()
        found: dict[int, dict[str, Any]] = {}
        accepted: dict[int, Accepted] = {}
        async with asking(server, request) as asked:
            snapshot = asked.snapshot
            task = snapshot.task(parameters.task, parameters.job or "scoring")
            job = snapshot.service.job(task, parameters.job)
            for index, row in enumerate(body.instances):
                try:
                    accepted[index] = await asked.accept(row, task, job)
                except Exception as error:
                    told = as_api_error(error)
                    if told.status_code >= 500:
                        raise
                    found[index] = told.body()
            results = await asked.answer(*accepted.values())
            for index, result in zip(accepted, results, strict=True):
                found[index] = {  # columns, as files of requests have them
                    name: values.tolist() if hasattr(values, "tolist") else list(values)
                    for name, values in result.columns().items()
                }
        return {"predictions": [found[index] for index in range(len(body.instances))]}

    return router

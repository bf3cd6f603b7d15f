"""`/health`, `/healthz`, `/readyz`, `/version`, `/metrics`: what the operator and the orchestrator ask."""

from __future__ import annotations

import os

from aiohttp import web

from whisper_byoc import __version__
from whisper_byoc.server.core.pipeline import PipelineState
from whisper_byoc.server.core.table import JobTable
from whisper_byoc.server.routes.keys import METRICS, TABLE

__all__ = ["identity", "routes"]


def routes() -> list[web.RouteDef]:
    """Give the routes."""
    return [
        web.get("/health", health),
        web.get("/healthz", ready),
        web.get("/readyz", ready),
        web.get("/version", version),
        web.get("/app-version", app_version),
        web.get("/metrics", metrics),
    ]


async def health(request: web.Request) -> web.Response:
    """Answer 200 with one of LOADING, IDLE, OK, ERROR: the convention of pytrickle and the routers in front of it."""
    table = request.app[TABLE]
    states = {pipeline.state for pipeline in table.pipelines.values()}
    if PipelineState.FAILED in states or troubles(table):
        status = "ERROR"
    elif PipelineState.LOADING in states:
        status = "LOADING"
    else:
        status = "OK" if table.busy else "IDLE"
    return web.json_response({"status": status})


async def ready(request: web.Request) -> web.Response:
    """200 when work can be taken, else 503 with the reasons: the convention of Live Runner and Kubernetes."""
    table = request.app[TABLE]
    reasons = [
        f"pipeline {pipeline.name} is {pipeline.state.value}"
        for pipeline in table.pipelines.values()
        if pipeline.state is not PipelineState.READY
    ]
    reasons += troubles(table)
    if table.draining:
        reasons.append("the server is shutting down")
    return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)


def identity(request: web.Request) -> dict[str, str]:
    """Say what runs here; `pipeline` is Livepeer's kind of worker, `model_id` the names that clients ask for."""
    return {"pipeline": os.environ.get("PIPELINE", "byoc"), "model_id": ",".join(request.app[TABLE].pipelines)}


async def version(request: web.Request) -> web.Response:
    """Say what runs here, and its version."""
    return web.json_response(identity(request) | {"version": __version__})


async def app_version(request: web.Request) -> web.Response:
    """Say the version alone."""
    return web.json_response({"version": __version__})


async def metrics(request: web.Request) -> web.Response:
    """Answer in Prometheus' text form."""
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(body=request.app[METRICS].render(), headers=headers)


def troubles(table: JobTable) -> list[str]:
    """Collect what processors say is wrong with them."""
    return [
        f"pipeline {pipeline.name}: {pipeline.trouble}" for pipeline in table.pipelines.values() if pipeline.trouble
    ]

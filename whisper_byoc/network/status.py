"""`/health`, `/readyz`, `/capabilities`, `/status`: what people and monitors ask a gateway or an orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from whisper_byoc import __version__

__all__ = ["status_routes"]

CONNECTION = "RequestHandler.start"


def status_routes(
    role: str, capabilities: Callable[[], dict[str, Any]], counts: Callable[[], dict[str, Any]]
) -> list[web.RouteDef]:
    """Make the routes. `counts` gives `jobs`, `streams` and `draining`."""

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "OK"})

    async def ready(_: web.Request) -> web.Response:
        reasons = ["shutting down"] if counts()["draining"] else []
        if not any(each["available"] for each in capabilities()["capabilities"]):
            reasons.append("no capability can take a job")
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def show(_: web.Request) -> web.Response:
        return web.json_response(capabilities())

    async def status(_: web.Request) -> web.Response:
        head = {"role": role, "version": __version__, "tasks": working_tasks()}
        return web.json_response(head | counts())

    return [
        web.get("/health", health),
        web.get("/healthz", ready),
        web.get("/readyz", ready),
        web.get("/capabilities", show),
        web.get("/status", status),
    ]


def working_tasks() -> int:
    """Count the tasks there are, but for the one that aiohttp has for each open connection, busy or idle."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    return sum(getattr(each, "__qualname__", "") != CONNECTION for each in coroutines)

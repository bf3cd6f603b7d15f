"""`/hardware/info` and `/hardware/stats`, in pytrickle's form: GPU parts are empty, CPU and memory beside."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
from pathlib import Path
from typing import Any

from aiohttp import web

from whisper_byoc.server.routes.status import identity

__all__ = ["routes"]


def routes() -> list[web.RouteDef]:
    """Give the routes."""
    return [web.get("/hardware/info", info), web.get("/hardware/stats", stats)]


async def info(request: web.Request) -> web.Response:
    """Say what the machine is."""
    return web.json_response(identity(request) | {"gpu_info": {}, "cpu_info": await asyncio.to_thread(cpu_info)})


async def stats(request: web.Request) -> web.Response:
    """Say how busy the process is."""
    return web.json_response(identity(request) | {"gpu_stats": {}, "cpu_stats": cpu_stats()})


def cpu_info() -> dict[str, Any]:
    """Name and number of the CPUs; the name only where Linux tells it."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return {"name": name, "count": os.cpu_count()}


def cpu_stats() -> dict[str, float]:
    """CPU seconds used by this process so far, its largest memory in bytes, and the machine's load."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
        "max_rss_bytes": used.ru_maxrss * 1024,
        "load_average": round(os.getloadavg()[0], 2),
    }

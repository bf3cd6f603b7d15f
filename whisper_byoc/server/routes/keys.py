"""Where the routes find what they share."""

from __future__ import annotations

from aiohttp import web

from whisper_byoc.server.core.metrics import Metrics
from whisper_byoc.server.core.table import JobTable

__all__ = ["METRICS", "TABLE"]

TABLE = web.AppKey("TABLE", JobTable)
METRICS = web.AppKey("METRICS", Metrics)

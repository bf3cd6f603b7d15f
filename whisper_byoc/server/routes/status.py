"""The state of the server: `/health`, `/readyz`, `/version`, `/metrics`, `/hardware/…` and `/debug/jobs`."""

import asyncio
import os
import platform
import resource
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from aiohttp import web

from whisper_byoc import __version__
from whisper_byoc.server.core.pipeline import PipelineState
from whisper_byoc.server.core.table import SHUTTING_DOWN, TABLE, JobTable
from whisper_byoc.server.routes.telling import tells

WORKER_TYPE = web.AppKey("WORKER_TYPE", str)
"""Livepeer's word for the type of a worker."""


class Health(TypedDict):
    status: str
    notices: NotRequired[list[str]]
    capacity: NotRequired[dict[str, dict[str, Any]]]


class Readiness(TypedDict):
    ready: bool
    reasons: list[str]
    free: int
    fits: int


@tells(answers={200: Health})
async def get_health(request: web.Request) -> web.Response:
    """Answer 200 with LOADING, IDLE, OK or ERROR: the convention of pytrickle and the routers in front of it.

    `notices` is present when a pipeline has something to report, `capacity` when one measures its own.
    """
    table = request.app[TABLE]
    answer: Health = {"status": "ERROR" if await _troubles(table) else table.pipelines.status(busy=table.busy)}
    if notices := [pipeline.notice for pipeline in table.pipelines if pipeline.notice]:
        answer["notices"] = notices
    if capacity := table.capacity():
        answer["capacity"] = capacity
    return web.json_response(answer)


@tells(answers={200: Readiness, 503: Readiness})
async def get_ready(request: web.Request) -> web.Response:
    """Answer 200 when work can be accepted, else 503 with the reasons, as Live Runner and Kubernetes expect.

    When no more live jobs fit, it is still 200, with `free` 0: taking the container out of service would cut off its
    jobs. `free` of `fits` live jobs are those of `?pipeline=`, or of the pipeline that accepts the most.
    """
    table = request.app[TABLE]
    named = table.pipelines.find(request.query.get("pipeline", ""))
    asked = (named,) if named else tuple(table.pipelines)
    reasons = [
        f"pipeline {pipeline.name} is {pipeline.state.value}"
        for pipeline in table.pipelines
        if pipeline.state is not PipelineState.READY
    ]
    reasons += await _troubles(table)
    if table.draining:
        reasons.append(SHUTTING_DOWN)
    free, fits = max(map(table.admission.free, asked)), max(map(table.admission.fits, asked))
    answer: Readiness = {"ready": not reasons, "reasons": reasons, "free": free, "fits": fits}
    return web.json_response(answer, status=503 if reasons else 200)


async def _troubles(table: JobTable) -> list[str]:
    sentences = await asyncio.gather(*(pipeline.trouble() for pipeline in table.pipelines))
    return [
        f"pipeline {name}: {sentence}"
        for name, sentence in zip(table.pipelines.names, sentences, strict=True)
        if sentence
    ]


async def get_version(request: web.Request) -> web.Response:
    """Answer with the type of the worker, its pipelines and the version."""
    return web.json_response(_identity(request) | {"version": __version__})


async def get_app_version(request: web.Request) -> web.Response:
    """Answer with the version alone."""
    return web.json_response({"version": __version__})


@tells(answers={200: "text/plain"})
async def get_metrics(request: web.Request) -> web.Response:
    """Answer in Prometheus' text format."""
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(body=request.app[TABLE].metrics.render(), headers=headers)


async def get_jobs(request: web.Request) -> web.Response:
    """Describe every job for troubleshooting, without its parameters and text."""
    jobs = [
        {
            "job_id": job.info.job_id,
            "pipeline": job.info.pipeline,
            "client": job.client,
            "has_feed": job.has_feed,
            "has_reader": job.has_reader,
            "input_ended": job.closing.is_set(),
            "queued_segments": job.inbox.items,
            "queued_bytes": job.inbox.bytes,
            "next_seq": job.results.next_seq,
            "unread": job.results.unread,
            "ended": job.results.ended,
            "idle_seconds": round(job.idle_seconds, 3),
        }
        for job in request.app[TABLE].jobs
    ]
    return web.json_response({"jobs": jobs})


async def get_hardware_info(request: web.Request) -> web.Response:
    """Describe the machine in pytrickle's format, with an empty GPU part, plus the CPU."""
    return web.json_response(_identity(request) | {"gpu_info": {}, "cpu_info": await asyncio.to_thread(_cpu_info)})


async def get_hardware_stats(request: web.Request) -> web.Response:
    """Answer with the CPU seconds used by this process, its largest memory in bytes, and the machine's load."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    stats = {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 3),
        "max_rss_bytes": used.ru_maxrss * 1024,
        "load_average": round(os.getloadavg()[0], 2),
    }
    return web.json_response(_identity(request) | {"gpu_stats": {}, "cpu_stats": stats})


def _identity(request: web.Request) -> dict[str, str]:
    return {"pipeline": request.app[WORKER_TYPE], "model_id": ",".join(request.app[TABLE].pipelines.names)}


def _cpu_info() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    try:  # only Linux has the CPU model's name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return {"name": name, "count": os.cpu_count()}

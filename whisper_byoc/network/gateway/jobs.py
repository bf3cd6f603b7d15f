"""`POST /live/video-to-video` and `POST /process/request/{route}`: the jobs that are one request."""

from __future__ import annotations

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.network.answers import as_json, as_text
from whisper_byoc.network.feed import Feed
from whisper_byoc.network.form import Raw, form_for
from whisper_byoc.network.gateway.context import Context
from whisper_byoc.network.gateway.forward import NotOffered, forward
from whisper_byoc.network.header import HEADER, MODEL_HEADER, JobHeader
from whisper_byoc.network.out import Out

__all__ = ["Jobs"]

PASSED_ON = ("Content-Type", "Content-Encoding", "Accept")
MARGIN_S = 5.0
"""The orchestrator has its own limit; ours is for an orchestrator that does not keep it (go-livepeer: 5 s)."""


class Jobs:
    """The routes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """Give the routes."""
        return [
            web.post("/live/video-to-video", as_json(self.live)),
            web.post("/process/request", as_text(self.batch)),
            web.post("/process/request/{route:.*}", as_text(self.batch)),
        ]

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Bring one frame, or a live feed, to an orchestrator that offers the model."""
        context, limits = self._context, self._context.limits
        model = request.headers.get(MODEL_HEADER, "")
        if not model:
            names = ", ".join(context.directory.available) or "none yet"
            raise RequestRefused(400, f"name the model in the {MODEL_HEADER} header; there are: {names}")
        one = request.content_length is not None
        most, hold = (limits.frame_bytes, limits.frame_bytes) if one else (None, limits.hold_bytes)
        out = Out(request, form_for("" if one else request.headers.get("Accept", "")), limits.stall_seconds)
        headers = passed_on(request, MODEL_HEADER)
        urls = [each.url for each in context.directory.ranked(model)]
        with context:
            async with Feed(request, context.memory, hold, most) as feed:
                try:
                    return await forward(context, request, headers, urls, limits.job_seconds + MARGIN_S, feed, out)
                except NotOffered as error:
                    raise await context.directory.not_found(model, error) from None

    async def batch(self, request: web.Request) -> web.StreamResponse:
        """Bring a BYOC batch job to an orchestrator that has a place for it (go-livepeer, byoc/job_gateway.go)."""
        context, limits = self._context, self._context.limits
        if ".." in request.path.split("/"):  # the orchestrator's other paths are not ours to give
            raise RequestRefused(400, f"bad route {request.path!r:.100}: it must not have '..' in it")
        job = JobHeader.parse(request.headers.get(HEADER))
        out = Out(request, Raw(), limits.stall_seconds)
        headers = passed_on(request) | {HEADER: job.encode()}
        with context:
            urls = await context.directory.with_places(job.capability, job.options.get("orchestrators"))
            async with Feed(request, context.memory, limits.frame_bytes, limits.frame_bytes) as feed:
                return await forward(context, request, headers, urls, job.timeout_seconds + MARGIN_S, feed, out)


def passed_on(request: web.Request, *others: str) -> dict[str, str]:
    """Give the headers of the client's that an orchestrator is to see.

    Raises `RequestRefused` (400) for one that is not text.
    """
    found = {name: request.headers[name] for name in (*PASSED_ON, *others) if name in request.headers}
    for name, value in found.items():
        if any(0xD800 <= ord(letter) < 0xE000 for letter in value):  # how aiohttp shows bytes that are not UTF-8
            raise RequestRefused(400, f"the {name} header is not UTF-8: {value!r:.80}")
    return found

"""`POST /process/request/{route}`: a BYOC batch job, passed to a container as it is (go-livepeer, byoc)."""

from __future__ import annotations

from aiohttp import web
from yarl import URL

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.answers import as_text, says
from whisper_byoc.network.feed import Feed
from whisper_byoc.network.form import Raw
from whisper_byoc.network.header import HEADER, JobHeader
from whisper_byoc.network.orchestrator.context import Context
from whisper_byoc.network.orchestrator.pool import Slot
from whisper_byoc.network.out import PEER_ERRORS, Out, peer_failed
from whisper_byoc.network.reading import read_answer
from whisper_byoc.network.tasks import within

__all__ = ["Batch"]

REQUEST_HEADERS = ("Content-Type", "Content-Encoding", "Accept")
"""What of a request passes; go-livepeer keeps the first."""
ANSWER_HEADERS = (
    "Content-Type", "Content-Encoding", "Content-Length", "X-Metadata", "Cache-Control", "X-Livepeer-Work-Units",
)  # fmt: skip
"""What of a container's answer passes; go-livepeer keeps two of them."""
BUSY = (429, 503)


class Batch:
    """The route."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        """Give the route; whatever follows it in the path goes to the container."""
        return [
            web.post("/process/request", as_text(self.post)),
            web.post("/process/request/{route:.*}", as_text(self.post)),
        ]

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Bring a job to a container, and its answer back as it comes."""
        context = self._context
        context.check_draining()
        job = JobHeader.parse(request.headers.get(HEADER))
        route = request.match_info.get("route", "").strip("/")
        if ".." in route.split("/"):  # the container's other paths are not ours to give
            raise RequestRefused(400, f"bad route {route!r:.100}: it must not have '..' in it")
        if not context.pool.of(job.capability):
            raise RequestRefused(503, f"No capacity available for capability {job.capability}: no container offers it")
        out = Out(request, Raw(), context.limits.stall_seconds)
        async with Feed(request, context.memory, context.limits.frame_bytes, context.limits.frame_bytes) as feed:

            async def run(slot: Slot) -> web.StreamResponse:
                try:
                    with slot.alive():
                        return await self._forward(request, route, job, slot, feed, out)
                finally:
                    slot.free()

            return await context.on_some_container(job.capability, run, feed, out)

    async def _forward(
        self, request: web.Request, route: str, job: JobHeader, slot: Slot, feed: Feed, out: Out
    ) -> web.StreamResponse:
        """Send the request to one container; its headers must come within the job's time.

        Raises `PeerFailed`, `PeerBusy` or, for what else the container refuses, `RequestRefused`.
        """
        container = slot.container
        url = URL(container.url) / route if route else URL(container.url)
        headers = {name: request.headers[name] for name in REQUEST_HEADERS if name in request.headers}
        headers |= container.headers
        if feed.length is not None:
            headers["Content-Length"] = str(feed.length)
        try:
            posting = self._context.http.post(
                url,
                data=feed.chunks(lambda: out.produced),
                params=request.query,
                headers=headers,
                allow_redirects=False,
            )
            answer = await within(job.timeout_seconds, posting)
            async with answer:
                if answer.status >= 400:
                    retry_after = answer.headers.get("Retry-After", "")
                    raise refusal(container.url, answer.status, await read_answer(answer), retry_after)
                passed = {name: answer.headers[name] for name in ANSWER_HEADERS if name in answer.headers}
                await out.copy(answer, passed | {"Livepeer-Balance": "0"})
                return await out.finish()
        except PEER_ERRORS as error:
            raise feed.error or peer_failed(f"the container at {container.url}", error) from None


def refusal(url: str, status: int, body: bytes, retry_after: str) -> RequestRefused:
    """Make a container's error answer an error with the same status; only a 401 is the container's affair, not ours."""
    if status == 401:
        return PeerFailed(f"the container at {url} does not take the token that it registered with")
    message = says(body, f"the container answered {status}")
    if status in BUSY:
        return PeerBusy(message, whole(retry_after, 1), status)
    return RequestRefused(status, message)


def whole(text: str, otherwise: int) -> int:
    """Read seconds of a header; it may also hold a date, or anything."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else otherwise

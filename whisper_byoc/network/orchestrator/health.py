"""Following containers: who can take jobs, who cannot now, and who is gone."""

from __future__ import annotations

import asyncio
import logging
import time

import aiohttp

from whisper_byoc.aio import Changed
from whisper_byoc.http import reason_of as describe
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.orchestrator.pool import Container, Pool
from whisper_byoc.network.out import PEER_ERRORS
from whisper_byoc.network.reading import json_value, read_answer

__all__ = ["Follower"]

log = logging.getLogger("whisper_byoc.network.orchestrator")

SILENCES = 3
"""A container that is asked so often in a row without an answer is gone; one that refuses connections is at once."""
NOT_READY = ("LOADING", "ERROR")


class Follower:
    """Asks every container of a pool how it is, in a task for each URL."""

    def __init__(self, pool: Pool, http: aiohttp.ClientSession, limits: NetworkLimits) -> None:
        self._pool = pool
        self._http = http
        self._limits = limits
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._hurry: dict[str, Changed] = {}

    def follow(self, url: str) -> None:
        """Begin to ask the container at a URL; when it is followed already, ask it now."""
        if url in self._tasks and not self._tasks[url].done():
            self._hurry[url].notify()
            return
        self._hurry[url] = Changed()
        self._tasks[url] = asyncio.get_running_loop().create_task(self._follow(url, self._hurry[url]))

    def doubt(self, container: Container) -> None:
        """Ask a container now, as a job has met trouble with it."""
        self.follow(container.url)

    async def close(self) -> None:
        """Ask no more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _follow(self, url: str, hurry: Changed) -> None:
        silences = 0
        while self._at(url):
            try:
                trouble = await self._ask(url)
                silences = 0
                for each in self._at(url):
                    if trouble:
                        each.refuses(trouble)
                    else:
                        each.answers()
            except Exception as error:
                silences += 1
                if refused(error):
                    self._gone(url, describe(error))
                elif silences >= SILENCES:
                    self._gone(url, f"{silences} times in a row it gave no answer: {describe(error)}")
                if not isinstance(error, PEER_ERRORS):  # a bug here must not end the following
                    log.exception("asking %s how it is failed", url)
            await hurry.wait(self._limits.ask_seconds)
        self._tasks.pop(url, None)
        self._hurry.pop(url, None)

    def _at(self, url: str) -> list[Container]:
        return [each for each in self._pool if each.url == url]

    def _gone(self, url: str, trouble: str) -> None:
        for each in self._at(url):
            each.died(trouble)
            if each.registered and time.monotonic() - each.gone_at > self._limits.forget_seconds:
                self._pool.remove(each)

    async def _ask(self, url: str) -> str:
        """Give the reason why a container takes no jobs, empty if it does.

        `/readyz` is asked first; a container without it is ready when `/health` does not say otherwise.
        """
        status, body = await self._get(f"{url}/readyz")
        if status == 503:
            reasons = body.get("reasons")
            return "; ".join(map(str, reasons)) if isinstance(reasons, list) and reasons else "it is not ready"
        if status != 200:
            status, body = await self._get(f"{url}/health")
            said = body.get("status")
            if status >= 500 or said in NOT_READY:
                return f"its health is {said or status}"
        if not all(each.asked_names for each in self._at(url)):
            await self._ask_names(url)
        return ""

    async def _ask_names(self, url: str) -> None:
        """Learn which pipelines a container serves, where it tells them as ours does."""
        _, body = await self._get(f"{url}/version")
        names = body.get("model_id")
        for each in self._at(url):
            each.asked_names = True
            each.serves = tuple(names.split(",")) if isinstance(names, str) and names else ()

    async def _get(self, url: str) -> tuple[int, dict[str, object]]:
        limit = aiohttp.ClientTimeout(total=self._limits.answer_seconds)
        async with self._http.get(url, timeout=limit, allow_redirects=False) as answer:
            try:
                found = json_value(await read_answer(answer))
            except ValueError:
                found = {}
            return answer.status, found if isinstance(found, dict) else {}


def refused(error: BaseException) -> bool:
    """Whether nobody listens there; a name that cannot be looked up just now says nothing of the container."""
    return isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientConnectorDNSError)

"""Following containers: who can take jobs, who cannot now, and who is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import aiohttp

from whisper_byoc.network.orchestrator.pool import Container, Pool
from whisper_byoc.network.out import PEER_ERRORS
from whisper_byoc.trickle.http import describe

__all__ = ["Follower"]

ASK_EVERY_S = 1.0
ANSWER_S = 5.0
SILENCES = 3
"""A container that is asked so often in a row without an answer is gone; one that refuses connections is at once."""
FORGET_S = 600.0
"""A container that registered itself and has been gone for so long is forgotten."""
LARGEST = 64 * 1024
NOT_READY = ("LOADING", "ERROR")


class Follower:
    """Asks every container of a pool how it is, in a task for each URL."""

    def __init__(self, pool: Pool, http: aiohttp.ClientSession) -> None:
        self._pool = pool
        self._http = http
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._hurry: dict[str, asyncio.Event] = {}

    def follow(self, url: str) -> None:
        """Begin to ask the container at a URL; when it is followed already, ask it now."""
        if url in self._tasks and not self._tasks[url].done():
            self._hurry[url].set()
            return
        self._hurry[url] = asyncio.Event()
        self._tasks[url] = asyncio.get_running_loop().create_task(self._follow(url, self._hurry[url]))

    def doubt(self, container: Container) -> None:
        """Ask a container now, as a job has met trouble with it."""
        self.follow(container.url)

    async def close(self) -> None:
        """Ask no more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _follow(self, url: str, hurry: asyncio.Event) -> None:
        silences = 0
        while containers := [each for each in self._pool if each.url == url]:
            try:
                trouble = await self._ask(url, containers)
                silences = 0
                for each in containers:
                    each.refuses(trouble) if trouble else each.answers()
            except asyncio.TimeoutError:
                silences += 1
                if silences >= SILENCES:
                    self._gone(containers, f"it gave no answer {silences} times in a row")
            except PEER_ERRORS as error:
                self._gone(containers, describe(error))
            hurry.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(hurry.wait(), ASK_EVERY_S)
        self._tasks.pop(url, None)

    def _gone(self, containers: list[Container], trouble: str) -> None:
        for each in containers:
            each.died(trouble)
            if each.registered and time.monotonic() - each.gone_at > FORGET_S:
                self._pool.remove(each)

    async def _ask(self, url: str, containers: list[Container]) -> str:
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
        if any(not each.ready for each in containers):
            await self._ask_names(url, containers)
        return ""

    async def _ask_names(self, url: str, containers: list[Container]) -> None:
        """Learn which pipelines a container serves, where it tells them as ours does."""
        _, body = await self._get(f"{url}/version")
        names = body.get("model_id")
        if isinstance(names, str) and names:
            for each in containers:
                each.serves = tuple(names.split(","))

    async def _get(self, url: str) -> tuple[int, dict[str, object]]:
        limit = aiohttp.ClientTimeout(total=ANSWER_S)
        async with self._http.get(url, timeout=limit, allow_redirects=False) as answer:
            body = await answer.content.read(LARGEST)
            try:
                found = json.loads(body)
            except ValueError:
                found = {}
            return answer.status, found if isinstance(found, dict) else {}

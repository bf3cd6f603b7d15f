"""Workers that are actors of a Ray cluster."""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Any, Self

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from whisper_byoc import __version__
from whisper_byoc.aio import STOP_SECONDS, in_daemon_thread
from whisper_byoc.archive.worker import Outcome, Recipe, Worker, WorkerDied
from whisper_byoc.errors import ByocError, UsageError
from whisper_byoc.processors.base import Share
from whisper_byoc.processors.machine import available_cpus

REACHED_SECONDS = 10.0
"""Longest wait for a connection to the head of a cluster."""
ANSWER_SECONDS = 90.0
"""Longest wait for an answer, a cluster to start, or the node of this machine; a dead node may not have been missed."""


class Actor(Worker):
    """A worker that knows on which node it is."""

    def node(self) -> str:
        found: str = ray.get_runtime_context().get_node_id()
        return found


class RayPool:
    """As many actors as the nodes have CPUs and memory for, now and when nodes come and go."""

    def __init__(self, address: str, recipe: Recipe, *, threads: int, memory: int, workers: int | None) -> None:
        """Each actor declares `threads` CPUs and `memory` bytes. `workers` are so many, whatever there is room for.

        `address` is that of a cluster, `auto` for the one that runs on this machine, or `local` for one of this run.
        """
        self._address = address
        self._recipe = recipe
        self._resources = {"num_cpus": threads, "memory": memory}
        self._workers = workers

    async def __aenter__(self) -> Self:
        """Raise `UsageError` where there is no such cluster, or no node of it has room for a worker."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        host, _, port = self._address.rpartition(":")
        own = {"num_cpus": available_cpus(), "include_dashboard": False} if self._address == "local" else {}

        def connect() -> None:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR", **own)

        try:
            if host:  # Ray itself tries for minutes
                await asyncio.to_thread(_reach, host.strip("[]"), int(port))
            async with asyncio.timeout(ANSWER_SECONDS):  # a cluster of its own would end with the thread that starts it
                await (asyncio.to_thread(connect) if own else in_daemon_thread(connect))
        except (OSError, OverflowError, RuntimeError, ValueError, RayError) as error:
            why = f"{error}".splitlines()[0] if f"{error}" else "no answer in time"
            raise UsageError(f"no Ray cluster is reached at {self._address} ({why}); see docs/archives.md") from None
        try:
            if not await self._room():
                cpus, memory = self._resources.values()
                raise UsageError(f"no node of the cluster has {cpus} CPUs and {memory >> 20} MiB for a worker")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await in_daemon_thread(ray.shutdown)  # ends the actors of this run

    async def size(self) -> int:
        return self._workers or max(1, await self._room())

    async def hire(self) -> "RayWorker":
        actor = ray.remote(Actor).options(**self._resources, scheduling_strategy="SPREAD").remote(self._recipe)
        worker = RayWorker(actor)
        try:
            release = await worker.ask(actor.start.remote())
            worker.node = await worker.ask(actor.node.remote())
        except BaseException:
            worker.dismiss()
            raise
        if release != __version__:
            worker.dismiss()
            raise UsageError(f"a node has whisper-byoc {release}, this machine {__version__}; install one everywhere")
        return worker

    async def _room(self) -> int:
        nodes = [each["Resources"] for each in await _alive()]
        cpus, memory = self._resources.values()
        return sum(int(min(each.get("CPU", 0) // cpus, each.get("memory", 0) // memory)) for each in nodes)


class RayWorker:
    """An actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.node = ""

    async def transcribe(self, place: str, share: Share) -> Outcome:
        outcome: Outcome = await self.ask(self._actor.transcribe.remote(place, share))
        return outcome

    async def ask(self, answer: Any) -> Any:
        """Wait for an answer of the actor."""
        try:
            return await answer
        except RayActorError as error:
            lost = self.node and all(each["NodeID"] != self.node for each in await _alive())
            raise WorkerDied(f"the worker's actor died: {f'{error}'.splitlines()[0]}", blamed=not lost) from None
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, ByocError) else ByocError(f"a worker failed: {cause}") from None

    def dismiss(self) -> None:
        ray.kill(self._actor)


async def _alive() -> list[dict[str, Any]]:
    """Return what the cluster knows of the nodes that it has. Raises `ByocError` when it does not answer."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            nodes: list[dict[str, Any]] = await in_daemon_thread(ray.nodes)
    except (TimeoutError, RayError) as error:
        raise ByocError(
            f"the Ray cluster does not say which nodes it has: {f'{error}' or 'no answer in time'}"
        ) from None
    return [each for each in nodes if each["Alive"]]


def _reach(host: str, port: int) -> None:
    with socket.create_connection((host, port), REACHED_SECONDS):
        pass

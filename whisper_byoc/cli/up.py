"""Run the whole path on this machine: a container, an orchestrator and a gateway, with one log, until Ctrl-C.

Whatever else these three take by environment variables, they take here too (LOG_LEVEL, AUTH_TOKEN, MODEL_DIR, …).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from whisper_byoc.cli.gateway import DEFAULT_PORT as GATEWAY_PORT
from whisper_byoc.cli.lines import NamedLog
from whisper_byoc.cli.options import Parser, port, seconds
from whisper_byoc.cli.orchestrator import CONTAINER_PORT
from whisper_byoc.cli.orchestrator import DEFAULT_PORT as ORCHESTRATOR_PORT
from whisper_byoc.cli.processes import Processes, Show
from whisper_byoc.errors import StartError, UsageError
from whisper_byoc.processors.registry import find

__all__ = ["Path", "Plan", "configure", "run", "running"]

EVERYWHERE = ("", "0.0.0.0", "::")
READY_S = 900.0
"""A model may have to be downloaded; the container itself gives up after 600 s of loading."""
POLL_S = 0.2
ANSWER_S = 5.0
MARGIN_S = 5.0
"""Between the end of a drain and the end of a process."""
KILLED = 130


@dataclass(frozen=True)
class Plan:
    """What to run, and where; port 0 lets the system choose."""

    pipelines: tuple[str, ...]
    host: str = "127.0.0.1"
    container_port: int = 0
    orchestrator_port: int = 0
    gateway_port: int = 0
    drain_seconds: float = 10.0


@dataclass(frozen=True)
class Path:
    """Base URLs of the three, as they are reached from this machine."""

    container: str
    orchestrator: str
    gateway: str


def configure(parser: Parser) -> None:
    """Describe the options."""
    parser.option("--pipelines", help="what the container serves, with commas between", default="whisper-tiny",
                  metavar="NAME[,NAME]")  # fmt: skip
    parser.option("--host", help="address that all three listen on", default="127.0.0.1")
    for flag, role, number in (
        ("--port", "container", CONTAINER_PORT),
        ("--orchestrator-port", "orchestrator", ORCHESTRATOR_PORT),
        ("--gateway-port", "gateway", GATEWAY_PORT),
    ):
        parser.option(flag, help=f"port of the {role}; 0 lets the system choose", convert=port, default=number)
    parser.option("--drain-timeout", help="longest time that each gives its jobs at the end, in seconds",
                  convert=seconds, default=10.0)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run all three until SIGTERM or Ctrl-C; a second one kills them."""
    names = [name.strip() for name in args.pipelines.split(",") if name.strip()]
    if not names:
        raise UsageError("--pipelines names no pipeline (see `whisper-byoc pipelines`)")
    plan = Plan(
        tuple(dict.fromkeys(names)),
        args.host, args.port, args.orchestrator_port, args.gateway_port, args.drain_timeout,
    )  # fmt: skip
    return asyncio.run(until_stopped(plan, NamedLog(sys.stderr).line))


async def until_stopped(plan: Plan, show: Show) -> int:
    """Run the plan until the first signal.

    Raises `StartError` when one of the three ends before that.
    """
    stop, processes = asyncio.Event(), Processes(show, plan.drain_seconds + MARGIN_S)
    killed = False

    def on_signal() -> None:
        nonlocal killed
        if stop.is_set():
            killed = True
            processes.kill()
            return
        show("up", "stopping; Ctrl-C once more kills")
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    async with processes:
        await first_of(serve(plan, processes, show), stop.wait())
    return KILLED if killed else 0


async def serve(plan: Plan, processes: Processes, show: Show) -> None:
    """Start the three, say when they are ready, and wait for the first that ends.

    Raises `StartError` then.
    """
    path = await started(plan, processes)
    show("up", f"ready: send FILE with: whisper-byoc send --gateway {path.gateway} FILE")
    await processes.any_death()


@asynccontextmanager
async def running(plan: Plan, show: Show) -> AsyncIterator[Path]:
    """Have the three run and ready while the context lasts.

    Raises `StartError` when they do not get so far.
    """
    async with Processes(show, plan.drain_seconds + MARGIN_S) as processes:
        yield await started(plan, processes)


async def started(plan: Plan, processes: Processes) -> Path:
    """Start each when the one before it listens, then wait until all of them can take jobs.

    Raises `StartError`.
    """
    names, host = [find(name).name for name in plan.pipelines], reachable(plan.host)
    drain = ("--drain-timeout", f"{plan.drain_seconds:g}")

    async def start(role: str, *arguments: str) -> str:
        return f"http://{host}:{await processes.start(role, role_command(role), *arguments, *drain)}"

    container = await start(
        "container", *repeated("--pipeline", plan.pipelines), "--host", plan.host, "--port", str(plan.container_port),
        "--orch-url", "",  # it is named below; a registration elsewhere is no business of a trial's
    )  # fmt: skip
    listen = f"{bracketed(plan.host)}:{plan.orchestrator_port}"
    orchestrator = await start(
        "orchestrator", "-orchestrator", "-byoc",
        "-serviceAddr", f"{host}:{plan.orchestrator_port}", "-httpAddr", listen,
        "-byocContainerURL", container, *repeated("-byocModelID", names),
    )  # fmt: skip
    gateway = await start(
        "gateway", "-gateway", "-httpIngest", "-orchAddr", orchestrator,
        "-httpAddr", f"{bracketed(plan.host)}:{plan.gateway_port}",
    )  # fmt: skip
    path = Path(container, orchestrator, gateway)
    await first_of(all_ready(path, names), processes.any_death())
    return path


async def all_ready(path: Path, names: list[str]) -> None:
    """Ask until all three are ready, and the gateway knows every capability.

    Raises `StartError` after 15 minutes.
    """
    limit = aiohttp.ClientTimeout(total=ANSWER_S)

    async def asking() -> None:
        async with aiohttp.ClientSession(timeout=limit) as http:
            for url in (path.container, path.orchestrator, path.gateway):
                await until(partial(is_ready, http, url))
            await until(partial(offers, http, path.gateway, names))

    try:
        await asyncio.wait_for(asking(), READY_S)
    except TimeoutError:
        raise StartError(f"not all of the three were ready after {READY_S:g} s; their log says more") from None


async def until(question: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes."""
    while not await question():  # noqa: ASYNC110 - another process cannot set an event
        await asyncio.sleep(POLL_S)


async def is_ready(http: aiohttp.ClientSession, url: str) -> bool:
    """Ask one of them."""
    try:
        async with http.get(f"{url}/readyz") as answer:
            return answer.status == 200
    except (TimeoutError, aiohttp.ClientError):
        return False


async def offers(http: aiohttp.ClientSession, gateway: str, names: list[str]) -> bool:
    """Ask the gateway whether it knows a place for each of these capabilities."""
    try:
        async with http.get(f"{gateway}/capabilities") as answer:
            known = (await answer.json())["capabilities"]
    except (TimeoutError, aiohttp.ClientError):
        return False
    return set(names) <= {each["name"] for each in known if each["available"]}


async def first_of(*work: Coroutine[Any, Any, Any]) -> None:
    """Wait for the first to end, whose error is raised, and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def role_command(role: str) -> str:
    """Give the command that runs a part of the path."""
    return "serve" if role == "container" else role


def repeated(flag: str, values: tuple[str, ...] | list[str]) -> list[str]:
    """Give an option several times."""
    return [word for value in values for word in (flag, value)]


def reachable(host: str) -> str:
    """Give the address at which this machine reaches a listener on `host`, as URLs have it."""
    return "127.0.0.1" if host in EVERYWHERE else bracketed(host)


def bracketed(host: str) -> str:
    """Write an IPv6 address as URLs have it."""
    return f"[{host}]" if ":" in host else host

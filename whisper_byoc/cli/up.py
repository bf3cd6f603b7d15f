"""Run the whole path on this machine: a container, an orchestrator and a gateway, with one log, until Ctrl-C.

Their other options can be set by their environment variables (WHISPER_BYOC_LOG_LEVEL, …).
"""

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from whisper_byoc.aio import race, stop_on_signals
from whisper_byoc.cli import EXIT_INTERRUPTED
from whisper_byoc.cli.options import (
    CONTAINER_PORT,
    GATEWAY_PORT,
    ORCHESTRATOR_PORT,
    Parser,
    add_gateway_token,
    port,
    seconds,
)
from whisper_byoc.cli.processes import LogLine, Processes, write_log_line
from whisper_byoc.errors import StartError, UsageError
from whisper_byoc.http import CONNECTION_ERRORS, bracketed, open_session, reachable
from whisper_byoc.processors.registry import find
from whisper_byoc.speech.models import DEMO_NOTICE

READY_SECONDS = 900.0
"""A model may have to be downloaded; the container itself gives up after 600 s of loading."""
SECRET_VARIABLES = ("ORCH_SECRET", "LIVEPEER_ORCH_SECRET", "LP_ORCHSECRET", "WHISPER_BYOC_ORCH_SECRET")
"""Unless one of them has the secret of the orchestrator, it gets one that nobody knows: no stranger registers there."""
POLL_SECONDS = 0.2
POLL_TIMEOUT_SECONDS = 5.0
EXIT_SECONDS = 5.0
"""Time for a process to end after its drain."""


@dataclass(frozen=True)
class Plan:
    """What to run, and where; port 0 lets the system choose."""

    pipelines: tuple[str, ...]
    host: str = "127.0.0.1"
    container_port: int = 0
    orchestrator_port: int = 0
    gateway_port: int = 0
    drain_seconds: float = 10.0
    gateway_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Addresses:
    """Base URLs of the three, as they are reached from this machine."""

    container: str
    orchestrator: str
    gateway: str


def configure(parser: Parser) -> None:
    parser.option(
        "--pipeline",
        "--pipelines",
        dest="pipelines",
        help="pipelines that the container serves, separated by commas",
        convert=pipeline_names,
        default="whisper-tiny",
        metavar="NAME[,NAME]",
    )
    parser.option("--host", help="address that all three listen on", default="127.0.0.1")
    for flag, role, number in (
        ("--port", "container", CONTAINER_PORT),
        ("--orchestrator-port", "orchestrator", ORCHESTRATOR_PORT),
        ("--gateway-port", "gateway", GATEWAY_PORT),
    ):
        parser.option(flag, help=f"port of the {role}; 0 lets the system choose", convert=port, default=number)
    add_gateway_token(parser)
    parser.option(
        "--drain-timeout",
        help="longest time for each of the three to finish its jobs at the end, in seconds",
        convert=seconds,
        default=10.0,
    )


def pipeline_names(text: str) -> tuple[str, ...]:
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--pipeline names no pipeline (see `whisper-byoc pipelines`)")
    for name in names:
        find(name)  # raises where there is none
    return tuple(names)


def run(args: argparse.Namespace) -> int:
    plan = Plan(
        pipelines=args.pipelines,
        host=args.host,
        container_port=args.port,
        orchestrator_port=args.orchestrator_port,
        gateway_port=args.gateway_port,
        drain_seconds=args.drain_timeout,
        gateway_token=args.gateway_token,
    )
    return asyncio.run(_until_stopped(plan, partial(write_log_line, sys.stderr)))


async def _until_stopped(plan: Plan, log: LogLine) -> int:
    stop = stop_on_signals()
    async with Processes(log, plan.drain_seconds + EXIT_SECONDS) as processes:
        await race(_serve(plan, processes, log), stop.wait())
        kill = stop_on_signals()
        log("up", "stopping; Ctrl-C once more kills")
        await race(processes.stop(), kill.wait())
        if not kill.is_set():
            return 0
        processes.kill()
        return EXIT_INTERRUPTED


async def _serve(plan: Plan, processes: Processes, log: LogLine) -> None:
    path = await _start(plan, processes)
    log("up", f"ready: send FILE with: whisper-byoc send --gateway {path.gateway} FILE")
    if "demo" in {find(name).model for name in plan.pipelines}:
        log("up", DEMO_NOTICE)
    await processes.first_end()


@asynccontextmanager
async def running_nodes(plan: Plan, log: LogLine) -> AsyncIterator[Addresses]:
    """Run the three while the context lasts; they are ready when it begins.

    Raises `StartError` when one of them ends before that, or when they are not ready after 15 minutes.
    """
    async with Processes(log, plan.drain_seconds + EXIT_SECONDS) as processes:
        yield await _start(plan, processes)


async def _start(plan: Plan, processes: Processes) -> Addresses:
    """Start each when the one before it listens, then wait until all of them can take jobs."""
    names, host = [find(name).name for name in plan.pipelines], reachable(plan.host, "127.0.0.1")

    async def start(role: str, command: str, *arguments: str, **variables: str) -> str:
        drain = f"--drain-timeout={plan.drain_seconds:g}"
        port = await processes.start(role, command, *arguments, drain, variables=variables)
        return f"http://{host}:{port}"

    container = await start(
        "container",
        "serve",
        *(f"--pipeline={name}" for name in plan.pipelines),
        f"--host={plan.host}",
        f"--port={plan.container_port}",
        f"--stream-host={host}",
        "--orch-url=",  # the orchestrator below is told of it; it must not register elsewhere
    )
    orchestrator = await start(
        "orchestrator",
        "orchestrator",
        f"-serviceAddr={host}:{plan.orchestrator_port}",
        f"-httpAddr={bracketed(plan.host)}:{plan.orchestrator_port}",
        f"-byocContainerURL={container}",
        *(f"-byocModelID={name}" for name in names),
        **({} if any(map(os.environ.get, SECRET_VARIABLES)) else {SECRET_VARIABLES[0]: secrets.token_urlsafe()}),
    )
    gateway = await start(
        "gateway",
        "gateway",
        f"-orchAddr={orchestrator}",
        f"-httpAddr={bracketed(plan.host)}:{plan.gateway_port}",
        WHISPER_BYOC_GATEWAY_TOKEN=plan.gateway_token,
    )
    await race(_all_offered(gateway, plan.gateway_token, set(names)), processes.first_end())
    return Addresses(container, orchestrator, gateway)


async def _all_offered(gateway: str, token: str, names: set[str]) -> None:
    """Ask the gateway until it has a free place for each capability, which takes an orchestrator and a container."""
    offered: set[str] = set()
    headers = {"Authorization": f"Bearer {token}"} if token else None
    session = open_session(total_seconds=POLL_TIMEOUT_SECONDS, headers=headers)
    try:
        async with asyncio.timeout(READY_SECONDS), session as http:
            while not names <= offered:
                await asyncio.sleep(POLL_SECONDS)
                with suppress(*CONNECTION_ERRORS):
                    async with http.get(f"{gateway}/capabilities") as answer:
                        known = (await answer.json())["capabilities"]
                    offered = {each["name"] for each in known if each["available"]}
    except TimeoutError:
        message = f"not all of the three were ready after {READY_SECONDS:g} s; their log says more"
        raise StartError(message) from None

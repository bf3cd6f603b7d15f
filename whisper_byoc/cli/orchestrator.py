"""Run an orchestrator without a chain, for development: it passes the jobs of gateways on to containers.

The flags are go-livepeer's, those of the tutorial among them; see docs/network.md.
"""

import argparse
import asyncio
from functools import partial

from whisper_byoc.cli.addresses import Address, served_address
from whisper_byoc.cli.options import (
    CONTAINER_PORT,
    ORCHESTRATOR_PORT,
    Parser,
    Repeated,
    add_allow_origin,
    add_auth_token,
    add_logging,
    count,
    log_ignored,
    seconds,
    start_log,
)
from whisper_byoc.errors import UsageError
from whisper_byoc.http import base_url
from whisper_byoc.network.orchestrator import Orchestrator, OrchestratorConfig
from whisper_byoc.network.pool import Container
from whisper_byoc.network.serving import NetworkLimits, serve_node
from whisper_byoc.server.core.limits import Limits


def configure(parser: Parser) -> None:
    parser.go_switch("orchestrator")
    parser.go_switch("byoc")
    parser.go_option(
        "serviceAddr",
        help="where gateways and containers reach this orchestrator",
        convert=partial(served_address, flag="-serviceAddr", default_port=ORCHESTRATOR_PORT),
        default=f"127.0.0.1:{ORCHESTRATOR_PORT}",
        metavar="HOST:PORT",
    )
    parser.go_option(
        "httpAddr",
        help="address to listen on, if not -serviceAddr",
        convert=partial(served_address, flag="-httpAddr", default_port=ORCHESTRATOR_PORT),
        metavar="HOST:PORT",
    )
    parser.secret(
        "--orch-secret",
        "--orchSecret",
        help="secret that containers must show to register",
        env=("ORCH_SECRET", "LIVEPEER_ORCH_SECRET", "LP_ORCHSECRET"),
    )
    parser.go_option(
        "byocContainerURL",
        help="address of a container; may be repeated",
        convert=partial(base_url, scheme="http", port=CONTAINER_PORT),
        action=Repeated,
        metavar="URL",
    )
    parser.go_option(
        "byocModelID", help="capability that the containers offer; may be repeated", action=Repeated, metavar="NAME"
    )
    parser.go_option(
        "byocCapacity", help="jobs at once in each container", convert=count, default=Limits().jobs, metavar="N"
    )
    add_auth_token(parser, "--byocToken", help="bearer token that the containers ask for")
    parser.go_option(
        "liveAITrickleHostForRunner",
        help="where containers reach the channels, if not at -serviceAddr",
        convert=trickle_host,
        metavar="HOST:PORT",
        default="",
    )
    add_node_options(parser)


def run(args: argparse.Namespace) -> int:
    start_log(args)
    log_ignored(args)
    service, listen = args.serviceAddr, args.httpAddr or args.serviceAddr
    config = OrchestratorConfig(
        host=listen.listen_host,
        port=listen.port,
        service_host=service.host or "127.0.0.1",
        service_port=service.port,
        secret=args.orch_secret,
        containers=containers(args.byocContainerURL or [], args.byocModelID or [], args.byocCapacity, args.auth_token),
        trickle_host=args.liveAITrickleHostForRunner,
        allowed_origins=args.allow_origin,
        limits=network_limits(args),
    )
    asyncio.run(serve_node(Orchestrator.running(config)))
    return 0


def add_node_options(parser: Parser) -> None:
    """Add the options that orchestrators and gateways share."""
    limits = NetworkLimits()
    parser.option(
        "--job-timeout", help="longest wait for a result, in seconds", convert=seconds, default=limits.job_seconds
    )
    parser.option(
        "--drain-timeout",
        help="longest time from SIGTERM to exit, in seconds",
        convert=seconds,
        default=limits.drain_seconds,
    )
    add_allow_origin(parser)
    add_logging(parser)


def network_limits(args: argparse.Namespace) -> NetworkLimits:
    return NetworkLimits(job_seconds=args.job_timeout, drain_seconds=args.drain_timeout)


def containers(urls: list[str], names: list[str], capacity: int, token: str) -> list[Container]:
    """Return a container for every pair of URL and name."""
    if bool(urls) != bool(names):
        raise UsageError("-byocContainerURL and -byocModelID go together: where a container is, and what it offers")
    return [Container(name, url, capacity, token) for url in urls for name in names]


def trickle_host(text: str) -> str:
    """Check a `host:port`, which may be empty."""
    if not text:
        return ""
    address = Address(text, ORCHESTRATOR_PORT)
    if address.scheme or address.path or not address.host or text.endswith("/"):
        raise UsageError(f"-liveAITrickleHostForRunner {text}: write it as host:port, without a scheme or a path")
    return text

"""Run an orchestrator without a chain, for development: it knows containers, and brings them the jobs of gateways.

The flags are go-livepeer's, those of the tutorial among them; see docs/network.md.
"""

from __future__ import annotations

import argparse
import asyncio

from whisper_byoc.cli.go_flags import accept_others, go_option, go_switch, log_ignored
from whisper_byoc.cli.joining import take_secret
from whisper_byoc.cli.options import Parser, Repeated, add_log_level, count, seconds
from whisper_byoc.cli.serve import log_to_stderr
from whisper_byoc.errors import UsageError
from whisper_byoc.network.limits import NetworkLimits
from whisper_byoc.network.orchestrator.app import OrchestratorConfig, serve
from whisper_byoc.network.orchestrator.pool import Container
from whisper_byoc.network.serving import Address, base_url

__all__ = ["configure", "run"]

DEFAULT_PORT = 8936
CONTAINER_PORT = 8000
CAPACITY = 32
"""As many jobs as our container has open by default."""
KNOWN = ("orchestrator", "serviceAddr", "httpAddr", "orchSecret", "liveAITrickleHostForRunner", "byoc")
SECRET = ("ORCH_SECRET", "LP_ORCHSECRET")
TOKEN = ("AUTH_TOKEN",)


def configure(parser: Parser) -> None:
    """Describe the options."""
    go_switch(parser, "orchestrator", help="as go-livepeer has it; true here in any case")
    go_switch(parser, "byoc", help="as the tutorial has it; true here in any case")
    go_option(parser, "serviceAddr", help="where gateways and containers reach this orchestrator",
              default=f"127.0.0.1:{DEFAULT_PORT}", metavar="HOST:PORT")  # fmt: skip
    go_option(parser, "httpAddr", help="where to listen, if that is elsewhere", metavar="HOST:PORT")
    parser.option("--orchSecret", help="what containers must show to register, or a file that holds it", env=SECRET)
    go_option(parser, "byocContainerURL", help="a container; may be repeated", action=Repeated, metavar="URL")
    go_option(parser, "byocModelID", help="capability that the containers offer; may be repeated", action=Repeated,
              metavar="NAME")  # fmt: skip
    go_option(parser, "byocCapacity", help="jobs at once at each of them", convert=count, default=CAPACITY, metavar="N")
    parser.option("--byocToken", help="bearer token that they want, or a file that holds it", env=TOKEN)
    go_option(parser, "liveAITrickleHostForRunner", help="where containers reach the channels, if that is elsewhere",
              metavar="HOST:PORT")  # fmt: skip
    add_times(parser)
    accept_others(parser, KNOWN)
    add_log_level(parser)


def add_times(parser: Parser) -> None:
    """Add what the gateway has as well."""
    limits = NetworkLimits()
    parser.option("--job-timeout", help="longest wait for a result, in seconds", convert=seconds,
                  default=limits.job_seconds)  # fmt: skip
    parser.option("--drain-timeout", help="longest time from SIGTERM to exit, in seconds", convert=seconds,
                  default=limits.drain_seconds)  # fmt: skip


def limits_of(args: argparse.Namespace) -> NetworkLimits:
    """Collect the bounds."""
    return NetworkLimits(job_seconds=args.job_timeout, drain_seconds=args.drain_timeout)


def run(args: argparse.Namespace) -> int:
    """Run it until SIGTERM or Ctrl-C."""
    log_to_stderr(args.log_level)
    log_ignored(args)
    secret, token = take_secret(args, "orchSecret", SECRET), take_secret(args, "byocToken", TOKEN)
    config = OrchestratorConfig(
        service=Address(plain(args.serviceAddr, "-serviceAddr"), DEFAULT_PORT),
        listen=Address(plain(args.httpAddr, "-httpAddr"), DEFAULT_PORT) if args.httpAddr else None,
        secret=secret,
        containers=containers(args, token),
        trickle_host=trickle_host(args.liveAITrickleHostForRunner or ""),
        limits=limits_of(args),
    )
    asyncio.run(serve(config))
    return 0


def containers(args: argparse.Namespace, token: str) -> list[Container]:
    """Make a container of every pair of URL and name; those of one URL share its capacity.

    Raises `UsageError` for one without the other.
    """
    urls, names = args.byocContainerURL or [], args.byocModelID or []
    if bool(urls) != bool(names):
        raise UsageError("-byocContainerURL and -byocModelID go together: where a container is, and what it offers")
    found: list[Container] = []
    for url in urls:
        same = [Container(name, base_url(url, CONTAINER_PORT), args.byocCapacity, token) for name in names]
        for each in same:
            each.together = tuple(same)
        found += same
    return found


def trickle_host(text: str) -> str:
    """Check a `host:port`, which may be empty.

    Raises `UsageError`.
    """
    if not text:
        return ""
    address = Address(text, DEFAULT_PORT)
    if address.scheme or address.path or not address.host or text.endswith("/"):
        raise UsageError(f"-liveAITrickleHostForRunner {text}: write it as host:port, without a scheme or a path")
    return text


def plain(address: str, flag: str) -> str:
    """Refuse https, which a node without a certificate cannot serve.

    Raises `UsageError`.
    """
    if address.startswith("https://"):
        raise UsageError(f"{flag} {address}: this serves plain HTTP; write http://, or put a proxy with TLS in front")
    return address

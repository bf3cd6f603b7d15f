"""Run a gateway without a chain, for development: it passes the jobs of clients on to orchestrators.

The flags are go-livepeer's, those of the tutorial among them; see docs/network.md.
"""

import argparse
import asyncio
from functools import partial

from whisper_byoc.cli.addresses import Address, served_address
from whisper_byoc.cli.options import GATEWAY_PORT, ORCHESTRATOR_PORT, Parser, add_gateway_token, log_ignored, start_log
from whisper_byoc.cli.orchestrator import add_node_options, network_limits
from whisper_byoc.errors import UsageError
from whisper_byoc.http import base_url
from whisper_byoc.network.gateway import Gateway, GatewayConfig
from whisper_byoc.network.serving import serve_node


def configure(parser: Parser) -> None:
    parser.go_switch("gateway")
    parser.go_switch("httpIngest")
    parser.go_option(
        "orchAddr",
        help="orchestrators, separated by commas",
        convert=orchestrator_urls,
        default=f"127.0.0.1:{ORCHESTRATOR_PORT}",
        metavar="HOST:PORT[,…]",
    )
    parser.go_option(
        "httpAddr",
        help="address to listen on",
        convert=partial(served_address, flag="-httpAddr", default_port=GATEWAY_PORT),
        default=f"127.0.0.1:{GATEWAY_PORT}",
        metavar="HOST:PORT",
    )
    parser.go_option(
        "gatewayHost",
        help="how clients reach this gateway (default: the address they used)",
        convert=public_host,
        metavar="HOST:PORT",
        default="",
    )
    add_gateway_token(parser)
    add_node_options(parser)


def run(args: argparse.Namespace) -> int:
    start_log(args)
    log_ignored(args)
    config = GatewayConfig(
        host=args.httpAddr.listen_host,
        port=args.httpAddr.port,
        orchestrators=args.orchAddr,
        public_host=args.gatewayHost,
        allowed_origins=args.allow_origin,
        token=args.gateway_token,
        limits=network_limits(args),
    )
    asyncio.run(serve_node(Gateway.running(config)))
    return 0


def orchestrator_urls(text: str) -> list[str]:
    urls = [base_url(each, scheme="http", port=ORCHESTRATOR_PORT) for each in text.split(",") if each.strip()]
    if not urls:
        raise UsageError("-orchAddr names no orchestrator")
    return urls


def public_host(address: str) -> str:
    """Check how clients reach the gateway; with a scheme where a proxy with TLS stands in front of it."""
    if address and not Address(address, GATEWAY_PORT).host:
        raise UsageError(f"-gatewayHost {address!r} names no host; write it as gateway.example:{GATEWAY_PORT}")
    return address.rstrip("/")

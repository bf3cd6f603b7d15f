"""A trickle server on its own port, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from whisper_byoc import http
from whisper_byoc.aio import stop_on_signals
from whisper_byoc.errors import StartError
from whisper_byoc.trickle.server import TrickleServer

__all__ = ["DEFAULT_PORT", "cannot_listen", "listening", "main", "serve"]

log = logging.getLogger("whisper_byoc.trickle")

DEFAULT_PORT = 2939
"""As the stand-alone server of http-trickle."""
KEEP_ALIVE_S = 600.0
"""go-livepeer's idle timeout between two requests."""
SHUTDOWN_S = 1.0
"""Longest wait for a publisher in mid-segment; whoever only waits is let go at once."""


@contextlib.asynccontextmanager
async def listening(server: TrickleServer, host: str, port: int) -> AsyncIterator[str]:
    """Serve while the context lasts, and give the URL that channel names are added to; port 0 takes a free one.

    Raises `StartError` when the address cannot be had.
    """
    app = web.Application()
    server.add_routes(app)
    listener = http.listening(app, host, port, keep_alive_seconds=KEEP_ALIVE_S, shutdown_seconds=SHUTDOWN_S)
    async with listener as bound:
        yield f"http://{http.bracketed(host)}:{bound}{server.base_path}"


def cannot_listen(host: str, port: int, error: OSError) -> str:
    """Say why the address cannot be had."""
    taken = "another program listens there; choose another port, or stop it"
    return f"cannot listen on {host}:{port}: {taken if error.errno == errno.EADDRINUSE else error.strerror or error}"


async def serve(server: TrickleServer, host: str, port: int, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (default: by SIGTERM or SIGINT); then all channels end.

    Raises `StartError` when the address cannot be had.
    """
    stop = stop or stop_on_signals()
    async with listening(server, host, port) as url:
        log.info("trickle server listening on %s (auto-create %s)", url, "on" if server.autocreate else "off")
        await stop.wait()
        log.info("shutting down: %d channels end", len(server.channels))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m whisper_byoc.trickle`, and give its exit code."""
    parser = argparse.ArgumentParser(prog="python -m whisper_byoc.trickle", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="port; 0 takes a free one (default %(default)s)")
    parser.add_argument("--base-path", default="/ai/trickle/", help="path before channel names (default %(default)s)")
    parser.add_argument("--no-autocreate", action="store_true", help="let no remote peer create a channel")
    parser.add_argument("--changefeed", action="store_true", help="keep the channel _changes")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(levelname)s] %(name)s - %(message)s")
    server = TrickleServer(args.base_path, autocreate=not args.no_autocreate, changefeed=args.changefeed)
    try:
        asyncio.run(serve(server, args.host, args.port))
    except StartError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0

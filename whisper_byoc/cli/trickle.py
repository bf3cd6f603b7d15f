"""Move bytes over the trickle protocol by hand, or serve it.

pub sends stdin to a channel as segments, sub writes the segments of a channel to stdout, serve runs a server.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator

from whisper_byoc.cli.options import Parser, byte_count, port, seconds
from whisper_byoc.cli.sources import stdin_chunks
from whisper_byoc.errors import ClientError, UsageError
from whisper_byoc.logs import log_to_stderr
from whisper_byoc.origins import origin
from whisper_byoc.trickle import (
    ClientOptions,
    Refused,
    TrickleError,
    TricklePublisher,
    TrickleServer,
    TrickleSubscriber,
)
from whisper_byoc.trickle.pipe import SegmentPieces, by_line, by_size, by_time, publish, subscribe
from whisper_byoc.trickle.protocol import CURRENT, NEXT, parse_seq
from whisper_byoc.trickle.server import TRICKLE_PORT, serve
from whisper_byoc.trickle.subscriber import SegmentReader


def configure(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="pub|sub|serve")
    token = Parser(add_help=False)
    token.secret("--trickle-token", "--token", help="bearer token that the server asks for")

    def add_action(name: str, does: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, description=f"{does.capitalize()}.", help=does, parents=[token])

    pub = add_action("pub", "send stdin to a channel")
    add_client(pub)
    pub.add_argument("--mime", default="application/octet-stream", help="MIME type of the segments")
    cut = pub.add_mutually_exclusive_group()
    cut.add_argument("--lines", action="store_true", help="one segment per line")
    cut.add_argument("--size", type=byte_count, help="bytes per segment")
    cut.add_argument("--seconds", type=seconds, default=1.0, help="seconds per segment (default: 1)")
    pub.add_argument("--create", action="store_true", help="create the channel first")
    pub.add_argument("--join", action="store_true", help="continue at the channel's current index, instead of at 0")
    pub.add_argument("--delete", action="store_true", help="delete the channel at the end")
    sub = add_action("sub", "write a channel to stdout")
    add_client(sub)
    sub.add_argument("--start", type=start, default=CURRENT, help="an index, current (default) or next")
    sub.add_argument("--wait", type=seconds, default=0.0, help="seconds to wait for the channel to exist (default: 0)")
    sub.add_argument("--verbose", action="store_true", help="report every segment on stderr")
    server = add_action("serve", "run a trickle server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    server.add_argument("--port", type=port, default=TRICKLE_PORT, help=f"port (default {TRICKLE_PORT})")
    server.add_argument("--base-path", default="/ai/trickle/", help="path before channel names (default /ai/trickle/)")
    server.add_argument("--no-autocreate", action="store_true", help="do not let remote peers create channels")
    server.add_argument("--changefeed", action="store_true", help="tell in channel _changes which ones come and go")
    server.add_argument(
        "--allow-origin", type=origin, action="append", default=[], help="origin of web pages that may use it"
    )


def add_client(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="URL of the channel")
    parser.add_argument("--insecure", action="store_true", help="do not check the server's certificate")
    parser.add_argument("--patience", type=seconds, default=30.0, help="seconds to keep retrying (default: 30)")


def run(args: argparse.Namespace) -> int:
    if args.action == "serve":
        log_to_stderr("info")
        trickle_server = TrickleServer(args.base_path, autocreate=not args.no_autocreate, changefeed=args.changefeed)
        asyncio.run(
            serve(trickle_server, args.host, args.port, allowed_origins=args.allow_origin, token=args.trickle_token)
        )
        return 0
    if not args.url.startswith(("http://", "https://")):
        raise UsageError(f"{args.url!r} is not the URL of a channel; it begins with http:// or https://")
    try:
        asyncio.run(pub(args) if args.action == "pub" else sub(args))
    except Refused as error:
        raise ClientError(f"{error} {error.words!r}") from error
    except TrickleError as error:
        raise ClientError(str(error)) from error
    return 0


async def pub(args: argparse.Namespace) -> None:
    publisher = TricklePublisher(args.url, args.mime, create=args.create, join=args.join, options=options(args))
    async with publisher:
        await publish(pieces_of(stdin_chunks(asyncio.Event()), args), publisher)
        await publisher.close(delete_channel=args.delete)


async def sub(args: argparse.Namespace) -> None:
    async with TrickleSubscriber(args.url, args.start, options=options(args)) as subscriber:
        await subscribe(subscriber, sys.stdout.buffer, report if args.verbose else None)


def report(segment: SegmentReader, size: int) -> None:
    missed = f", {segment.missed} missed before it" if segment.missed else ""
    again = ", its publisher began again" if segment.began_anew else ""
    print(f"segment {segment.seq}: {size} bytes, {segment.content_type}{missed}{again}", file=sys.stderr)


def pieces_of(chunks: AsyncIterator[bytes], args: argparse.Namespace) -> SegmentPieces:
    if args.lines:
        return by_line(chunks)
    return by_size(chunks, args.size) if args.size else by_time(chunks, args.seconds)


def options(args: argparse.Namespace) -> ClientOptions:
    wait = getattr(args, "wait", 0.0)
    return ClientOptions(
        token=args.trickle_token, verify=not args.insecure, patience_seconds=args.patience, absent_seconds=wait
    )


def start(text: str) -> int:
    """Where to begin: an index, `current` or `next`."""
    named = {"current": CURRENT, "next": NEXT}
    try:
        return named[text] if text in named else parse_seq(text)
    except TrickleError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor current or next") from None

"""Stream sound to a container or a gateway as a live feed, and print the text as it comes.

FILE is anything that ffmpeg reads, or - for stdin; .pcm, .raw and .s16le are taken as PCM16 mono 16 kHz, and so is
what is no media on stdin.
Ctrl-C ends a recording and waits for its last words; a second one gives up.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from tqdm import tqdm

from whisper_byoc.aio import in_daemon_thread
from whisper_byoc.cli.options import Parser, count
from whisper_byoc.cli.sources import MICROPHONE, STDIN, Source, check_source, open_source, to_seconds
from whisper_byoc.cli.terminal import Display, printable
from whisper_byoc.client import GatewayClient, TrickleClient
from whisper_byoc.errors import ClientError, ServerRefused, UsageError

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s"
OPEN_BAR = "{desc}: {n:.1f} s"


class Where(argparse.Action):
    """Takes `--url` or `--gateway` and remembers which; the environment may set both, but not the command line."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: str | None = None
    ) -> None:
        if getattr(namespace, "where", self.dest) != self.dest:
            parser.error("--url is a container's address and --gateway a gateway's; give one of them")
        namespace.where = self.dest
        setattr(namespace, self.dest, values)


def configure(parser: Parser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="sound file, or - for stdin")
    parser.add_argument("--microphone", action="store_true", help="record the default microphone until Ctrl-C")
    parser.option(
        "--url", help="address of the container", env=("BYOC_URL",), default="http://localhost:8000", action=Where
    )
    parser.option(
        "--gateway",
        help="address of a gateway to go through, instead of --url",
        env=("BYOC_GATEWAY",),
        action=Where,
        metavar="URL",
    )
    parser.option("--pipeline", "--model", "--byocModelID", help="pipeline, where the server has several")
    parser.option("--language", help="language spoken, or auto (default: the server's)")
    parser.secret("--token", help="bearer token, where the server asks for one", env=("AUTH_TOKEN",))
    parser.switch("--realtime", help="send files at the speed of speech, as a microphone would")
    parser.switch("--json", help="print whole records, one JSON object a line, partial ones too")
    parser.option("--timeout", help="longest wait for the server, in seconds", convert=count, default=120)


def run(args: argparse.Namespace) -> int:
    if bool(args.files) == args.microphone:
        raise UsageError("give what to send: one or more FILEs, - for stdin, or --microphone alone")
    if args.files.count(STDIN) > 1:
        raise UsageError("- is there twice, and stdin can be read to its end once")
    names = [MICROPHONE] if args.microphone else args.files
    for name in names:
        check_source(name)
    return asyncio.run(send_all(names, args))


async def send_all(names: list[str], args: argparse.Namespace) -> int:
    """Send one source after the other, and return the exit code: 1 if the server had an error for any segment."""
    display = Display(sys.stdout, sys.stderr, as_json=args.json)
    errors = 0
    try:
        async with await client_of(args) as client:
            for name in names:
                async with open_source(name, realtime=args.realtime) as source:
                    errors += await send_source(client, source, display)
    finally:
        display.close()
    return 1 if errors else 0


async def client_of(args: argparse.Namespace) -> TrickleClient | GatewayClient:
    """Make the client that the options ask for; a gateway is asked for its only model when none is named."""
    options: dict[str, Any] = {"timeout": args.timeout, "token": args.token}
    params = {"language": args.language} if args.language else {}
    if args.json or sys.stdout.isatty():
        params["partials"] = "true"
    where = getattr(args, "where", "gateway" if args.gateway else "url")
    if where == "url":
        return TrickleClient(args.url, pipeline=args.pipeline, params=params, **options)
    model = await only_model(args.gateway, options) if args.pipeline is None else args.pipeline
    return GatewayClient(args.gateway, model, params=params, **options)


async def only_model(gateway: str, options: dict[str, Any]) -> str:
    """Ask a gateway for the only model it has.

    Raises `ClientError` when there is none, `UsageError` with the names when there are several.
    """
    try:
        async with GatewayClient(gateway, **options) as client:
            known = await client.capabilities()
    except ServerRefused as error:
        if error.status != 404:
            raise
        raise ClientError(f"{gateway} is not a gateway; a container is given with --url") from None
    names = [str(each["name"]) for each in known["capabilities"]]
    if not names:
        raise ClientError(f"{gateway} has no model now; is a container running? `whisper-byoc doctor` finds out")
    if len(names) > 1:
        raise UsageError(f"{gateway} has several models: {', '.join(names)}; choose one with --pipeline NAME")
    return names[0]


async def send_source(client: TrickleClient | GatewayClient, source: Source, display: Display) -> int:
    """Stream one source, show what comes back, and return the number of errors."""
    errors = 0
    total = None if source.size is None else to_seconds(source.size)
    bar_format = OPEN_BAR if total is None else BAR
    with tqdm(total=total, desc=printable(source.name), disable=None, leave=False, bar_format=bar_format) as bar:
        async with aclosing(client.stream(counted(source.chunks, bar))) as records:
            async for record in records:
                errors += record["type"] == "error"
                await in_daemon_thread(display.show, record)  # the reader of our output may be slow
    return errors


async def counted(source: AsyncGenerator[bytes, None], bar: "tqdm[Any]") -> AsyncGenerator[bytes, None]:
    """Pass bytes on, and move the bar to their seconds."""
    sent = 0
    async with aclosing(source):
        async for chunk in source:
            yield chunk
            sent += len(chunk)
            bar.update(to_seconds(sent) - bar.n)  # a sum of seconds would go beyond the end, of which tqdm warns

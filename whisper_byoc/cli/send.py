"""Stream sound to a container or a gateway as a live feed, and print the text as it comes.

FILE is anything that ffmpeg reads, or - for stdin; .pcm, .raw and .s16le are taken as PCM16 mono 16 kHz, and so is
what is no media on stdin. One that fails does not keep the others from being sent; the last line says which did.
Ctrl-C ends a recording and waits for its last words; a second one gives up.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from whisper_byoc.aio import backoff, in_daemon_thread
from whisper_byoc.cli.options import CONTAINER_PORT, Parser, add_auth_token, count
from whisper_byoc.cli.results import Results, add_output, add_speech, speech_params
from whisper_byoc.cli.sources import MICROPHONE, Source, open_source, sound_files, to_seconds
from whisper_byoc.cli.terminal import printable
from whisper_byoc.client import GatewayClient, TrickleClient
from whisper_byoc.errors import ClientError, ServerRefused, UsageError
from whisper_byoc.http import base_url

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s"
OPEN_BAR = "{desc}: {n:.1f} s"
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.1, 2.0
"""Pauses between questions whether a server is ready."""


class Where(argparse.Action):
    """Takes `--url` or `--gateway` and remembers which; the environment may set both, but not the command line."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: str | None = None
    ) -> None:
        if getattr(namespace, "where", self.dest) != self.dest:
            parser.error("--url and --gateway exclude each other")
        namespace.where = self.dest
        setattr(namespace, self.dest, values)


def configure(parser: Parser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="sound file, or - for stdin")
    parser.add_argument("--microphone", action="store_true", help="record the default microphone until Ctrl-C")
    parser.group("server")
    container = f"http://localhost:{CONTAINER_PORT}"
    parser.option("--url", help="address of the container", convert=base_url, default=container, action=Where)
    parser.option(
        "--gateway",
        help="address of a gateway to go through, instead of --url",
        convert=base_url,
        action=Where,
        metavar="URL",
    )
    parser.option("--pipeline", "--model", "--byocModelID", help="pipeline, if the server has several")
    add_auth_token(parser, "--token", help="bearer token, if the server requires one")
    parser.option("--timeout", help="longest wait for the server, in seconds", convert=count, default=120)
    parser.switch("--realtime", help="send files at the speed of speech, like a microphone")
    add_speech(parser, language=None)
    add_output(parser)
    parser.switch("--json", help="print whole records, including partial ones, one JSON object per line")


def run(args: argparse.Namespace) -> int:
    if bool(args.files) == args.microphone:
        raise UsageError("nothing to send; name one or more FILEs, - for stdin, or --microphone alone")
    sounds = [Path("microphone")] if args.microphone else sound_files(args.files)
    names = [MICROPHONE] if args.microphone else args.files
    return asyncio.run(send_all(names, sounds, Results(args, sounds, as_json=args.json), args))


async def send_all(names: list[str], sounds: list[Path], results: Results, args: argparse.Namespace) -> int:
    """Send one source after the other, and return the exit code: 1 if the server had an error for any segment.

    `sounds` is what the `names` are called where their text goes.
    """
    try:
        async with await client_of(args) as client:
            if isinstance(client, TrickleClient):
                await wait_while(partial(is_loading, client), f"{args.url} is still loading its model", args.timeout)
            for name, sound in zip(names, sounds, strict=True):
                with results.of(sound):
                    async with open_source(name, realtime=args.realtime) as source:
                        await send_source(client, source, results)
    finally:
        results.show_end()
    return results.exit_code()


async def wait_while(unready: Callable[[], Awaitable[bool]], message: str, timeout: float) -> None:
    """Wait for a server, and say so. What else is wrong with it, the first request tells."""
    told, pauses = False, backoff(FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS)
    with suppress(ClientError, TimeoutError):
        async with asyncio.timeout(timeout):
            while await unready():
                if not told:
                    print(f"whisper-byoc: {printable(message)}; waiting", file=sys.stderr)
                told = True
                await asyncio.sleep(next(pauses))


async def is_loading(container: TrickleClient) -> bool:
    return bool((await container.health())["status"] == "LOADING")


async def offers_nothing_yet(gateway: GatewayClient) -> bool:
    """Return whether a gateway has an orchestrator, and that nothing to offer: its container may be loading."""
    known = await gateway.capabilities()
    try:
        return not known["capabilities"] and any(each["reachable"] for each in known["orchestrators"])
    except (KeyError, TypeError):  # it is not ours
        return False


async def client_of(args: argparse.Namespace) -> TrickleClient | GatewayClient:
    """Make the client that the options ask for; a gateway is asked for its only model when none is named."""
    options: dict[str, Any] = {"timeout": args.timeout, "token": args.auth_token}
    params = speech_params(args)
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
            unready = partial(offers_nothing_yet, client)
            await wait_while(unready, f"{gateway} has no model that is ready", options["timeout"])
            known = await client.capabilities()
    except ServerRefused as error:
        if error.status != 404:
            raise
        raise ClientError(f"{gateway} is not a gateway; for a container, use --url") from None
    names = [str(each["name"]) for each in known["capabilities"]]
    if not names:
        raise ClientError(f"{gateway} has no model; is a container running? `whisper-byoc doctor` shows what is wrong")
    if len(names) > 1:
        raise UsageError(f"{gateway} has several models: {', '.join(names)}; choose one with --pipeline NAME")
    return names[0]


async def send_source(client: TrickleClient | GatewayClient, source: Source, results: Results) -> None:
    """Stream one source, and take what comes back."""
    total = None if source.size is None else to_seconds(source.size)
    bar_format = OPEN_BAR if total is None else BAR
    with tqdm(total=total, desc=printable(source.name), disable=None, leave=False, bar_format=bar_format) as bar:
        async with aclosing(client.stream(counted(source.chunks, bar))) as records:
            async for record in records:
                await in_daemon_thread(results.take, record)  # the reader of our output may be slow


async def counted(source: AsyncGenerator[bytes, None], bar: "tqdm[Any]") -> AsyncGenerator[bytes, None]:
    """Pass bytes on, and move the bar to their seconds."""
    sent = 0
    async with aclosing(source):
        async for chunk in source:
            yield chunk
            sent += len(chunk)
            bar.update(to_seconds(sent) - bar.n)  # a sum of seconds would go beyond the end, of which tqdm warns

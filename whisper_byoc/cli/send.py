"""Stream a sound file to a server as a live feed, and print the text as it comes.

FILE is anything that ffmpeg reads; .pcm, .raw and .s16le are taken as PCM16 mono 16 kHz, and so is stdin (-).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from audio import pcm
from audio.media import load_audio
from whisper_byoc.cli.options import Parser, count
from whisper_byoc.client import TrickleClient
from whisper_byoc.errors import UsageError

__all__ = ["configure", "run"]

CHUNK_SECONDS = 0.1
CHUNK_BYTES = int(CHUNK_SECONDS * pcm.SAMPLE_RATE) * pcm.SAMPLE_WIDTH
RAW_ENDINGS = frozenset({".pcm", ".raw", ".s16le"})
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s"


def configure(parser: Parser) -> None:
    """Describe the options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="sound file, or - for PCM16 on stdin")
    parser.option("--url", help="server", env=("BYOC_URL",), default="http://localhost:8000")
    parser.option("--pipeline", "--model", "--byocModelID", help="pipeline, where the server has several")
    parser.option("--language", help="language spoken, or auto (default: the server's)")
    parser.option("--token", help="bearer token, where the server asks for one", env=("AUTH_TOKEN",))
    parser.switch("--realtime", help="send at the speed of speech, as a microphone would")
    parser.switch("--json", help="print whole records, one JSON object a line")
    parser.option(
        "--timeout", help="longest wait for the end after the last byte, in seconds", convert=count, default=120
    )


def run(args: argparse.Namespace) -> int:
    """Send every file; fails when the server had an error for any segment."""
    return asyncio.run(send_all(args))


async def send_all(args: argparse.Namespace) -> int:
    """Send file by file over one client."""
    params = {"language": args.language} if args.language else {}
    errors = 0
    async with TrickleClient(
        args.url, pipeline=args.pipeline, params=params, timeout=args.timeout, token=args.token
    ) as client:
        for name in args.files:
            if name == "-":
                errors += await send(client, from_stdin(), "stdin", None, args)
            else:
                data = load(Path(name))
                errors += await send(client, paced(data, args.realtime), Path(name).name, len(data), args)
    return 1 if errors else 0


async def send(
    client: TrickleClient, source: AsyncIterator[bytes], name: str, size: int | None, args: argparse.Namespace
) -> int:
    """Stream one source, print what comes back, and give the number of errors."""
    errors = 0
    with tqdm(total=None if size is None else to_seconds(size), desc=name, disable=None, leave=False,
              bar_format=None if size is None else BAR) as bar:  # fmt: skip
        async for record in client.stream(counted(source, bar)):
            errors += record["type"] == "error"
            show(record, bar, as_json=args.json)
    return errors


def show(record: dict[str, Any], bar: tqdm[Any], *, as_json: bool) -> None:
    """Print one record above the bar."""
    if as_json:
        bar.write(json.dumps(record, ensure_ascii=False), file=sys.stdout)
    elif record["type"] == "error":
        bar.write(f"segment {record['seq']} failed: {record['error']}", file=sys.stderr)
    elif record.get("text"):
        bar.write(record["text"], file=sys.stdout)
    sys.stdout.flush()


def load(path: Path) -> bytes:
    """Read a file as PCM16 mono 16 kHz.

    Raises `UsageError` when it is not there, `AudioError` when it is not sound.
    """
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    return path.read_bytes() if path.suffix.lower() in RAW_ENDINGS else pcm.encode(load_audio(path))


async def paced(data: bytes, realtime: bool) -> AsyncIterator[bytes]:
    """Yield small chunks, each when its sound would have been spoken if `realtime`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for at in range(0, len(data), CHUNK_BYTES):
        if realtime:
            await asyncio.sleep(max(0.0, began + to_seconds(at) - loop.time()))
        yield data[at : at + CHUNK_BYTES]


async def from_stdin() -> AsyncIterator[bytes]:
    """Yield what comes on stdin, as it comes."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    except ValueError:  # stdin is a file
        yield sys.stdin.buffer.read()
        return
    while chunk := await reader.read(CHUNK_BYTES):
        yield chunk


async def counted(source: AsyncIterator[bytes], bar: tqdm[Any]) -> AsyncIterator[bytes]:
    """Pass bytes on, and move the bar by their seconds."""
    async for chunk in source:
        yield chunk
        bar.update(to_seconds(len(chunk)))


def to_seconds(size: int) -> float:
    """Bytes of PCM16 to seconds of sound."""
    return size / (pcm.SAMPLE_RATE * pcm.SAMPLE_WIDTH)

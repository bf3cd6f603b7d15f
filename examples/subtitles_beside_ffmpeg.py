"""Subtitles of whatever ffmpeg reads, as they come: python examples/subtitles_beside_ffmpeg.py INPUT talk.srt."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from whisper_byoc import TrickleClient


async def sound_of(source: str) -> AsyncIterator[bytes]:
    """Yield the sound as 16 kHz mono PCM16, as fast as it is spoken."""
    words = ["ffmpeg", "-loglevel", "error", "-re", "-i", source, "-vn", "-ac", "1", "-ar", "16000", "-f", "s16le", "-"]
    ffmpeg = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert ffmpeg.stdout is not None
    while piece := await ffmpeg.stdout.read(3200):
        yield piece
    if await ffmpeg.wait():
        sys.exit(f"ffmpeg could not read {source}")


def stamp(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{ms:03}"


async def main(source: str, path: str) -> None:
    number = 0
    with Path(path).open("w", encoding="utf-8") as subtitles:
        async with TrickleClient("http://localhost:8000", params={"sentences": "false"}) as client:
            async for record in client.stream(sound_of(source)):
                for segment in record.get("segments", ()):
                    number += 1
                    times = f"{stamp(segment['start_ms'])} --> {stamp(segment['end_ms'])}"
                    subtitles.write(f"{number}\n{times}\n{segment['text']}\n\n")
                    subtitles.flush()


asyncio.run(main(*sys.argv[1:]))

"""Captions in the terminal while somebody speaks: python examples/live_captions.py [talk.wav]"""

import asyncio
import sys
import wave
from collections.abc import AsyncIterator

from whisper_byoc import TrickleClient


async def spoken(path: str) -> AsyncIterator[bytes]:
    """Yield a WAV file of 16 kHz mono PCM16 as fast as it is spoken."""
    with wave.open(path) as file:
        while piece := file.readframes(1600):
            yield piece
            await asyncio.sleep(0.1)


async def stdin() -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(sys.stdin.buffer.read1, 3200):
        yield piece


async def main() -> None:
    source = spoken(sys.argv[1]) if len(sys.argv) > 1 else stdin()
    async with TrickleClient("http://localhost:8000", params={"partials": "true", "sentences": "false"}) as client:
        async for record in client.stream(source):
            if record["type"] == "transcript":
                end = "\n" if record["is_final"] else ""
                print(f"\r\x1b[K{record['text']}", end=end, flush=True)  # a partial line is replaced by the next one


asyncio.run(main())

"""Say when a word is heard in PCM16 on stdin: python examples/keyword_spotter.py garden train < talk.pcm"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator

from whisper_byoc import TrickleClient


async def stdin() -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(sys.stdin.buffer.read1, 3200):
        yield piece


async def main() -> bool:
    wanted, found = {word.lower() for word in sys.argv[1:]}, False
    params = {"words": "true", "hotwords": ", ".join(wanted)}
    async with TrickleClient("http://localhost:8000", params=params) as client:
        async for record in client.stream(stdin()):
            for segment in record.get("segments", ()):
                for word in segment.get("words", ()):
                    if re.sub(r"\W", "", word["text"]).lower() in wanted:
                        found = True
                        print(f"{word['start_ms'] / 1000:.1f} s: {word['text'].strip()}", flush=True)
    return found


sys.exit(0 if asyncio.run(main()) else 1)

"""A live server as one writes it around faster-whisper: `python benchmarks/peer_server.py --model FOLDER`.

It has the routes of ours that live_load.py uses, and cuts utterances by the same voice activity. Each utterance is one
call of one model, in the order in which they end; there is no partial text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from aiohttp import web
from peers import Peer, faster_whisper

from audio import pcm
from audio.utterances import CHUNK, Chunker, Utterance, UtteranceSplitter
from whisper_byoc.processors.whisper import load_silero
from whisper_byoc.speech.transcript import Transcription, TranscriptRecord
from whisper_byoc.speech.voice_activity import VoiceActivity

LONGEST_JOB_SECONDS = 3600


class PeerServer:
    """All jobs, and the one thread in which the model runs."""

    def __init__(self, transcribe: Peer, voices: VoiceActivity) -> None:
        self._transcribe = transcribe
        self._voices = voices
        self._thread = ThreadPoolExecutor(1)
        self._records: dict[str, asyncio.Queue[bytes]] = defaultdict(asyncio.Queue)

    async def put_source(self, request: web.Request) -> web.Response:
        """Take a live feed."""
        records, chunker, splitter = self._records[request.match_info["job"]], Chunker(), UtteranceSplitter()
        voice = self._voices.stream()
        async with asyncio.TaskGroup() as group:
            async for piece in request.content.iter_any():
                samples = chunker.feed(piece)
                for utterance in splitter.feed(samples, await voice.rate(samples.reshape(-1, CHUNK))):
                    group.create_task(self._answer(utterance, records))
            for utterance in splitter.finish():
                group.create_task(self._answer(utterance, records))
        records.put_nowait(b'{"type":"end"}\n')
        return web.json_response({})

    async def get_output(self, request: web.Request) -> web.StreamResponse:
        """Write the records of a job as they come."""
        records, response = self._records[request.match_info["job"]], web.StreamResponse()
        await response.prepare(request)
        line = b""
        while b'"end"' not in line:
            line = await asyncio.wait_for(records.get(), LONGEST_JOB_SECONDS)
            await response.write(line)
        return response

    async def get_ready(self, _: web.Request) -> web.Response:
        """Say that the model is there."""
        return web.Response()

    async def delete_job(self, request: web.Request) -> web.Response:
        """Forget a job."""
        self._records.pop(request.match_info["job"], None)
        return web.json_response({})

    async def _answer(self, utterance: Utterance, records: asyncio.Queue[bytes]) -> None:
        waited = time.monotonic()
        text, began = await asyncio.get_running_loop().run_in_executor(self._thread, self._text_of, utterance)
        costs = (began - waited) * 1000, (time.monotonic() - began) * 1000
        record = TranscriptRecord(text, utterance.first, len(utterance.samples), *costs)
        records.put_nowait(json.dumps(record.fields()).encode() + b"\n")

    def _text_of(self, utterance: Utterance) -> tuple[Transcription, float]:
        began = time.monotonic()
        segments = tuple(self._transcribe(utterance.samples.astype(np.float32) / np.float32(pcm.FULL_SCALE)))
        text = Transcription(" ".join(each.text for each in segments), "en", segments)
        begin, end = utterance.speech_start - utterance.first, utterance.speech_end - utterance.first
        return text.within(begin / pcm.SAMPLE_RATE, end / pcm.SAMPLE_RATE), began


async def serve(transcribe: Peer) -> None:
    """Listen on a free port of loopback until killed."""
    voices = VoiceActivity(load_silero)
    await voices.start()
    server, app = PeerServer(transcribe, voices), web.Application()
    app.add_routes(
        [
            web.put("/live/{job}/source", server.put_source),
            web.get("/live/{job}/output", server.get_output, allow_head=False),
            web.delete("/live/{job}", server.delete_job),
            web.get("/readyz", server.get_ready),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"listening on port {runner.addresses[0][1]}", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Load the model, say one thing to it, serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="CTranslate2 folder")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    transcribe = faster_whisper(options.model, options.threads)
    transcribe(np.zeros(pcm.SAMPLE_RATE, np.float32))
    asyncio.run(serve(transcribe))


if __name__ == "__main__":
    main()

"""How fast a tint pipeline takes a live video stream: 640x480 at 30 frames a second, H.264 in and out, with sound.

The stream is sent at its own speed. `behind` is how long after its last byte the last output was there: it keeps up
when that is a second or two, however long the stream. `cores` is CPU time per second of stream, of everything together:
container, its two ffmpeg processes, and the trickle server and clients of this benchmark.

    .venv/bin/python benchmarks/video_stream.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
from aiohttp import web
from report import emit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from whisper_byoc.processors.registry import find
from whisper_byoc.processors.whisper import WhisperSettings
from whisper_byoc.server.run import Server, ServerConfig
from whisper_byoc.trickle.publisher import TricklePublisher
from whisper_byoc.trickle.server import TrickleServer
from whisper_byoc.trickle.subscriber import TrickleSubscriber

RATE, SIZE = 30, "640x480"


def moving_picture(seconds: int) -> bytes:
    """Make a test picture that moves everywhere, with a tone."""
    command = [ffmpeg_path(), "-loglevel", "error", "-f", "lavfi", "-i", f"testsrc2=size={SIZE}:rate={RATE}"]
    command += ["-f", "lavfi", "-i", "sine=sample_rate=48000", "-t", str(seconds), "-c:v", "libx264"]
    command += ["-preset", "veryfast", "-g", str(RATE), "-c:a", "aac", "-f", "mpegts", "pipe:1"]
    return subprocess.run(command, env=ffmpeg_environment(), stdout=subprocess.PIPE, check=True).stdout


async def run(pipeline: str, ts: bytes, seconds: int) -> dict[str, object]:
    """Send the stream through one pipeline."""
    trickle = TrickleServer("/ai/trickle/")
    app = web.Application(client_max_size=0)
    trickle.add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/ai/trickle"
    for name in ("in", "out"):
        trickle.create(name, "video/MP2T")
    processor = find(pipeline).make(WhisperSettings())
    try:
        async with Server({pipeline: processor}, ServerConfig("127.0.0.1", 0, stream_hosts=["127.0.0.1"])) as server:
            await server.loaded()
            began = time.perf_counter()
            cpu = cpu_seconds()
            got = asyncio.ensure_future(receive(f"{base}/out"))
            body = {"gateway_request_id": "bench", "subscribe_url": f"{base}/in", "publish_url": f"{base}/out"}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http:
                async with http.post("/stream/start", json=body | {"params": {"max_framerate": RATE}}) as answer:
                    assert answer.status == 200, await answer.text()
                async with TricklePublisher(f"{base}/in", "video/MP2T") as publisher:
                    pieces = [ts[at : at + 188 * 500] for at in range(0, len(ts), 188 * 500)]
                    for number, piece in enumerate(pieces):
                        due = began + seconds * number / len(pieces)
                        await asyncio.sleep(max(0.0, due - time.perf_counter()))
                        await publisher.publish(piece)
                    await publisher.close(delete_channel=True)
                while server.streams.streams:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            took = time.perf_counter() - began
            trickle.close("out")
            received = await got
            return {
                "pipeline": pipeline,
                "stream_s": seconds,
                "behind_s": round(took - seconds, 2),
                "cores": round((cpu_seconds() - cpu) / seconds, 2),
                "out_mb": round(received / 1e6, 2),
            }
    finally:
        await runner.cleanup()


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


async def receive(url: str) -> int:
    """Read the output to its end."""
    size = 0
    async with TrickleSubscriber(url, start=-1) as subscriber:
        async for segment in subscriber:
            size += len(await segment.read())
    return size


def main() -> None:
    """Measure both tints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    seconds = 3 if args.quick else 30
    ts = moving_picture(seconds)
    rows = [asyncio.run(run(name, ts, seconds)) for name in ("green-tint-cpu", "grayscale-cpu")]
    emit("video_stream", {f"{SIZE} at {RATE} frames/s": rows}, as_json=args.json)


if __name__ == "__main__":
    main()

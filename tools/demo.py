"""`make demo`: a real server, speech streamed to it at the speed of speech, and the text as it comes.

Takes whisper-tiny where it is cached or can be downloaded, else the bundled demo model, and says which and why.
Ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from audio import pcm
from audio.media import load_audio
from whisper_byoc import TrickleClient
from whisper_byoc.errors import ByocError, ModelError
from whisper_byoc.speech.models import can_fetch, fetch_model, find_model

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
DECIDE_SECONDS = 5.0
READY_SECONDS = 60.0
CHUNK_SECONDS = 0.1
FRAME = bytes([10, 20, 30]) * (320 * 240)


async def main() -> int:
    """Show everything once, and give an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="send as fast as the server takes it")
    fast = parser.parse_args().fast
    model, why = choose_model()
    print(f"model: {model} ({why})")
    server, url = await start_server(f"whisper-{model}")
    try:
        print(f"server: {url}, pipelines whisper-{model}, green-tint-cpu\n")
        right = [await say(url, f"whisper-{model}", name, fast=fast) for name in fixtures_for(model)]
        await tint(url)
    finally:
        server.terminate()
        code = await asyncio.wait_for(server.wait(), 40)
    print(
        f"\n{sum(right)} of {len(right)} recordings came back word for word; the server stopped with exit code {code}."
    )
    print(f"Yours next: .venv/bin/whisper-byoc serve --pipeline whisper-{model}")
    print("       and: .venv/bin/whisper-byoc send FILE")
    return code


def choose_model() -> tuple[str, str]:
    """Name the model and say why it is that one."""
    try:
        if find_model("tiny") is not None:
            return "tiny", "its weights are on this machine"
        print("whisper-tiny is not on this machine; can it be downloaded?", flush=True)
        if can_fetch("tiny", DECIDE_SECONDS):
            fetch_model("tiny", progress=True)
            return "tiny", "downloaded just now"
        reason = f"the address of whisper-tiny's weights did not answer within {DECIDE_SECONDS:.0f} s"
    except ModelError as error:
        reason = str(error)
    return "demo", f"bundled: 321 words of synthetic speech, no substitute for whisper-tiny; {reason}"


async def start_server(speech: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start `whisper-byoc serve` on a free port of loopback, and wait until it is ready."""
    command = [sys.executable, "-m", "whisper_byoc.cli.main", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--pipeline", speech, "--pipeline", "green-tint-cpu"]
    server = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert server.stderr is not None
    log, url = "", ""
    while line := (await asyncio.wait_for(server.stderr.readline(), READY_SECONDS)).decode():
        log += line
        if found := re.search(r"listening on port (\d+)", line):
            url = f"http://127.0.0.1:{found[1]}"
        if "ready:" in line:
            return server, url
    raise ByocError(f"the server did not start: {log}")


async def say(url: str, pipeline: str, name: str, *, fast: bool) -> bool:
    """Stream one recording, print the text as it comes, and tell whether it was the words that were spoken."""
    expected = json.loads((FIXTURES / "texts.json").read_text())[name]["text"]
    data = pcm.encode(load_audio(FIXTURES / name))
    print(f"{name} ({len(data) / 32_000:.1f} s)", flush=True)
    heard = []
    async with TrickleClient(url, pipeline=pipeline) as client:
        async for record in client.stream(spoken(data, fast=fast)):
            if record["type"] == "transcript":
                at, took = record["timing"]["media_window_end_ms"] / 1000, record["stats"]["inference_ms"]
                print(f"  {at:5.1f} s  {record['text'] or '(silence)'}   [{took} ms]", flush=True)
                heard.append(record["text"])
            elif record["type"] == "error":
                print(f"  error: {record['error']}", flush=True)
    return words(" ".join(heard)) == words(expected)


async def spoken(data: bytes, *, fast: bool) -> AsyncIterator[bytes]:
    """Yield the sound as a microphone would."""
    size = int(CHUNK_SECONDS * pcm.SAMPLE_RATE) * pcm.SAMPLE_WIDTH
    for at in range(0, len(data), size):
        yield data[at : at + size]
        if not fast:
            await asyncio.sleep(CHUNK_SECONDS)


async def tint(url: str) -> None:
    """Send one frame through the second pipeline."""
    async with TrickleClient(url, pipeline="green-tint-cpu") as client:
        tinted = await client.process_frame(FRAME)
    print(f"\ngreen-tint-cpu: pixel {tuple(FRAME[:3])} came back as {tuple(tinted[:3])}")


def fixtures_for(model: str) -> list[str]:
    """Choose recordings that the model can know, the long one last."""
    if model == "tiny":
        return ["tiny-weather.wav", "tiny-train.wav", "tiny-fox-fast.wav", "tiny-garden.wav"]
    return ["demo-hello-world.wav", "demo-numbers-noise-15db.wav", "silence-3s.wav", "demo-long-40s.wav"]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.sub(r"[^a-z0-9' ]", " ", text.lower()).split()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (ByocError, TimeoutError) as error:
        sys.exit(f"demo: {error or 'timed out'}")
    except KeyboardInterrupt:
        sys.exit(130)

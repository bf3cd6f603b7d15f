"""`make demo`: the whole path on this machine, speech streamed into it as it is spoken, and the text as it comes.

Client -> gateway -> orchestrator -> container, as `whisper-byoc up` runs them. Takes whisper-tiny where it is cached or
can be downloaded, else tiny.en, else the bundled demo model, and says which and why. Ends by itself.
"""

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from audio import pcm
from audio.media import load_audio
from whisper_byoc import GatewayClient
from whisper_byoc.cli.up import Plan, running_nodes
from whisper_byoc.errors import ByocError, ModelError
from whisper_byoc.speech.models import DEMO_NOTICE, fetch_model, find_model

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
REAL_MODELS = ("tiny", "tiny.en")
"""Best first; tiny.en can also be had where nothing but a package index is reached."""
DECIDE_SECONDS = 5.0
CHUNK_SECONDS = 0.1
FRAME = bytes([10, 20, 30]) * (320 * 240)


async def main() -> int:
    """Show everything once, and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="send as fast as the server takes it")
    fast = parser.parse_args().fast
    model, why = choose_model()
    print(f"model: {model} ({why})")
    if model == "demo":
        print(f"note: {DEMO_NOTICE}")
    log: list[str] = []
    try:
        async with running_nodes(
            Plan((f"whisper-{model}", "green-tint-cpu")), lambda name, line: log.append(f"{name}: {line}")
        ) as path:
            print(f"path: client -> gateway {path.gateway} -> orchestrator {path.orchestrator}")
            print(f"      -> container {path.container}, pipelines whisper-{model}, green-tint-cpu\n")
            right = [await say(path.gateway, f"whisper-{model}", name, fast=fast) for name in fixtures_for(model)]
            await tint(path.gateway)
    except ByocError:
        print("the log of the three:", *log, sep="\n  ", file=sys.stderr)
        raise
    print(f"\n{sum(right)} of {len(right)} recordings came back word for word; all three processes have stopped.")
    print(f"Next, try: .venv/bin/whisper-byoc up --pipeline whisper-{model}")
    print("      and: .venv/bin/whisper-byoc send --gateway http://127.0.0.1:8935 FILE")
    return 0


def choose_model() -> tuple[str, str]:
    """Return the model and why it is that one: real English wherever it can be had."""
    directory = Path(os.environ["MODEL_DIR"]) if os.environ.get("MODEL_DIR") else None  # as the server reads it
    reasons = []
    for name in REAL_MODELS:
        if find_model(name, directory) is not None:
            return name, "its weights are on this machine"
        print(f"whisper-{name} is not on this machine; trying to download it", flush=True)
        try:
            fetch_model(name, directory, timeout=DECIDE_SECONDS, progress=True)
        except ModelError as error:
            reasons.append(str(error).partition(": ")[0])  # the rest is advice
        else:
            return name, "downloaded just now"
    return "demo", "; ".join(reasons)


async def say(gateway: str, pipeline: str, name: str, *, fast: bool) -> bool:
    """Stream one recording, print the text as it comes, and return whether it was the words that were spoken."""
    expected = json.loads((FIXTURES / "texts.json").read_text())[name]["text"]
    data = pcm.encode(load_audio(FIXTURES / name))
    print(f"{name} ({len(data) / 32_000:.1f} s)", flush=True)
    texts = []
    # each text is shown by itself, and so is to be whole
    async with GatewayClient(gateway, pipeline, params={"sentences": "false"}) as client:
        async for record in client.stream(spoken(data, fast=fast)):
            if record["type"] == "transcript" and record["is_final"]:
                at, took = record["timing"]["media_window_end_ms"] / 1000, record["stats"]["inference_ms"]
                print(f"  {at:5.1f} s  {record['text'] or '(silence)'}   [{took} ms]", flush=True)
                texts.append(record["text"])
            elif record["type"] == "error":
                print(f"  error: {record['error']}", flush=True)
    return words(" ".join(texts)) == words(expected)


async def spoken(data: bytes, *, fast: bool) -> AsyncIterator[bytes]:
    size = int(CHUNK_SECONDS * pcm.SAMPLE_RATE) * pcm.SAMPLE_WIDTH
    for at in range(0, len(data), size):
        yield data[at : at + size]
        if not fast:
            await asyncio.sleep(CHUNK_SECONDS)


async def tint(gateway: str) -> None:
    async with GatewayClient(gateway, "green-tint-cpu") as client:
        tinted = await client.process_frame(FRAME)
    print(f"\ngreen-tint-cpu: pixel {tuple(FRAME[:3])} came back as {tuple(tinted[:3])}")


def fixtures_for(model: str) -> list[str]:
    """Choose recordings whose words the model knows, the long one last."""
    if model in REAL_MODELS:
        return ["tiny-weather.wav", "tiny-train.wav", "tiny-fox-fast.wav", "tiny-garden.wav"]
    return ["demo-hello-world.wav", "demo-numbers-noise-15db.wav", "silence-3s.wav", "demo-long-40s.wav"]


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9' ]", " ", text.lower()).split()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (ByocError, TimeoutError) as error:
        sys.exit(f"demo: {error or 'timed out'}")
    except KeyboardInterrupt:
        sys.exit(130)

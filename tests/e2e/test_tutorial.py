"""Scripts written for the tutorial run unchanged."""

import pytest

from whisper_byoc import TrickleClient

GREEN_TINT = """
import asyncio
import numpy as np
from pytrickle import FrameProcessor, run_processor


class GreenTintProcessor(FrameProcessor):
    async def initialize(self):
        print("initialized", flush=True)

    async def process(self, frame: bytes) -> bytes:
        if not frame:
            return b""
        pixels = np.frombuffer(frame, dtype=np.uint8).copy()
        pixels[1::3] = np.minimum(pixels[1::3].astype(np.uint16) + 80, 255).astype(np.uint8)
        return pixels.tobytes()

    async def shutdown(self):
        print("shut down", flush=True)


if __name__ == "__main__":
    asyncio.run(run_processor(GreenTintProcessor(), port=8000))
"""

NEVER_CALLS_RUN_PROCESSOR = """
import asyncio
import numpy as np
import whisper


class WhisperProcessor:
    async def initialize(self):
        self.model = whisper.load_model(MODEL)

    async def process(self, frame: bytes) -> bytes:
        if not frame:
            return b""
        audio = np.frombuffer(frame, dtype=np.int16).astype(np.float32) / 32768.0
        loop = asyncio.get_event_loop()
        result = await loop.run_in_executor(None, lambda: self.model.transcribe(audio, language="en", fp16=False))
        return result["text"].strip().encode("utf-8")

    async def shutdown(self):
        pass
"""

CLIENT = """
import asyncio
from http_trickle import TrickleClient


async def main():
    async with TrickleClient(URL) as client:
        frame = bytes([10, 20, 30]) * (1280 * 720)
        tinted = await client.process_frame(frame)
        assert tinted == bytes([10, 100, 30]) * (1280 * 720), tinted[:6]
        print("Green tint applied", len(tinted))


asyncio.run(main())
"""


@pytest.fixture
def write(tmp_path):
    def write(name, source):
        path = tmp_path / name
        path.write_text(source)
        return str(path)

    return write


async def test_processor_and_client_scripts(command, write):
    server = await command("run", "--port", "0", "--host", "127.0.0.1", write("processor.py", GREEN_TINT))
    await server.ready()
    client = await command("run", write("client.py", CLIENT.replace("URL", repr(server.url))))
    assert await client.end(None) == 0, client.whole_log
    assert client.out == b"Green tint applied 2764800\n", client.whole_log
    assert await server.end() == 0
    assert server.out == b"initialized\nshut down\n"


async def test_script_that_never_calls_run_processor_is_served(command, write, fixtures_dir, texts):
    from audio import pcm
    from audio.wav import read_wav
    from whisper_byoc.speech.models import find_model

    source = NEVER_CALLS_RUN_PROCESSOR.replace("MODEL", repr(str(find_model("demo"))))
    server = await command("run", "--port", "0", "--host", "127.0.0.1", write("processor.py", source))
    await server.ready()
    async with TrickleClient(server.url) as client:
        frame = pcm.encode(read_wav((fixtures_dir / "demo-hello-world.wav").read_bytes()))
        assert (await client.process_frame(frame)).decode() == texts["demo-hello-world.wav"]["text"]
        assert await client.process_frame(b"") == b""
    assert await server.end() == 0

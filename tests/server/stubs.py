"""Processors that stand in for real ones, and a client that sends exactly what it is told."""

import asyncio

from whisper_byoc.processors.base import Result


class Upper:
    """A processor by its shape alone."""

    content_type = "text/plain; charset=utf-8"

    async def process(self, frame: bytes) -> bytes:
        return frame.upper()


class Mirror:
    async def process(self, frame: bytes) -> bytes:
        return frame[::-1]


class Sound:
    """Stands in for speech: answers with the length of what it gets."""

    media = "audio"
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame: bytes) -> bytes:
        return b"%d bytes" % len(frame)


class Says(Sound):
    """Answers with the next of its texts (the last one again and again), or raises it; `Says.gated` waits for `go`."""

    def __init__(self, *texts):
        self.texts = list(texts)
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    @classmethod
    def gated(cls, *texts):
        processor = cls(*texts)
        processor.go.clear()
        return processor

    async def process(self, frame):
        self.begun.set()
        await self.go.wait()
        text = self.texts[0] if len(self.texts) == 1 else self.texts.pop(0)
        if isinstance(text, Exception):
            raise text
        return text.encode()


class Listener:
    """A processor with live sessions that keeps what it hears, waits for `go`, and answers as `answer` says."""

    media = "audio"
    live = True
    content_type = "text/plain; charset=utf-8"

    def __init__(self, answer=lambda piece: []):
        self.answer = answer
        self.go, self.begun = asyncio.Event(), asyncio.Event()
        self.go.set()
        self.pieces, self.arrivals, self.calls, self.closed = [], [], [], 0

    async def process(self, frame):
        raise AssertionError("sessions are used")

    def open_session(self, job):
        self.job = job
        return self

    async def feed(self, frame):
        self.calls.append("feed")
        if frame == b"no":
            raise ValueError("no such segment")
        return [final(f"segment of {len(frame)}")]

    async def feed_live(self, piece, arrived):
        self.begun.set()
        await self.go.wait()
        self.pieces.append(piece)
        self.arrivals.append(arrived)
        return self.answer(piece)

    def when_ready(self, tell):
        self.tell = tell

    async def ready(self):
        return self.answer(None)

    async def flush(self):
        self.calls.append("flush")
        return [final("flush")]

    async def end_feed(self):
        self.calls.append("end_feed")
        return [final("last words")]

    async def finish(self):
        self.calls.append("finish")
        return [final(f"{len(self.heard)} bytes")]

    def close(self):
        self.closed += 1

    def summary(self):
        return {}

    @property
    def heard(self):
        return b"".join(self.pieces)


def final(text, **options):
    fields = {"type": "transcript", "text": text, "is_final": True, "language": "en", "segments": []}
    return Result(text.encode(), fields, **options)


def partial(text):
    return Result(b"", {"type": "transcript", "text": text, "is_final": False, "segments": []}, partial=True)


async def raw(api, head: str, body: bytes = b""):
    """Open a connection and send this; return its reader and writer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    await writer.drain()
    return reader, writer

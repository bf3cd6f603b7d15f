"""Processors that stand in for real ones, and a client that sends exactly what it is told."""

import asyncio


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


async def raw(api, head: str, body: bytes = b""):
    """Open a connection and send this; return its reader and writer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    await writer.drain()
    return reader, writer

"""Clients of all kinds for benchmarks/soak.py: each does one job, with or without a fault, and counts its records.

A client raises `Refused` when the server has no place for it, and `Wrong` when a record was lost, came twice or tells
of an error that nobody has made.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import struct
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from whisper_byoc.aio import cancel
from whisper_byoc.trickle.errors import TrickleError
from whisper_byoc.trickle.publisher import TricklePublisher
from whisper_byoc.trickle.server import TrickleServer
from whisper_byoc.trickle.subscriber import TrickleSubscriber

__all__ = ["KINDS", "PICTURES", "VIDEO_SECONDS", "Clip", "Kind", "Late", "Refused", "Wire", "World", "Wrong"]

BUSY = (429, 503)
PIECE_SECONDS = 0.1
PIECE_BYTES = 3200
"""As much PCM16 at 16 kHz."""
NDJSON = MappingProxyType({"Accept": "application/x-ndjson"})
VIDEO_SECONDS, PICTURES = 3, 30
"""Of `World.video`."""


class Wrong(Exception):
    """The server did what it must not do."""


class Late(Exception):
    """A stream was stopped before its last text was ready; its records say so."""


class Refused(Exception):
    """The server had no place, and said so."""


@dataclass(frozen=True)
class Clip:
    """A recording with speech."""

    name: str
    pcm: bytes
    """PCM16, 16 kHz, mono."""
    files: Mapping[str, bytes]
    """The same as files: name -> content."""

    @property
    def pieces(self) -> Sequence[bytes]:
        """The sound as a microphone gives it."""
        return [self.pcm[at : at + PIECE_BYTES] for at in range(0, len(self.pcm), PIECE_BYTES)]


@dataclass
class World:
    """The server under test, and what clients have of it."""

    url: str
    speech: str
    """The name of its pipeline for speech; it has `passthrough` and `green-tint-cpu` beside it."""
    http: aiohttp.ClientSession
    trickle: TrickleServer
    trickle_url: str
    clips: Sequence[Clip]
    video: bytes
    """MPEG-TS with `PICTURES` pictures."""
    struck: float = field(default=float("-inf"))
    """When a child of the server was last killed, in seconds of the event loop."""

    def struck_since(self, began: float) -> bool:
        return self.struck >= began


class Wire:
    """One HTTP/1.1 request by hand: only so it can be sent in bits, and broken off at any byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, url: str) -> Wire:
        """Connect to the host and port of a URL."""
        address = urlsplit(url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, method: str, path: str, *lines: str) -> None:
        """Send the head of a request."""
        await self.send("\r\n".join((f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", "")).encode())

    async def chunk(self, data: bytes) -> None:
        """Send one chunk; an empty one ends the body."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def status(self) -> int:
        """Read the status of the answer."""
        return int((await self.reader.readline()).split()[1])

    def reset(self) -> None:
        """Break off with RST, as a machine does that has lost its connection."""
        if not self.writer.transport.is_closing():
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


async def frames(world: World, rng: random.Random, fault: str) -> None:
    """Send numbered segments, and get each back, in order, once."""
    job, began = uuid.uuid4().hex, asyncio.get_running_loop().time()
    path, output = f"/live/{job}/source?pipeline=passthrough", f"{world.url}/live/{job}/output?wait=60"
    sent = [b"%d:" % number + rng.randbytes(rng.choice((1, 100, 100_000))) for number in range(rng.randrange(3, 20))]
    odd = rng.randrange(len(sent))

    async def send() -> None:
        for number, data in enumerate(sent):
            if number == odd and fault == "cut":
                await _cut(world, path, data)
            if number == odd and fault == "slow":
                await _slowly(world, path, data[:20] if len(data) > 20 else data)
                sent[number] = data[:20]
                continue
            _check_taken(await _put(world, path, data))  # waits while the queue is full
            if number == odd and fault == "abandon":
                return
        async with world.http.delete(f"{world.url}/live/{job}/source") as answer:
            _check_taken(answer.status)

    sending = asyncio.ensure_future(send())
    try:
        wanted = odd if fault in ("abandon", "reread") else None
        got = await _records(world, output, wanted, sending)
        await sending
        if fault == "abandon":
            return
        payloads = [base64.b64decode(each["data"]) for each in got if each["type"] == "result"]
        if fault == "reread":
            payloads += [await _again(world, output, seq) for seq in range(len(payloads), len(sent))]
        else:
            _check_numbers(got)
        if payloads != sent and not world.struck_since(began):
            raise Wrong(f"{len(sent)} segments sent, {len(payloads)} other results")
    finally:
        await cancel(sending)


async def talk(world: World, rng: random.Random, fault: str) -> None:
    """Speak as into a microphone, and read the text as it comes."""
    job, clip = uuid.uuid4().hex, rng.choice(world.clips)
    path = f"/live/{job}/source?pipeline={world.speech}&partials=true"
    odd = rng.randrange(1, len(clip.pieces))

    async def speak() -> None:
        pieces = clip.pieces
        if fault in ("cut", "vanish"):
            await _say(world, path, pieces[:odd], end=False)
            if fault == "vanish":
                return
            pieces = pieces[odd:]
            await asyncio.sleep(PIECE_SECONDS)
        await _say(world, path, pieces)

    speaking = asyncio.ensure_future(speak())
    try:
        got = await _records(
            world,
            f"{world.url}/live/{job}/output?wait=60",
            None,
            speaking,
            pause=fault == "stall",
            give_up=fault == "vanish",
        )
        await speaking
        if fault == "vanish":
            return
        _check_numbers(got)
        if fault != "cut" and got[-1]["errors"]:
            raise Wrong(f"live: {got}")
        # with a reset goes what the server had not read yet, so that too little may be left of a word
        if fault != "cut" and not any(each.get("text") and each.get("is_final") for each in got):
            raise Wrong(f"live: no text of {clip.name}")
    finally:
        await cancel(speaking)


async def recording(world: World, rng: random.Random, fault: str) -> None:
    """Send a file as OpenAI's clients do."""
    clip, began = rng.choice(world.clips), asyncio.get_running_loop().time()
    name, data = rng.choice(tuple(clip.files.items()))
    if fault == "garbage":
        data = rng.randbytes(rng.randrange(1, 50_000))
    if fault == "cut":
        wire = await Wire.open(world.url)
        await wire.head("POST", "/v1/audio/transcriptions", "Content-Type: multipart/form-data; boundary=b",
                        f"Content-Length: {len(data)}")  # fmt: skip
        await wire.send(b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.wav"\r\n\r\n' + data[:9999])
        wire.reset()
        return
    form = aiohttp.FormData()
    form.add_field("file", data, filename=name)
    form.add_field("model", "whisper-1")
    try:
        async with asyncio.timeout(rng.uniform(0.0, 1.0) if fault == "gone" else None):
            async with world.http.post(f"{world.url}/v1/audio/transcriptions", data=form) as answer:
                status, body = answer.status, await answer.json()
    except TimeoutError:
        return
    if fault == "garbage":
        if not 400 <= status < 500:
            raise Wrong(f"garbage was answered with {status}")
        return
    if status == 503 and world.struck_since(began):
        return
    _check_taken(status, body)
    if not body["text"].strip():
        raise Wrong(f"no text of {name}")


async def web_socket(world: World, rng: random.Random, fault: str) -> None:
    """Speak through a WebSocket."""
    clip = rng.choice(world.clips)
    odd = rng.randrange(1, len(clip.pieces))
    try:
        socket_ = await world.http.ws_connect(f"{world.url}/transcribe?model={world.speech}")
    except aiohttp.WSServerHandshakeError as error:
        if error.status in BUSY:
            raise Refused from None
        raise
    texts: list[str] = []

    async def read() -> None:
        texts.extend([json.loads(message.data).get("text", "") async for message in socket_])

    reading = asyncio.ensure_future(read())
    try:
        for number, piece in enumerate(clip.pieces):
            await socket_.send_bytes(piece)
            if number == odd and fault == "cut":
                return
            await asyncio.sleep(PIECE_SECONDS)
        await socket_.send_str("eos")
        await reading
        if socket_.close_code != aiohttp.WSCloseCode.OK or not any(texts):
            raise Wrong(f"WebSocket: closed with {socket_.close_code} after {texts}")
    finally:
        await cancel(reading)
        if fault == "cut" and (transport := socket_.get_extra_info("socket")):
            transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await socket_.close()


async def stream(world: World, rng: random.Random, fault: str) -> None:
    """Speak through trickle channels, as an orchestrator brings a BYOC stream."""
    name, clip = f"s-{uuid.uuid4().hex}", rng.choice(world.clips)
    channels = {"subscribe_url": name, "data_url": f"{name}-data", "events_url": f"{name}-events"}
    await _start(world, name, channels, {"input": "pcm16", "pipeline": world.speech})
    records: list[dict[str, Any]] = []

    async def read() -> None:
        async with TrickleSubscriber(f"{world.trickle_url}{name}-data", start=0) as subscriber:
            async for segment in subscriber:
                found = [json.loads(line) for line in (await segment.read()).splitlines()]
                records.extend(each for each in found if each["type"] != "keepalive")

    reading = asyncio.ensure_future(read())
    try:
        async with TricklePublisher(f"{world.trickle_url}{name}", "audio/L16") as publisher:
            with suppress(TrickleError):
                for at in range(0, len(clip.pcm), 10 * PIECE_BYTES):
                    await publisher.publish(clip.pcm[at : at + 10 * PIECE_BYTES])
                    await asyncio.sleep(10 * PIECE_SECONDS)
                    if fault == "torn" and at:
                        world.trickle.close(name)
                    if fault == "lost orchestrator" and at:
                        for each in channels.values():
                            world.trickle.close(each)
            await _stop(world, name)
        if fault == "lost orchestrator":
            return
        world.trickle.close(f"{name}-data")
        await reading
        _check_numbers(records)
        if any("were not ready within" in each.get("error", "") for each in records):
            raise Late
        if not fault and (records[-1]["errors"] or not any(each.get("text") for each in records)):
            raise Wrong(f"stream: {records}")
    finally:
        await cancel(reading)
        for each in channels.values():
            with suppress(TrickleError):
                world.trickle.close(each)


async def video(world: World, rng: random.Random, fault: str) -> None:
    """Send pictures with sound through a tint, and count them."""
    name, began = f"v-{uuid.uuid4().hex}", asyncio.get_running_loop().time()
    channels = {"subscribe_url": name, "publish_url": f"{name}-out"}
    await _start(world, name, channels, {"pipeline": "green-tint-cpu", "max_framerate": 10})
    try:
        async with TricklePublisher(f"{world.trickle_url}{name}", "video/MP2T") as publisher:
            pieces = [world.video[at : at + 188 * 100] for at in range(0, len(world.video), 188 * 100)]
            with suppress(TrickleError):
                for number, piece in enumerate(pieces):
                    await publisher.publish(piece)
                    await asyncio.sleep(VIDEO_SECONDS / len(pieces))
                    if fault == "lost orchestrator" and number:
                        for each in channels.values():
                            world.trickle.close(each)
            await _stop(world, name)
        async with world.http.get(f"{world.url}/live/{name}/output?wait=5") as answer:
            seq = int(answer.headers.get("Lp-Trickle-Seq", -1))
        if not fault and seq != PICTURES and not world.struck_since(began):
            raise Wrong(f"video: the end has number {seq} after {PICTURES} pictures")
    finally:
        for each in channels.values():
            with suppress(TrickleError):
                world.trickle.close(each)


async def stranger(world: World, rng: random.Random, fault: str) -> None:
    """Connect without a reason, and say something else than HTTP, or nothing."""
    wires = [await Wire.open(world.url) for _ in range(rng.randrange(1, 20))]
    try:
        for wire in wires:
            with suppress(ConnectionError):
                await wire.send(rng.choice((b"", b"GET /health HTTP/1.1\r\nHost:", rng.randbytes(300), b"\r\n" * 9)))
        await asyncio.sleep(rng.uniform(0.0, 2.0))
    finally:
        for wire in wires:
            wire.reset() if rng.random() < 0.5 else wire.close()


@dataclass(frozen=True)
class Kind:
    """One kind of client."""

    run: Callable[[World, random.Random, str], Awaitable[None]]
    faults: Sequence[str] = ()
    share: int = 1


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "frames": Kind(frames, ("cut", "slow", "abandon", "reread"), 3),
        "live": Kind(talk, ("cut", "vanish", "stall"), 4),
        "recording": Kind(recording, ("cut", "garbage", "gone"), 4),
        "websocket": Kind(web_socket, ("cut",), 2),
        "stream": Kind(stream, ("torn", "lost orchestrator"), 2),
        "video": Kind(video, ("lost orchestrator",), 1),
        "stranger": Kind(stranger, (), 1),
    }
)


def _check_taken(status: int, body: object = "") -> None:
    if status in BUSY:
        raise Refused
    if status != 200:
        raise Wrong(f"answered with {status} {body}")


def _check_numbers(records: Sequence[Mapping[str, Any]]) -> None:
    numbers = [each["seq"] for each in records]
    if numbers != list(range(len(numbers))):
        raise Wrong(f"records {numbers}: some are lost, or came twice")
    if [each["type"] for each in records].count("end") != 1 or records[-1]["type"] != "end":
        raise Wrong(f"{len(records)} records without one end: {records[-1:]}")


async def _put(world: World, path: str, data: bytes) -> int:
    async with world.http.put(f"{world.url}{path}", data=data) as answer:
        return answer.status


async def _cut(world: World, path: str, data: bytes) -> None:
    wire = await Wire.open(world.url)
    await wire.head("PUT", path, f"Content-Length: {len(data) + 1}")
    await wire.send(data)
    wire.reset()


async def _slowly(world: World, path: str, data: bytes) -> None:
    wire = await Wire.open(world.url)
    try:
        await wire.head("PUT", path, f"Content-Length: {len(data)}")
        for byte in data:
            await wire.send(bytes([byte]))
            await asyncio.sleep(0.05)
        _check_taken(await wire.status())
    finally:
        wire.close()


async def _say(world: World, path: str, pieces: Sequence[bytes], *, end: bool = True) -> None:
    """Send pieces as their time comes, and read the answer; without `end`, break off after the last."""
    wire = await Wire.open(world.url)
    answer = asyncio.ensure_future(wire.status())
    try:
        with suppress(ConnectionError):  # it was refused, and closed
            await wire.head("PUT", path, "Transfer-Encoding: chunked")
            for piece in pieces:
                if answer.done():
                    break
                await wire.chunk(piece)
                await asyncio.sleep(PIECE_SECONDS)
            else:
                if not end:
                    return
                await wire.chunk(b"")
        _check_taken(await answer)
    finally:
        await cancel(answer)
        wire.close() if end else wire.reset()


async def _records(
    world: World,
    output: str,
    wanted: int | None,
    sending: asyncio.Future[None],
    *,
    pause: bool = False,
    give_up: bool = False,
) -> list[dict[str, Any]]:
    """Follow an output to its end, for `wanted` records, or with `give_up` until all is sent."""
    found: list[dict[str, Any]] = []

    async def read() -> None:
        if wanted == 0:
            return
        async with world.http.get(output, headers=NDJSON) as answer:
            if answer.status != 200:
                return  # there is no such job: it was refused
            async for line in answer.content:
                found.append(json.loads(line))
                if pause:
                    await asyncio.sleep(0.5)
                if len(found) == wanted:
                    return

    reading = asyncio.ensure_future(read())
    try:
        done, _ = await asyncio.wait({reading, sending}, return_when=asyncio.FIRST_COMPLETED)
        if sending in done:
            sending.result()
            if give_up:
                return found
        await reading
    finally:
        await cancel(reading)
    return found


async def _again(world: World, output: str, seq: int) -> bytes:
    async with world.http.get(f"{output}&seq={seq}") as answer:
        if answer.status != 200:
            raise Wrong(f"result {seq} is not kept: {answer.status}")
        return await answer.read()


async def _start(world: World, name: str, channels: Mapping[str, str], params: Mapping[str, Any]) -> None:
    for channel in channels.values():
        world.trickle.create(channel, "video/MP2T" if channel == name else "application/json")
    urls = {key: world.trickle_url + channel for key, channel in channels.items()}
    body = {"gateway_request_id": name, "params": params, **urls}
    async with world.http.post(f"{world.url}/stream/start", json=body, headers={"X-Stream-Id": name}) as answer:
        if answer.status != 200:
            for channel in channels.values():
                world.trickle.close(channel)
        _check_taken(answer.status, await answer.text())


async def _stop(world: World, name: str) -> None:
    async with world.http.post(f"{world.url}/stream/stop", headers={"X-Stream-Id": name}) as answer:
        if answer.status != 200:
            raise Wrong(f"a stop was answered with {answer.status}")

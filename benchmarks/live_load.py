"""Live streams in real time, from a client cheap enough to share the cores with the server it measures.

Every stream is the same talk (clip after clip, with pauses) from another place on. Its sound is cut and framed for HTTP
beforehand, so that sending a piece is one write. Nothing is computed while streams run but the times of records.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from clips import Clip

from audio import pcm
from audio.utterances import SplitterOptions
from whisper_byoc.http import CONNECTION_ERRORS, open_session

__all__ = ["Load", "Loaded", "Talk", "percentile", "silence", "talk"]

PAUSES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Seconds between two clips."""
PIECE_SECONDS = 0.1
"""A client sends a piece when a microphone would have filled it."""
PIECE_BYTES = int(PIECE_SECONDS * pcm.SAMPLE_RATE) * pcm.SAMPLE_WIDTH
START_SECONDS = 1.0
"""Streams begin spread over this time, as clients do not all begin at once."""
GOLDEN = (5**0.5 - 1) / 2
"""The multiples of it, modulo 1, are spread evenly, however many there are."""
DRAIN_SECONDS = 10.0
"""How long the server may take for what is left when the sound is over; text that comes later is lost."""
EDGE_SECONDS = 1.0
"""What is said this close to the end of a stream is not counted: the end of the feed ends it, and no pause."""
WAIT_SECONDS = 60
KEPT_SILENCE_SECONDS = SplitterOptions().post_roll
"""What both servers leave behind the last chunk with speech of an utterance that a pause ended. Whisper's own times of
segments end up to 0.4 s before it; they never end behind it."""
NOISE_STEPS = 2
"""Loudest sample of silence, in steps of PCM16: what a muted microphone gives is seldom all zero."""


@dataclass(frozen=True)
class Talk:
    """Sound that repeats without end."""

    pieces: Sequence[bytes]
    """Each of `PIECE_SECONDS`, PCM16, as one chunk of an HTTP body."""
    spoken: Sequence[tuple[float, float]] = ()
    """Where each clip begins and ends, in seconds."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pieces) * PIECE_SECONDS

    def said_between(self, begin: float, end: float) -> list[tuple[float, float]]:
        """Return the clips that lie whole between two times; the talk repeats."""
        rounds = range(math.floor(begin / self.seconds), math.floor(end / self.seconds) + 1)
        clips = [(number * self.seconds + a, number * self.seconds + b) for number in rounds for a, b in self.spoken]
        return [(a, b) for a, b in clips if begin <= a and b <= end]


def talk(clips: Sequence[Clip], seed: int = 1) -> Talk:
    """Put all speech in one row, with pauses of 0.1 to 5 s."""
    rng, parts, spoken, at = np.random.default_rng(seed), list[bytes](), list[tuple[float, float]](), 0
    for clip, pause in zip(clips, np.resize(rng.permutation(PAUSES), len(clips)), strict=True):
        sound = pcm.encode(clip.samples)
        rest = bytes(int(pause * pcm.SAMPLE_RATE) * pcm.SAMPLE_WIDTH)
        spoken.append((at / pcm.SAMPLE_WIDTH / pcm.SAMPLE_RATE, (at + len(sound)) / pcm.SAMPLE_WIDTH / pcm.SAMPLE_RATE))
        parts += [sound, rest]
        at += len(sound) + len(rest)
    return Talk(framed(b"".join(parts)), spoken)


def silence(seed: int = 1) -> Talk:
    """Return 10 s of a microphone that nobody speaks into."""
    samples = np.random.default_rng(seed).integers(-NOISE_STEPS, NOISE_STEPS, 10 * pcm.SAMPLE_RATE, endpoint=True)
    return Talk(framed(samples.astype("<i2").tobytes()))


def framed(sound: bytes) -> list[bytes]:
    """Cut sound into pieces, the last one filled up with silence, as chunks of HTTP/1.1."""
    pieces = (sound[at : at + PIECE_BYTES].ljust(PIECE_BYTES, b"\0") for at in range(0, len(sound), PIECE_BYTES))
    return [b"%x\r\n%b\r\n" % (PIECE_BYTES, piece) for piece in pieces]


@dataclass
class Heard:
    """What one stream got back; times are seconds on the stream's clock, which counts its sound."""

    finals: list[tuple[float, float, float]] = field(default_factory=list)
    """Where speech begins and ends, and when its text was read."""
    with_beam: int = 0
    """Of them by beam search."""
    partials: list[float] = field(default_factory=list)
    """From the end of the sound that a partial text is about until it was read."""
    errors: int = 0
    refused: bool = False
    ended: bool = False
    sent_late: float = 0.0

    def take(self, record: dict[str, Any], now: float) -> None:
        """Note a record."""
        if record["type"] == "transcript" and record["is_final"]:
            if record["segments"]:
                begin, end = record["segments"][0]["start_ms"] / 1000, record["segments"][-1]["end_ms"] / 1000
                heard_last = record["timing"]["media_window_end_ms"] / 1000 - KEPT_SILENCE_SECONDS
                self.finals.append((begin, max(end, heard_last), now))
                self.with_beam += record["stats"].get("beam", 1) > 1
        elif record["type"] == "transcript":
            self.partials.append(now - record["timing"]["media_window_end_ms"] / 1000)
        elif record["type"] == "error":
            self.errors += 1
        elif record["type"] == "end":
            self.ended = True


class Loaded(Protocol):
    """What streams are put on: a server, or a gateway with what is behind it."""

    @property
    def url(self) -> str: ...
    def cpu_seconds(self) -> float: ...
    def memory_mb(self) -> float: ...


@dataclass(frozen=True)
class Load:
    """What so many streams met; times in seconds."""

    finals: list[float]
    """From the end of an utterance's speech until its text was read; infinite for a clip that got no text."""
    partials: list[float]
    with_beam: float
    """Share of final texts that beam search was used for."""
    lost: int
    errors: int
    refused: int
    cpu: float
    """CPU seconds of the server for a second of sound of the streams that were taken."""
    client: float
    """Share of a core that this client took."""
    sent_late: float
    """The most that any piece was sent after its time: how far the client itself can be wrong."""
    memory_mb: float

    @classmethod
    async def put_on(
        cls, server: Loaded, sound: Talk, streams: int, seconds: float, *, partials: bool = False, model: str = ""
    ) -> Load:
        """Run so many streams of a talk at once, at a container, or for a `model` at a gateway."""
        cpu, own, began = server.cpu_seconds(), time.process_time(), time.monotonic()
        async with open_session() as http, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    _feed(http, server.url, model, sound, number, number / streams, seconds)
                    if model
                    else _stream(http, server.url, sound, number, number / streams, seconds, partials=partials)
                )
                for number in range(streams)
            ]
        heard = [task.result() for task in tasks]
        own, took = time.process_time() - own, time.monotonic() - began
        finals, lost = [], 0
        for number, each in enumerate(heard):
            finals += [read - end for _, end, read in each.finals if end < seconds - EDGE_SECONDS]
            lost += 0 if each.refused else _lost(each, sound, _offset(sound, number), seconds)
        return cls(
            finals=finals + [math.inf] * lost,
            with_beam=sum(each.with_beam for each in heard) / max(1, sum(len(each.finals) for each in heard)),
            partials=[delay for each in heard for delay in each.partials],
            lost=lost,
            errors=sum(each.errors for each in heard),
            refused=sum(each.refused for each in heard),
            cpu=(server.cpu_seconds() - cpu) / (max(1, sum(not each.refused for each in heard)) * seconds),
            client=own / took,
            sent_late=max(each.sent_late for each in heard),
            memory_mb=server.memory_mb(),
        )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that so many percent do not exceed; None of nothing, or when it is infinite."""
    if not values:
        return None
    found = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    return found if found < math.inf else None


def _lost(heard: Heard, sound: Talk, offset: int, seconds: float) -> int:
    """Count the clips during which no text was spoken."""
    begin = offset * PIECE_SECONDS
    clips = [(a - begin, b - begin) for a, b in sound.said_between(begin, begin + seconds - EDGE_SECONDS)]
    return sum(not any(start < b and end > a for start, end, _ in heard.finals) for a, b in clips)


def _offset(sound: Talk, number: int) -> int:
    """Return the piece that a stream begins with: any run of streams, also the first few, is spread over the talk."""
    return int(number * GOLDEN % 1.0 * len(sound.pieces))


async def _stream(
    http: aiohttp.ClientSession, url: str, sound: Talk, number: int, share: float, seconds: float, *, partials: bool
) -> Heard:
    """Run one stream, which begins a `share` of the time in which all begin after the first."""
    heard, job = Heard(), f"stream-{number}"
    await asyncio.sleep(share * START_SECONDS)
    began = asyncio.get_running_loop().time()
    listening = asyncio.create_task(_listen(http, f"{url}/live/{job}", began, heard))
    try:
        query = f"/live/{job}/source?partials={'true' if partials else 'false'}"
        await _speak(url, query, sound, _offset(sound, number), round(seconds / PIECE_SECONDS), began, heard)
        await asyncio.wait({listening}, timeout=0 if heard.refused else DRAIN_SECONDS)
    finally:
        listening.cancel()
        await asyncio.wait({listening})
    if not heard.ended and not heard.refused:
        (await http.delete(f"{url}/live/{job}")).release()
    return heard


async def _feed(
    http: aiohttp.ClientSession, url: str, model: str, sound: Talk, number: int, share: float, seconds: float
) -> Heard:
    """Run one stream at a gateway: a request whose answer comes while it is sent."""
    heard, loop, first = Heard(), asyncio.get_running_loop(), _offset(sound, number)
    await asyncio.sleep(share * START_SECONDS)
    began, over = loop.time(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(round(seconds / PIECE_SECONDS)):
            due = began + (number + 1) * PIECE_SECONDS
            await asyncio.sleep(max(0.0, due - loop.time()))
            if over.is_set():
                return
            heard.sent_late = max(heard.sent_late, loop.time() - due)
            framed_piece = sound.pieces[(first + number) % len(sound.pieces)]
            yield framed_piece[-2 - PIECE_BYTES : -2]  # aiohttp frames it again

    headers = {"X-Model-Id": model, "Accept": "application/x-ndjson", "Content-Type": "audio/L16"}
    try:
        async with (
            asyncio.timeout(seconds + DRAIN_SECONDS),
            http.post(f"{url}/live/video-to-video?partials=false", data=pieces(), headers=headers) as answer,
        ):
            heard.refused = answer.status != 200
            async for line in answer.content:
                if not heard.refused:
                    heard.take(json.loads(line), loop.time() - began)
    except CONNECTION_ERRORS:
        heard.errors += 1
    finally:
        over.set()
    return heard


async def _speak(url: str, path: str, sound: Talk, first: int, pieces: int, began: float, heard: Heard) -> None:
    """Send the sound as its time comes; a request that is answered before its end was refused."""
    loop, address = asyncio.get_running_loop(), urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    answer = asyncio.create_task(reader.readline())
    try:
        writer.write(f"PUT {path} HTTP/1.1\r\nHost: {address.netloc}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for number in range(pieces):
            due = began + (number + 1) * PIECE_SECONDS
            await asyncio.sleep(max(0.0, due - loop.time()))
            if answer.done():
                break
            heard.sent_late = max(heard.sent_late, loop.time() - due)
            writer.write(sound.pieces[(first + number) % len(sound.pieces)])
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await asyncio.wait({answer}, timeout=DRAIN_SECONDS)
        if answer.done():
            heard.refused = b" 200 " not in answer.result()
    except CONNECTION_ERRORS:
        heard.refused = True
    finally:
        answer.cancel()
        writer.close()


async def _listen(http: aiohttp.ClientSession, job_url: str, began: float, heard: Heard) -> None:
    """Read the records of a job until its end."""
    loop, headers = asyncio.get_running_loop(), {"Accept": "application/x-ndjson"}
    async with http.get(f"{job_url}/output?wait={WAIT_SECONDS}", headers=headers) as answer:
        async for line in answer.content:
            if answer.status == 200:
                heard.take(json.loads(line), loop.time() - began)

"""What bytes from outside meet first, each as a function that any bytes may be given.

It may raise nothing: the errors that the code under test promises are caught here, and what must hold is asserted.
"""

import asyncio
import base64
import functools
import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType

import numpy as np

from audio import ogg, sniff
from audio.errors import AudioError
from audio.raw import raw_format
from audio.wav import WavReader, read_wav
from whisper_byoc import http, livepeer, origins
from whisper_byoc.errors import BadSegment, RequestRefused, UsageError
from whisper_byoc.processors.whisper import WhisperProcessor, WhisperSettings
from whisper_byoc.server.ingest.declared import declared_format
from whisper_byoc.server.ingest.framing import (
    AudioFraming,
    RawFraming,
    VideoFraming,
    WavFraming,
    WholeBody,
)
from whisper_byoc.server.streams.mpegts import SoundMixer, SoundReader
from whisper_byoc.server.streams.stream import StartRequest
from whisper_byoc.trickle.errors import TrickleError
from whisper_byoc.trickle.protocol import parse_seq

REFUSED = (RequestRefused, UsageError, AudioError, TrickleError)
FORMATS = (
    raw_format("s16le", 16_000),
    raw_format("s24be", 48_000, 2),
    raw_format("f32le", 8_000),
    raw_format("mulaw", 8_000),
)


@functools.cache
def speech() -> WhisperProcessor:
    """Return what reads the parameters of jobs."""
    processor = WhisperProcessor("demo", WhisperSettings(workers=1))
    asyncio.run(processor.initialize())
    return processor


def cut(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the data but for its first byte, in one to eight pieces as that says, and whole."""
    pieces, rest = data[0] % 8 + 1 if data else 1, data[1:]
    size = max(len(rest) // pieces, 1)
    return [rest[at : at + size] for at in range(0, len(rest), size)], rest


def wav(data: bytes) -> None:
    """A WAV gives the same samples however it arrives, or none: its header is refused either way."""
    pieces, whole = cut(data)
    found = []
    for parts in (pieces, [whole]):
        reader = WavReader()
        try:
            samples = [reader.feed(each) for each in parts]
            found.append(np.concatenate([*samples, reader.finish()]))
        except AudioError:
            found.append(None)
    one, other = found
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert len(one) == len(other)
        assert np.allclose(one, other, atol=1e-3, equal_nan=True)
    with suppress(AudioError):
        read_wav(whole)


def media(data: bytes) -> None:
    """What a stream is said to be does not depend on how it arrives."""
    pieces, whole = cut(data)
    sniffer = sniff.Sniffer()
    told = None
    for each in pieces:
        told = told or sniffer.feed(each)
    sniff.is_media(whole), sniff.foreign(whole), sniff.by_magic(whole), sniff.index_is_behind(whole)
    sniff.media_format(whole), sniff.media_format(whole, more=True)
    with suppress(AudioError):
        ogg.spans(io.BytesIO(whole))


def framing(data: bytes) -> None:
    """Framings lose no byte: what goes in comes out, or is told as a `BadSegment`."""
    pieces, whole = cut(data)
    for pcm in (AudioFraming(), AudioFraming(live=True)):
        out = [segment for each in pieces for segment in pcm.feed(each)] + pcm.finish(complete=False)
        kept = b"".join(each for each in out if not isinstance(each, BadSegment))
        assert kept == whole[: len(whole) // 2 * 2]
        assert len(whole) % 2 == any(isinstance(each, BadSegment) for each in out)
    frames = VideoFraming(4, 4)
    out = [frame for each in pieces for frame in frames.feed(each)]
    assert b"".join(out) == whole[: len(whole) // 48 * 48]
    body = WholeBody(1000)
    with suppress(RequestRefused):
        for each in pieces:
            body.feed(each)
        assert b"".join(each for each in body.finish(complete=True) if isinstance(each, bytes)) == whole
    for framer in (WavFraming(live=True), RawFraming(FORMATS[len(whole) % len(FORMATS)])):
        with suppress(AudioError):
            for each in pieces:
                framer.feed(each)
            framer.finish(complete=True)


def headers(data: bytes) -> None:
    """Values of headers are refused in a sentence, or read."""
    text = data[1:].decode("utf-8", "surrogateescape")
    encoded = base64.b64encode(data[1:]).decode()
    for read in (livepeer.JobHeader.parse, livepeer.parse_sender):
        with suppress(*REFUSED):
            read(encoded)
    for read in (
        livepeer.JobHeader.parse, livepeer.parse_sender, livepeer.check_id, parse_seq, origins.origin, http.base_url,
        http.without_secrets, lambda text: declared_format(text, {}),
    ):  # fmt: skip
        with suppress(*REFUSED):
            read(text)


def parameters(data: bytes) -> None:
    """Parameters in JSON are refused in a sentence, or taken."""
    with suppress(*REFUSED):
        fields = http.json_object(data[1:])
        for read in (speech().options, StartRequest.parse, lambda given: declared_format("", given)):
            with suppress(*REFUSED):
                read(fields)
        if "parameters" in fields:
            with suppress(*REFUSED):
                livepeer.object_in(fields["parameters"], "parameters")
        json.dumps(fields)


def transport_stream(data: bytes) -> None:
    """An MPEG transport stream may be anything; what the mixer puts out is whole packets."""
    pieces, _ = cut(data)
    reader, mixer = SoundReader(), SoundMixer(100_000)
    mixer.begin(0)
    for each in pieces:
        mixer.add(reader.feed(each))
        assert len(mixer.feed(each)) % 188 == 0
    mixer.add(reader.finish())
    mixer.rest()


TARGETS: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {each.__name__: each for each in (wav, media, framing, headers, parameters, transport_stream)}
)

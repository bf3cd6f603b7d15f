"""Uploads of every kind become the sound that is in them, or one sentence."""

import asyncio
import struct
import subprocess
from contextlib import closing

import numpy as np
import pytest
from multidict import MultiDict

from audio import pcm
from audio.errors import AudioError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.sniff import is_media
from audio.wav import read_wav
from tests.wav import write_wav
from whisper_byoc.errors import BadParam, RequestRefused
from whisper_byoc.server.ingest.forms import Upload
from whisper_byoc.server.ingest.recordings import Recording
from whisper_byoc.server.ingest.spool import Room, Spool

LIMIT = 64 << 20
MIB = 1 << 20
KINDS = {
    "mp3": ("-c:a", "libmp3lame"),
    "mp3-bare": ("-c:a", "libmp3lame", "-id3v2_version", "0", "-write_xing", "0", "-f", "mp3"),
    "mp3-mpeg2": ("-c:a", "libmp3lame", "-ar", "22050", "-id3v2_version", "0", "-write_xing", "0", "-f", "mp3"),
    "mp3-mpeg25": ("-c:a", "libmp3lame", "-ar", "8000", "-id3v2_version", "0", "-write_xing", "0", "-f", "mp3"),
    "adts": ("-c:a", "aac", "-f", "adts"),
    "flac": ("-c:a", "flac"),
    "ogg": ("-c:a", "libvorbis"),
    "webm": ("-c:a", "libopus"),
    "mp4": ("-c:a", "aac"),
    "mpegts": ("-c:a", "aac", "-f", "mpegts"),
    "aiff": (),
    "wav": (),
    "wav-adpcm": ("-c:a", "adpcm_ms", "-f", "wav"),
}


@pytest.fixture(scope="session")
def encoded(fixtures_dir, tmp_path_factory):
    """Return a function that encodes a fixture, and gives the bytes."""

    def encode(kind):
        path = tmp_path_factory.mktemp("media") / f"sound.{kind}"
        source = fixtures_dir / "demo-numbers.wav"
        command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", source, *KINDS[kind], path]
        subprocess.run(command, check=True, env=ffmpeg_environment())
        return path.read_bytes()

    return encode


def read_recording(data, content_type, limit, *, strict=False, **upload):
    """Return the recording, and its blocks beside it."""

    async def decode():
        with closing(Spool(Room(1 << 30), "")) as body, closing(Spool(Room(1 << 30), "")) as sound:
            body.write(data)
            recording = Recording(sound)
            recording.decode(Upload(body, content_type, **upload), limit, strict=strict)
            recording.pieces = [block async for block in recording.blocks()]
            return recording

    return asyncio.run(decode())


def sound_of(recording):
    return pcm.decode(b"".join(recording.pieces))


@pytest.mark.parametrize("kind", KINDS)
def test_media_without_a_type_is_known_by_its_bytes(encoded, fixtures_dir, kind):
    data = encoded(kind)
    assert is_media(data)
    recording = read_recording(data, "", LIMIT)
    original = read_wav((fixtures_dir / "demo-numbers.wav").read_bytes())
    # codecs pad the beginning and the end
    assert 0 <= recording.samples - len(original) < 3500
    assert abs(pcm.dbfs(sound_of(recording)) - pcm.dbfs(original)) < 1.5


@pytest.mark.parametrize(
    "content_type", ["audio/pcm", "audio/L16; rate=16000", "audio/raw;channels=1", "", "application/octet-stream"]
)
def test_raw_pcm_comes_through_exactly(content_type):
    data = np.arange(-30000, 30000, dtype="<i2").tobytes()
    recording = read_recording(data, content_type, LIMIT)
    assert b"".join(recording.pieces) == data
    assert (recording.samples, recording.seconds, recording.work_units) == (60000, 3.75, 4)


def test_raw_sound_is_what_its_type_declares():
    samples = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    stereo = np.repeat((samples * 32767).astype(">i2"), 2).tobytes()
    recording = read_recording(stereo, "audio/L16;channels=2;encoding=s16be", LIMIT, in_form=True)
    assert sound_of(recording) == pytest.approx(samples, abs=1e-4)
    assert read_recording(b"\xff" * 8000, "audio/basic", LIMIT, in_form=True).samples == 16_000
    with pytest.raises(BadParam, match="rate"):
        read_recording(stereo, "audio/L16;rate=1", LIMIT, in_form=True)


DECLARED = {
    "fields": (
        ("-ac", "2", "-ar", "48000", "-f", "f32le"),
        "",
        {"encoding": "f32le", "rate": "48000", "channels": "2"},
        "",
    ),
    "a field and a type": (("-ar", "8000", "-f", "mulaw"), "audio/basic", {"rate": "8000"}, ""),
    "the name of mu-law": (("-ar", "8000", "-f", "mulaw"), "", {}, "call.ul"),
    "the name of PCM16": (("-f", "s16le"), "application/octet-stream", {}, "call.RAW"),
    "a type of G.722": (("-c:a", "g722", "-f", "g722"), "audio/G722", {}, ""),
    "the name of G.722": (("-c:a", "g722", "-f", "g722"), "", {}, "call.g722"),
    "a field of G.722": (("-c:a", "g722", "-f", "g722"), "", {"encoding": "g722"}, "call.bin"),
    "a name that misleads": (("-c:a", "libmp3lame", "-f", "mp3"), "", {}, "call.raw"),
}


@pytest.mark.parametrize("in_form", [True, False])
@pytest.mark.parametrize("how", DECLARED)
def test_raw_sound_is_declared_by_fields_types_and_names(fixtures_dir, how, in_form):
    options, kind, fields, name = DECLARED[how]
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", fixtures_dir / "demo-numbers.wav", *options, "-"]
    data = subprocess.run(command, check=True, capture_output=True, env=ffmpeg_environment()).stdout
    recording = read_recording(data, kind, LIMIT, in_form=in_form, fields=MultiDict(fields), file_name=name)
    original = read_wav((fixtures_dir / "demo-numbers.wav").read_bytes())
    assert abs(recording.samples - len(original)) < 3500
    assert abs(pcm.dbfs(sound_of(recording)) - pcm.dbfs(original)) < 3.5


def test_raw_gsm_is_known_by_its_name_type_and_frames():
    frames = (b"\xd0" + bytes(32)) * 50
    for kind, fields, name in (("", {}, ""), ("audio/x-gsm", {}, ""), ("", {"encoding": "gsm"}, ""), ("", {}, "a.gsm")):
        recording = read_recording(frames, kind, LIMIT, in_form=True, fields=MultiDict(fields), file_name=name)
        assert recording.seconds == 1.0


def test_raw_sound_of_half_a_frame_is_refused():
    with pytest.raises(AudioError, match="3 bytes are not whole frames of 2 bytes"):
        read_recording(b"abc", "audio/pcm", LIMIT)
    with pytest.raises(AudioError, match="10 bytes are not whole frames of 4 bytes"):
        read_recording(bytes(10), "", LIMIT, fields=MultiDict(channels="2"))


def test_long_sound_is_handed_on_in_blocks():
    rng = np.random.default_rng(1)
    data = rng.integers(-9000, 9000, 95 * 16000, dtype="<i2").tobytes()
    for body, kind in ((write_wav(pcm.decode(data)), "audio/wav"), (data, "audio/pcm")):
        recording = read_recording(body, kind, LIMIT, in_form=True)
        assert b"".join(recording.pieces) == data
        assert recording.work_units == 95
        assert len(recording.pieces) == 10


@pytest.mark.parametrize(("samples", "units"), [(1, 1), (16000, 1), (16001, 2)])
def test_work_units_are_whole_seconds_rounded_up(samples, units):
    assert read_recording(bytes(2 * samples), "audio/pcm", LIMIT, in_form=True).work_units == units


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_that_was_written_to_a_pipe(size):
    wav = bytearray(write_wav(np.linspace(-0.5, 0.5, 3000, dtype=np.float32)))
    wav[40:44] = struct.pack("<I", size)
    wav[4:8] = struct.pack("<I", 0xFFFFFFFF)
    recording = read_recording(bytes(wav), "audio/wav", LIMIT, in_form=True)
    assert b"".join(recording.pieces) == bytes(wav[44:])


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_what_is_cut_off_is_read_as_far_as_it_goes_with_a_warning(encoded, kind):
    whole = encoded(kind)
    data = whole[: len(whole) // 2]
    recording = read_recording(data, "", LIMIT)
    assert recording.samples > read_recording(whole, "", LIMIT).samples * 0.3
    assert len(recording.warnings) == 1
    with pytest.raises(AudioError, match="strict"):
        read_recording(data, "", LIMIT, strict=True)


@pytest.mark.parametrize("piped", [False, True])
def test_a_wav_over_the_limit_is_refused(piped):
    wav = bytearray(write_wav(np.zeros(2 * MIB, dtype=np.float32)))
    if piped:
        wav[40:44] = b"\xff" * 4
    with pytest.raises(AudioError, match="limit"):
        read_recording(bytes(wav), "audio/wav", 3 * MIB, in_form=True)
    assert read_recording(bytes(wav), "audio/wav", 4 * MIB, in_form=True).samples == 2 * MIB


def test_media_over_the_limit_is_refused(encoded):
    with pytest.raises(AudioError, match="limit"):
        read_recording(encoded("flac"), "audio/flac", 32000, in_form=True)


@pytest.mark.parametrize(
    ("data", "content_type", "status", "words"),
    [
        (bytes(102), "audio/basic", 413, "408 bytes as PCM16"),
        (bytes(102), "audio/pcm", 413, "over the limit of 100"),
        (b"hello", "text/plain", 415, "text/plain is not sound"),
        (b"{}", "Application/JSON; charset=utf-8", 415, "application/json is not sound"),
    ],
)
def test_what_is_refused(data, content_type, status, words):
    with pytest.raises(RequestRefused, match=words) as caught:
        read_recording(data, content_type, 100)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("data", "content_type"),
    [(b"hello", "audio/mpeg"), (b"hello", ""), (b"RIFF....WAVE", "audio/wav"), (b"ID3", "audio/mp3"),
     (write_wav(np.empty(0, dtype=np.float32)), "audio/wav")],
)  # fmt: skip
def test_what_is_no_sound_is_an_error_and_never_silence(data, content_type):
    with pytest.raises(AudioError):
        read_recording(data, content_type, LIMIT, in_form=True)

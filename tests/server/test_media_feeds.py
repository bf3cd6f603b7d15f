"""Media on the live ways in: a PUT with and without length, and the WebSocket."""

import io
import json
import random
import subprocess

import numpy as np
import pytest

from audio import pcm
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from tests.server.stubs import Listener, Sound, raw
from tests.waiting import until
from tests.wav import write_wav

SECONDS = 3.67
NUMBERS = "seven three nine zero five one"
KINDS = {
    "webm": ("-c:a", "libopus", "-f", "webm", "-live", "1", "-cluster_time_limit", "200"),
    "mp3": ("-c:a", "libmp3lame", "-ac", "2", "-ar", "44100", "-f", "mp3"),
    "ogg": ("-c:a", "libvorbis", "-f", "ogg"),
    "48 kHz stereo ogg": ("-c:a", "libvorbis", "-ac", "2", "-ar", "48000", "-f", "ogg"),
    "flac": ("-f", "flac"),
    "mp4": ("-c:a", "aac", "-f", "mp4", "-movflags", "frag_keyframe+empty_moov+default_base_moof"),
    "adts": ("-c:a", "aac", "-f", "adts"),
    "mpegts": ("-c:a", "aac", "-f", "mpegts"),
    "adpcm wav": ("-c:a", "adpcm_ms", "-f", "wav"),
    "mu-law wav": ("-c:a", "pcm_mulaw", "-ar", "8000", "-f", "wav"),
    "48 kHz stereo wav": ("-ac", "2", "-ar", "48000", "-f", "wav"),
    "mp4 with its index behind": ("-c:a", "aac", "-f", "mp4"),
    "caf with its packet table behind": ("-c:a", "alac", "-f", "caf"),
    "caf of PCM": ("-c:a", "pcm_s16le", "-f", "caf"),
}


@pytest.fixture(scope="session")
def encoded(fixtures_dir, tmp_path_factory):
    """Return a function that encodes a fixture, and gives the bytes as they come out of a pipe, or else of a file."""
    made = {}

    def encode(kind):
        if kind not in made:
            source = fixtures_dir / "demo-numbers.wav"
            file = tmp_path_factory.mktemp("media") / "file"
            target = file if "behind" in kind or "caf" in kind else "pipe:1"
            command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", source, *KINDS[kind], target]
            done = subprocess.run(command, check=True, capture_output=True, timeout=30, env=ffmpeg_environment())
            made[kind] = done.stdout or file.read_bytes()
        return made[kind]

    return encode


FEED = "PUT /live/job/source HTTP/1.1\nHost: x\nTransfer-Encoding: chunked"


def cut(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


async def talk(api, pieces, query=""):
    """Send pieces to the WebSocket; return the messages and the close code."""
    async with api.http.ws_connect(f"{api.url}/transcribe{query}") as ws:
        for piece in pieces:
            await ws.send_bytes(piece)
        await ws.send_str("eos")
        return [json.loads(message.data) async for message in ws], ws.close_code


def final_text(messages):
    return " ".join(each["text"] for each in messages if each.get("final"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_feed_of_media_becomes_its_text(demo, encoded, kind):
    data = encoded(kind)
    status, body, _ = await demo.put("feed", cut(data, 1111), chunked=True)
    assert (status, body["bytes"]) == (200, len(data))
    *transcripts, end = await demo.records("feed")
    assert (" ".join(each["text"] for each in transcripts), end["errors"]) == (NUMBERS, 0)


async def test_a_chain_of_oggs_of_other_rates_and_channels(demo, encoded):
    data = b"".join(encoded(kind) for kind in ("48 kHz stereo ogg", "ogg", "ogg", "48 kHz stereo ogg"))
    assert (await demo.put("feed", cut(data, 1111), chunked=True))[0] == 200
    *transcripts, end = await demo.records("feed")
    assert (" ".join(each["text"] for each in transcripts), end["errors"]) == (" ".join([NUMBERS] * 4), 0)
    assert end["audio_ms"] == pytest.approx(4 * SECONDS * 1000, abs=300)
    async with demo.http.post(f"{demo.url}/whisper-demo", data=io.BytesIO(data)) as answer:
        found = await answer.json()
    assert (found["duration"], found.get("warnings")) == (pytest.approx(4 * SECONDS, abs=0.3), None)


async def test_a_feed_that_cannot_be_decoded_as_it_arrives_is_held_within_bounds(serving, demo_processor, encoded):
    data = encoded("mp4 with its index behind")
    api = await serving({"whisper-demo": demo_processor}, recording_bytes=len(data) - 1)
    status, body, _ = await api.put("feed", cut(data, 1111), chunked=True)
    assert (status, "has its index at the end" in body["error"]) == (413, True)
    await api.end("feed")
    assert [each["type"] for each in await api.records("feed")] == ["error", "end"]
    messages, code = await talk(api, cut(data, 1111))
    assert (code, "index at the end" in messages[-1]["error"]) == (1001, True)


async def test_a_held_feed_whose_client_vanishes_is_decoded_as_far_as_it_can_be(serving, encoded):
    api = await serving(Sound())
    data = encoded("mp4 with its index behind")
    _, writer = await raw(api, FEED, b"%x\r\n%b\r\n" % (len(data), data))
    await until(lambda: api.table.jobs and api.table.get("job").inbox.fed)
    writer.transport.abort()
    await until(lambda: not api.table.get("job").has_feed)
    await api.end("job")
    assert [each["type"] for each in await api.records("job")] == ["result", "end"]


@pytest.mark.parametrize("kind", ["webm", "mp3", "48 kHz stereo wav", "mu-law wav", "adpcm wav"])
async def test_a_websocket_reads_media_too(demo, encoded, kind):
    messages, code = await talk(demo, cut(encoded(kind), 997))
    assert (final_text(messages), code) == (NUMBERS, 1000)
    await until(lambda: not demo.table.jobs)


@pytest.mark.parametrize("kind", ["webm", "mp3", "mp4", "adpcm wav", "48 kHz stereo wav"])
@pytest.mark.parametrize("content_type", ["application/octet-stream", "audio/mpeg"])
async def test_a_segment_of_media(demo, encoded, kind, content_type):
    status, body, _ = await demo.put("job", encoded(kind), headers={"Content-Type": content_type})
    assert (status, body["segments"]) == (200, 1)
    assert (await demo.get("job"))[1].decode().strip() == NUMBERS


@pytest.mark.parametrize("goes", [False, True])
async def test_sound_comes_out_while_it_goes_in(serving, encoded, goes):
    listener = Listener()
    api = await serving(listener)
    data = encoded("mp3")
    half = len(data) // 2
    _, writer = await raw(api, FEED, b"%x\r\n%b\r\n" % (half, data[:half]))
    await until(lambda: listener.heard)
    if not goes:
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data) - half, data[half:]))
    writer.close()
    job = api.table.get("job")
    await until(lambda: not job.has_feed)
    await api.end("job")
    await api.records("job")
    assert len(listener.heard) / 32_000 == pytest.approx(SECONDS / (2 if goes else 1), abs=0.3)
    assert not pcm.is_silence(pcm.decode(listener.heard))


BROKEN = {
    "webm": b"\x1aE\xdf\xa3" + bytes(5000),
    "ogg": b"OggS" + bytes(range(256)) * 20,
    "mp4 with its index at its end": b"\0\0\0\x18ftypisom\0\0\0\0isommp42\0\0\x40\x08mdat" + bytes(0x4000),
    "wav": b"RIFF\0\0\0\0WAVEdata\0\0\0\0" + bytes(1000),
    "wav of a few bytes": b"RIFF\0\0\0\0WAVE",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_media_that_cannot_be_read_is_never_a_normal_end(serving, kind):
    api = await serving(Sound())
    status, body, _ = await api.put("job", [BROKEN[kind]], chunked=True)
    if status == 200:
        assert "wav" in kind
        assert (await api.records("job"))[0]["type"] == "error"
    else:
        assert status in (400, 415)
        assert "send" in body["error"] or "WAV" in body["error"]
    messages, code = await talk(api, [BROKEN[kind]])
    assert code in (1003, 1011)
    assert messages[-1]["error"]
    await api.still_serves()


async def test_raw_gsm_is_known_by_its_frames(serving):
    api = await serving(Sound())
    for chunked in (True, False):
        data = (b"\xd0" + bytes(32)) * 50
        assert (await api.put(f"job{chunked}", [data] if chunked else data, chunked=chunked))[0] == 200
        assert (await api.get(f"job{chunked}"))[1] == b"32000 bytes"


async def test_text_comes_before_the_error_of_a_wav_that_is_cut_off(demo, numbers):
    cut_off = numbers[:40] + (len(numbers) + 40_000).to_bytes(4, "little") + numbers[44:]
    messages, code = await talk(demo, cut(cut_off, 9999))
    assert (final_text(messages), code) == (NUMBERS, 1011)
    assert "is cut off" in messages[-1]["error"]
    assert (await demo.put("feed", cut(cut_off, 9999), chunked=True))[0] == 200
    *texts, error, _ = await demo.records("feed")
    assert " ".join(each["text"] for each in texts) == NUMBERS
    assert "is cut off" in error["error"]


async def test_a_browsers_webm_is_heard_while_it_comes(serving, encoded):
    """A recorder sends a piece for each fraction of a second: each is heard before the next one comes."""
    listener = Listener()
    api = await serving(listener)
    data = encoded("webm")
    _, writer = await raw(api, FEED)
    waits = 0
    for at in range(0, len(data), 4000):
        heard = len(listener.heard)
        piece = data[at : at + 4000]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if at >= 8000:  # what is behind the header; of a block, some stays in ffmpeg
            await until(lambda heard=heard: len(listener.heard) > heard)
            waits += 1
    writer.write(b"0\r\n\r\n")
    writer.close()
    await api.records("job")
    assert waits > 5
    assert len(listener.heard) / 32_000 == pytest.approx(SECONDS, abs=0.3)


async def test_a_type_of_media_that_the_body_is_not_is_415(serving):
    api = await serving(Sound())
    for chunked in (True, False):
        job, headers = f"job{chunked}", {"Content-Type": "audio/webm"}
        status, body, _ = await api.put(job, b"hello" * 100, chunked=chunked, headers=headers)
        assert (status, "send" in body["error"]) == (415, True)


async def test_pcm_is_read_as_such_though_it_begins_like_media(serving):
    api = await serving(Sound())
    data = b"OggS" + bytes(996)
    assert (await api.put("job", [data], chunked=True, headers={"Content-Type": "audio/pcm"}))[0] == 200
    assert (await api.records("job"))[0]["text"] == "1000 bytes"


async def test_damage_that_ffmpeg_reads_over_is_a_warning(demo, encoded):
    data = encoded("mp3")
    damaged = data[: len(data) // 2] + random.Random(1).randbytes(500) + data[len(data) // 2 + 500 :]
    status, body, _ = await demo.put("feed", cut(damaged, 9999), chunked=True)
    assert (status, len(body["warnings"])) == (200, 1)
    assert "not completely decoded" in body["warnings"][0]
    assert (await demo.records("feed"))[-1]["warnings"] == body["warnings"]
    messages, code = await talk(demo, cut(damaged, 9999))
    assert ([each.get("warnings") for each in messages if "warnings" in each], code) == ([body["warnings"]], 1000)


async def test_damage_in_mid_feed_gives_the_text_before_it(serving, encoded):
    api = await serving(Sound())
    data = encoded("webm")
    status, _, _ = await api.put("job", [data[: len(data) // 2]], chunked=True)
    assert status == 200
    assert (await api.records("job"))[0]["type"] == "result"


NO_SOUND = {
    "text": ("größer als\n".encode() * 200, "text"),
    "JSON": (b'{"error": "not found"}', "text"),
    "HTML": (b"<!DOCTYPE html><html></html>" * 20, "text"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(3000), "a PNG picture"),
    "random bytes": (random.Random(1).randbytes(30_000), "Invalid data"),
    "a WAV without sound": (write_wav(np.empty(0, np.float32)), "no sound"),
    "half a WAV header": (write_wav(np.zeros(9, np.float32))[:30], "header is not complete"),
    "an MP4 whose index never came": (
        b"\0\0\0\x18ftypisom" + bytes(12) + b"\0\0\x40\x08mdat" + bytes(3000),
        "moov atom not found",
    ),
}


@pytest.mark.parametrize("kind", NO_SOUND)
async def test_what_holds_no_sound_is_refused_on_every_way_in(serving, kind):
    api = await serving(Sound())
    data, words = NO_SOUND[kind]
    answers = []
    for chunked in (True, False):
        answers.append(await api.put(f"job{chunked}", [data] if chunked else data, chunked=chunked))
    async with api.http.post(f"{api.url}/test", data=io.BytesIO(data)) as answer:
        answers.append((answer.status, await answer.json(), answer.headers))
    for status, body, _ in answers:
        said = body["error"].lower()
        assert status in (400, 415)
        assert words.lower() in said or "no sound" in said or "moov" in said
    messages, code = await talk(api, [data])
    assert code in (1003, 1011)
    assert words.lower() in messages[-1]["error"].lower()
    await api.still_serves()


async def test_what_is_refused_holds_no_place(serving):
    api = await serving(Sound(), jobs=2)
    for number in range(9):
        assert (await api.put(f"job{number}", b"no sound at all, only text"))[0] == 415
    assert (await api.put("feed", b"no sound at all, only text" * 99, chunked=True))[0] == 415
    assert [each["type"] for each in await api.records("feed")] == ["error", "end"]


@pytest.mark.parametrize("kind", ["mp3", "flac"])
async def test_a_tag_larger_than_what_ffmpeg_probes_is_skipped(demo, encoded, kind):
    tag = b"ID3\4\0\0" + bytes([0, 30, 0, 0]) + b"\0\xff\xfb\x90" * (30 << 14 >> 2)
    assert (await demo.put("feed", cut(tag + encoded(kind), 50_000), chunked=True))[0] == 200
    *transcripts, _ = await demo.records("feed")
    assert " ".join(each["text"] for each in transcripts) == NUMBERS


async def test_a_feed_that_begins_in_mid_frame(demo, encoded):
    data = encoded("mp3")
    assert (await demo.put("feed", cut(data[len(data) // 2 + 1 :], 1111), chunked=True))[0] == 200
    *transcripts, _ = await demo.records("feed")
    assert transcripts[-1]["text"].endswith("five one")


RAW = {
    "big endian": ("audio/L16;rate=48000;channels=2;encoding=s16be", "", ("-ac", "2", "-ar", "48000", "-f", "s16be")),
    "48 kHz stereo": ("audio/L16; rate=48000; channels=2", "", ("-ac", "2", "-ar", "48000", "-f", "s16le")),
    "basic": ("audio/basic", "", ("-ar", "8000", "-f", "mulaw")),
    "A-law": ("audio/PCMA", "", ("-ar", "8000", "-f", "alaw")),
    "float": ("application/octet-stream", "?encoding=f32le&rate=44100", ("-ar", "44100", "-f", "f32le")),
    "24 bit": ("", "?encoding=pcm_s24be", ("-f", "s24be")),
    "the query wins": ("audio/L16;rate=8000", "?rate=16000", ("-f", "s16le")),
}


@pytest.mark.parametrize("name", RAW)
async def test_raw_sound_is_what_it_is_declared_to_be(demo, fixtures_dir, name):
    kind, query, options = RAW[name]
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", fixtures_dir / "demo-numbers.wav", *options, "-"]
    data = subprocess.run(command, check=True, capture_output=True, timeout=30, env=ffmpeg_environment()).stdout
    headers = {"Content-Type": kind}
    assert (await demo.put("feed", cut(data, 1111), chunked=True, query=query, headers=headers))[0] == 200
    *transcripts, end = await demo.records("feed")
    assert (" ".join(each["text"] for each in transcripts), end["errors"]) == (NUMBERS, 0)
    status, body, _ = await demo.put("job", data, query=query, headers=headers)
    assert (status, "warnings" in body) == (200, False)
    assert (await demo.get("job"))[1].decode().strip() == NUMBERS
    if query and not kind.startswith("audio"):
        messages, code = await talk(demo, cut(data, 997), query)
        assert (final_text(messages), code) == (NUMBERS, 1000)


async def test_a_segment_that_grows_over_the_limit_is_413(serving):
    api = await serving(Sound(), segment_bytes=1000)
    status, body, _ = await api.put("job", bytes(400), headers={"Content-Type": "audio/basic"})
    assert (status, "1600 bytes as PCM16" in body["error"]) == (413, True)

"""Large uploads: held on the disk while they are received and decoded, bounded, and gone with their client."""

import asyncio
import io
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.stubs import Mirror, Says, Sound, raw
from tests.waiting import until
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.ingest import forms
from whisper_byoc.server.ingest.spool import IN_MEMORY, Room, Spool

MIB = 1 << 20
MINUTE = bytes(60 * 32_000)


def wav_head(seconds=None):
    """Of 16 kHz mono PCM16; without a length, until the end."""
    size = 0xFFFFFFFF if seconds is None else 32_000 * seconds
    head = b"RIFF" + struct.pack("<I", min(36 + size, 0xFFFFFFFF)) + b"WAVEfmt "
    return head + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data" + struct.pack("<I", size)


@pytest.fixture
def slow_ffmpeg(tmp_path, monkeypatch):
    """Put a stand-in on PATH that gives six minutes of sound, and ends when the file that is returned is there."""
    go, sound, ffmpeg = tmp_path / "go", tmp_path / "sound.wav", tmp_path / "ffmpeg"
    sound.write_bytes(wav_head() + b"\1\x7f" * (6 * 60 * 16_000))
    ffmpeg.write_text(f"#!/bin/sh\ncat {sound}\nwhile [ ! -e {go} ]; do sleep 0.02; done\n")
    ffmpeg.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return go


async def spooled(api):
    async with api.http.get(f"{api.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return float(next(line for line in lines if line.startswith("byoc_spooled_bytes")).split()[1])


def deleted_files():
    """Count the open files of this process that have no name."""
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            count += "(deleted)" in str(each.readlink())
        except OSError:  # closed by now
            continue
    return count


BEFORE = deleted_files()
"""Those of the test runner."""


async def is_empty(api):
    return not await spooled(api) and deleted_files() == BEFORE and not api.table.jobs


async def in_pieces(*parts):
    for part in parts:
        for at in range(0, len(part), 100_000):
            yield part[at : at + 100_000]


async def test_a_recording_of_an_hour_is_taken(serving):
    api = await serving(Sound())
    parts = [wav_head(3600), *[MINUTE] * 60]
    async with api.http.post(f"{api.url}/test?format=ndjson", data=in_pieces(*parts)) as answer:
        assert answer.status == 200
        assert answer.headers["X-Livepeer-Work-Units"] == "3600"
        *texts, end = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert sum(int(each["text"].split()[0]) for each in texts) == 3600 * 32_000
    assert end["errors"] == 0
    await until(lambda: is_empty(api))


@pytest.mark.parametrize("path", ["/test?format=sse", "/v1/audio/transcriptions"])
async def test_text_comes_before_all_of_a_long_recording_is_decoded(serving, slow_ffmpeg, path):
    api = await serving(Says(*map(str, range(13))))
    form = {"file": io.BytesIO(b"ID3 of something"), "stream": "true"}
    async with api.http.post(f"{api.url}{path}", data=form) as answer:
        assert answer.status == 200
        assert "X-Livepeer-Work-Units" not in answer.headers  # how long it is, nobody knows yet
        first = await answer.content.readline()
        assert json.loads(first[6:]).get("text", json.loads(first[6:]).get("delta")) == "0"
        slow_ffmpeg.touch()
        rest = (await answer.content.read()).decode()
    assert rest.endswith("data: [DONE]\n\n")
    assert rest.count('"transcript.text.delta"') + rest.count('"seq"') >= 12
    await until(lambda: is_empty(api))


async def test_what_is_wrong_far_behind_the_beginning_is_the_last_event(serving, slow_ffmpeg):
    api = await serving(Says("text"), recording_bytes=320 * 32_000)  # of six minutes
    slow_ffmpeg.touch()
    for query, status in (("?format=sse", 200), ("", 400)):
        async with api.http.post(f"{api.url}/test{query}", data=io.BytesIO(b"ID3 of something")) as answer:
            assert answer.status == status
            text = await answer.text()
        assert "more than 320 s of sound" in text
        assert text.count("error") == (2 if query else 1)
        await until(lambda: is_empty(api))


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 900000000",
        "Transfer-Encoding: chunked",
        "Content-Length: 900000000\nContent-Type: multipart/form-data; boundary=x",
    ],
)
async def test_a_client_that_vanishes_in_mid_body_leaves_no_file(serving, head):
    api = await serving(Sound())
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' if "form" in head else b""
    body = part + bytes(3 * MIB)
    if "chunked" in head:
        body = b"%x\r\n%b\r\n" % (len(body), body)
    _, writer = await raw(api, f"POST /test HTTP/1.1\nHost: x\n{head}", body)

    async def held():
        return await spooled(api) >= 2 * MIB

    await until(held)
    assert deleted_files() == BEFORE + 1
    writer.transport.abort()
    await until(lambda: is_empty(api))
    await api.still_serves()


async def test_a_client_that_vanishes_while_it_is_decoded_leaves_no_file(serving, slow_ffmpeg):
    model = Says.gated("text")
    api = await serving(model)
    body = b"ID3" + bytes(2 * MIB)
    _, writer = await raw(api, f"POST /test HTTP/1.1\nHost: x\nContent-Length: {len(body)}", body)
    await until(lambda: api.table.jobs and api.table.queued)
    writer.transport.abort()
    slow_ffmpeg.touch()
    await until(lambda: is_empty(api))
    model.go.set()
    await api.still_serves()


async def test_what_one_address_may_hold_and_what_all_may_is_bounded(serving):
    api = await serving(Sound(), recording_bytes=2 * MIB)
    head = f"POST /test HTTP/1.1\nHost: x\nContent-Length: {2 * MIB}"
    writers = [(await raw(api, head, bytes(MIB + MIB // 2)))[1] for _ in range(2)]

    async def held():
        return await spooled(api) == 3 * MIB

    await until(held)
    for chunked in (True, False):
        data = in_pieces(bytes(2 * MIB)) if chunked else io.BytesIO(bytes(2 * MIB))
        async with api.http.post(f"{api.url}/test", data=data) as answer:
            assert (answer.status, "4 MiB of recordings from your address" in await answer.text()) == (429, True)
            assert "Retry-After" in answer.headers
    for writer in writers:
        writer.transport.abort()
    await until(lambda: is_empty(api))
    async with api.http.post(f"{api.url}/test", data=io.BytesIO(bytes(2 * MIB))) as answer:
        assert answer.status == 200


async def test_a_large_body_may_take_longer_than_the_idle_limit(serving, monkeypatch):
    monkeypatch.setattr(forms, "SLOWEST", 10)
    api = await serving(Sound(), idle_seconds=0.2)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def slow():
        yield bytes(3200)
        await until(lambda: loop.time() - began > 0.3)
        yield bytes(3200)

    async with api.http.post(f"{api.url}/test?format=text", data=slow()) as answer:
        assert (answer.status, await answer.text()) == (200, "6400 bytes\n")


async def test_a_frame_is_no_recording(serving):
    api = await serving(Mirror(), segment_bytes=1000)
    async with api.http.post(f"{api.url}/test", data=b"x" * 1001) as answer:
        assert (answer.status, "limit of 1000 bytes" in await answer.text()) == (413, True)


async def test_many_uploads_at_once_that_are_slow_wrong_or_broken_leave_nothing(serving):
    api = await serving(Says("text"), jobs=16, recording_bytes=4 * MIB, recording_seconds=1e9)
    bodies = [wav_head(120) + 2 * MINUTE[:-4], wav_head(2) + bytes(9), b"--x", b"ID3" + bytes(2 * MIB), MINUTE]
    kinds = ["audio/wav", "", "multipart/form-data; boundary=x", "audio/mpeg", "multipart/form-data"]

    async def one(number):
        body, kind = bodies[number % 5], kinds[number // 5 % 5]
        length = len(body) + number % 2  # every other one breaks off
        reader, writer = await raw(api, f"POST /test HTTP/1.1\nHost: x\nContent-Type: {kind}\nContent-Length: {length}")
        try:
            writer.write(body)
            if number % 2:
                writer.write_eof()
            line = await asyncio.wait_for(reader.readline(), 20)
            assert line == b"" or line.split()[1] in (b"200", b"400", b"413", b"429"), line
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    await asyncio.gather(*map(one, range(50)))
    await until(lambda: is_empty(api))
    await api.still_serves()


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(0, 600), st.integers(0, 600))
def test_a_spool_is_what_was_written_to_it(parts, at, size):
    room, parts = Room(4 * IN_MEMORY), [b"x" * (IN_MEMORY - 100), *parts]
    spool = Spool(room, "somebody")
    for part in parts:
        spool.write(part)
    whole = b"".join(parts)
    at += IN_MEMORY - 300
    assert spool.read(at, size) == whole[at : at + size]
    assert spool.read(0) == whole
    assert room.taken == spool.size == len(whole)
    spool.close()
    spool.close()
    spool.write(b"dropped")
    assert (spool.read(0), room.taken) == (b"", 0)


def test_room_is_bounded_for_all_and_for_each():
    room = Room(100)
    room.take("a", 50)
    with pytest.raises(RequestRefused, match="the most it may") as refused:
        room.take("a", 1)
    assert (refused.value.status, refused.value.reason) == (429, "spool_of_address")
    room.take("", 50)
    with pytest.raises(RequestRefused, match="MiB of recordings, the most it may"):
        room.take("b", 1)
    room.take("a", -50)
    room.take("b", 50)
    assert room.taken == 100

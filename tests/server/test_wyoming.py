"""The Wyoming protocol, with its own client."""

import asyncio
import contextlib
import json
import socket
from dataclasses import replace

import pytest
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info
from wyoming.ping import Ping

from tests.waiting import until
from whisper_byoc.server import wyoming

NUMBERS = "seven three nine zero five one"


@pytest.fixture
async def port(demo):
    async with wyoming.listening(demo.table, "127.0.0.1", 0) as port:
        yield port


@pytest.fixture
async def client(port):
    async with AsyncTcpClient("127.0.0.1", port) as client:
        yield client


async def say(client, data, *, rate=16_000, stop=True):
    await client.write_event(AudioStart(rate, 2, 1).event())
    for at in range(0, len(data), 2048):
        await client.write_event(AudioChunk(rate, 2, 1, data[at : at + 2048]).event())
    if stop:
        await client.write_event(AudioStop().event())


async def answers(client):
    """Give the events up to the end of a transcript, or to an error."""
    found = []
    async with asyncio.timeout(30):
        while not found or found[-1].type not in ("transcript-stop", "error"):
            found.append(await client.read_event())
    return found


async def test_a_client_learns_what_there_is(client):
    await client.write_event(Describe().event())
    (program,) = Info.from_event(await client.read_event()).asr
    assert program.supports_transcript_streaming
    assert [model.name for model in program.models] == ["whisper-demo"]
    await client.write_event(Ping("hello").event())
    assert (await client.read_event()).type == "pong"


async def test_commands_one_after_the_other(client, demo, sound):
    for name, text in (("demo-numbers.wav", NUMBERS), ("demo-yes.wav", "yes"), ("silence-3s.wav", "")):
        await client.write_event(Transcribe(language="en").event())
        await say(client, sound(name))
        events = await answers(client)
        assert [each.type for each in events if each.type != "transcript-chunk"] == [
            "transcript-start", "transcript", "transcript-stop",
        ]  # fmt: skip
        (transcript,) = [Transcript.from_event(each) for each in events if each.type == "transcript"]
        assert transcript.text == text
        assert "".join(each.data["text"] for each in events if each.type == "transcript-chunk") == text
    await until(lambda: not demo.table.jobs)


async def test_text_comes_before_the_end(client, sound):
    await say(client, sound("demo-numbers.wav") + bytes(64_000), stop=False)
    async with asyncio.timeout(30):
        while (event := await client.read_event()).type != "transcript-chunk":
            pass
    assert event.data["text"] == NUMBERS


@pytest.mark.parametrize(
    ("wanted", "words"),
    [(Transcribe(language="de"), "English"), (Transcribe(name="none"), "whisper-demo"), (Transcribe(), "rate")],
)
async def test_what_cannot_be_is_an_error_with_a_sentence(client, demo, sound, wanted, words):
    await client.write_event(wanted.event())
    await say(client, b"", rate=1 if words == "rate" else 16_000)
    assert words in (await answers(client))[-1].data["text"]
    assert await client.read_event() is None
    await until(lambda: not demo.table.jobs)


@pytest.mark.parametrize(
    "data",
    [
        b"not json\n",
        b"[1]\n",
        b"{}\n",
        b'{"type": 3, "data": 4}\n',
        b'{"type": "audio-start"}\n',
        json.dumps({"type": "describe", "payload_length": 1 << 40}).encode() + b"\n",
        json.dumps({"type": "describe", "data_length": "x"}).encode() + b"\n",
        b'{"type": "transcribe", "data": [1]}\n',
        b'{"type": "transcribe", "data": {"name": ["x"]}}\n{"type": "audio-start", "data": {"rate": 1}}\n',
        b"x" * 100_000,
        b"[" * 50_000 + b"\n",
    ],
)
async def test_bytes_that_are_no_event_end_the_connection_and_nothing_else(port, demo, client, data, caplog):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(10):
        await reader.read()
    writer.close()
    await client.write_event(Ping().event())
    assert (await client.read_event()).type == "pong"
    assert not demo.table.jobs
    assert not [each for each in caplog.records if each.exc_info]


async def test_a_client_that_still_sends_has_the_error_and_no_reset(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b'{"type": "audio-start"}\n')
    async with asyncio.timeout(10):
        assert b'"error"' in await reader.read()
        for _ in range(64):
            writer.write(bytes(65536))
            await writer.drain()
    writer.close()


async def test_a_client_that_reads_no_answer_is_cut_off(port, demo, monkeypatch):
    monkeypatch.setattr(demo.table, "limits", replace(demo.table.limits, idle_seconds=0.2))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b'{"type": "describe"}\n' * 1000)
                await writer.drain()
    writer.close()


async def test_a_client_that_goes_leaves_no_job_behind(port, demo, sound):
    async with AsyncTcpClient("127.0.0.1", port) as client:
        await say(client, sound("demo-numbers.wav"), stop=False)
        await until(lambda: demo.table.jobs)
    await until(lambda: not demo.table.jobs)


async def test_a_connection_is_closed_with_the_listener_however_new_it_is(demo):
    for turns in range(8):  # of the event loop: from one that the listener does not know of, to one that is served
        async with wyoming.listening(demo.table, "127.0.0.1", 0) as port:
            connection = socket.create_connection(("127.0.0.1", port))
            for _ in range(turns):
                await asyncio.sleep(0)
        with connection, contextlib.suppress(ConnectionResetError):
            connection.setblocking(False)
            async with asyncio.timeout(20):
                assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""

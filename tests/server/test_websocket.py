"""`/transcribe` over real WebSockets."""

import asyncio
import itertools
import json

import aiohttp
import pytest
from aiohttp import web

from tests.server.stubs import Says
from tests.waiting import until
from whisper_byoc.aio import cancel

NUMBERS = "seven three nine zero five one"


class Sized(Says):
    """Answers with the length of what it gets, once it may go."""

    async def process(self, frame):
        await super().process(b"")
        return b"%d" % len(frame)


def connect(api, query="", **options):
    return api.http.ws_connect(f"{api.url}/transcribe{query}", **options)


async def rest(ws):
    """What comes until the server closes, and its close code."""
    found = [json.loads(message.data) async for message in ws]
    return found, ws.close_code


@pytest.mark.parametrize("eos", ["eos", '{"type":"eos"}', " eos\n"])
@pytest.mark.parametrize("size", [333, 32000, 10**6])
async def test_sound_in_text_out(demo, sound, eos, size):
    data = sound("demo-numbers.wav")
    async with connect(demo) as ws:
        for at in range(0, len(data), size):
            await ws.send_bytes(data[at : at + size])
        await ws.send_str(eos)
        found, code = await rest(ws)
    (last,) = [each for each in found if each["final"]]
    assert (last["text"], code) == (NUMBERS, 1000)
    assert last["start"] == pytest.approx(0.5, abs=0.2)
    assert last["end"] == pytest.approx(3.17, abs=0.2)
    await until(lambda: not demo.table.jobs)


async def test_results_come_before_the_end(demo, sound, texts):
    data = sound("demo-long-40s.wav")
    async with connect(demo) as ws:
        for at in range(0, len(data), 3200):
            await ws.send_bytes(data[at : at + 3200])
        first = json.loads((await ws.receive(20)).data)
        await ws.send_str("eos")
        found, code = await rest(ws)
    found.insert(0, first)
    assert code == 1000
    found = [each for each in found if each["final"]]
    assert " ".join(each["text"] for each in found) == texts["demo-long-40s.wav"]["text"]
    assert all(before["end"] <= after["start"] for before, after in itertools.pairwise(found))
    assert found[-1]["end"] <= 40


async def test_parameters_by_message(demo, sound):
    async with connect(demo) as ws:
        await ws.send_json({"words": True, "partials": "off"})
        await ws.send_bytes(sound("demo-numbers.wav"))
        await ws.send_json({"type": "eos"})
        (found,), code = await rest(ws)
    assert code == 1000
    assert [each["word"] for each in found["words"]] == NUMBERS.split()
    assert found["start"] <= found["words"][0]["start"] < found["words"][-1]["end"] <= found["end"]


@pytest.mark.parametrize("message", ['{"language": "de"}', "{}", "[1]", "hello"])
async def test_text_that_is_no_parameter_ends_it(demo, message):
    async with connect(demo) as ws:
        await ws.send_str(message)
        (error,), code = await rest(ws)
    assert (list(error), code) == (["error"], 1003)


async def test_partial_text_while_somebody_speaks(demo, sound):
    data = sound("demo-numbers.wav")
    spoken = 80_000  # 2.5 s
    async with connect(demo) as ws:
        await ws.send_bytes(data[:spoken])
        first = json.loads((await ws.receive(20)).data)
        await ws.send_bytes(data[spoken:])
        await ws.send_str("eos")
        found, code = await rest(ws)
    assert code == 1000
    *partials, final = [first, *found]
    assert (final["text"], final["final"]) == (NUMBERS, True)
    for each in partials:
        assert not each["final"]
        assert NUMBERS.startswith(each["text"].split()[0])
        assert final["start"] - 0.5 <= each["start"] < each["end"] <= 3.7


@pytest.mark.parametrize(("query", "partials"), [("", "true"), ("?partials=false", "false"), ("?partials=off", "off")])
async def test_partial_text_is_sent_unless_it_is_not_wanted(demo, query, partials):
    async with connect(demo, query):
        assert demo.table.jobs[0].info.params == {"partials": partials}


async def test_two_at_once_and_parameters(demo, sound):
    async def talk(name, query):
        async with connect(demo, query) as ws:
            await ws.send_bytes(sound(name))
            await ws.send_str("eos")
            return (await rest(ws))[0][-1]["text"]

    said = await asyncio.gather(talk("demo-stop.wav", "?language=en"), talk("demo-yes.wav", "?model=whisper-1"))
    assert said == ["stop", "yes"]


async def test_nothing_but_the_end(serving):
    api = await serving(Sized(""))
    async with connect(api) as ws:
        await ws.send_str("eos")
        assert await rest(ws) == ([], 1000)
    await until(lambda: not api.table.jobs)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("?language=de", 400, "English only"),
        ("?partials=maybe", 400, "partials"),
        ("?pause=9", 400, "pause"),
        ("?model=tiny", 404, "whisper-demo"),
        ("", 426, "WebSocket"),
    ],
)
async def test_what_is_refused_before_the_upgrade(demo, query, status, words):
    if status != 426:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await connect(demo, query)
        assert caught.value.status == status
    async with demo.http.get(f"{demo.url}/transcribe{query}") as answer:  # so that a page can show the reason
        assert (answer.status, words in (await answer.json())["error"]) == (status, True)
    assert not demo.table.jobs


async def test_busy(serving):
    api = await serving(Sized(""), jobs=1)
    async with connect(api):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await connect(api)
        assert (caught.value.status, int(caught.value.headers["Retry-After"]) > 0) == (503, True)
    await until(lambda: not api.table.jobs)


@pytest.mark.parametrize(
    ("messages", "code", "words"),
    [
        (["hello"], 1003, "binary messages"),
        (['{"type":"start"}'], 1003, "binary messages"),
        (["[" * 100_000], 1003, "binary messages"),
        ([bytes(321), "eos"], 1011, "one byte was left over"),
        (["eos", bytes(320)], 1008, "after the end"),
    ],
)
async def test_what_a_client_may_not_say(serving, messages, code, words):
    says = Sized.gated("")
    api = await serving(says)
    async with connect(api) as ws:
        if messages[0] == "eos":
            await ws.send_bytes(bytes(320))
        for message in messages:
            await (ws.send_str(message) if isinstance(message, str) else ws.send_bytes(message))
        if code == 1011:
            says.go.set()
        found, closed = await rest(ws)
    assert closed == code
    assert words in found[-1]["error"]
    await until(lambda: not api.table.jobs)


async def test_a_message_over_the_limit(serving):
    api = await serving(Sized(""))
    async with connect(api) as ws:
        await ws.send_bytes(bytes((1 << 20) + 1))
        found, code = await rest(ws)
    assert (found, code) == ([], 1009)
    await until(lambda: not api.table.jobs)


async def test_a_client_that_says_nothing(serving):
    api = await serving(Sized(""), idle_seconds=0.1, sweep_seconds=60)
    async with connect(api) as ws:
        found, code = await rest(ws)
    assert code == 1008
    assert "0.1 s" in found[0]["error"]
    await until(lambda: not api.table.jobs)


async def test_a_segment_that_fails(serving):
    api = await serving(Says(ValueError("no such luck")))
    async with connect(api) as ws:
        await ws.send_bytes(bytes(320))
        await ws.send_str("eos")
        found, code = await rest(ws)
    assert code == 1011
    assert "no such luck" in found[0]["error"]
    await until(lambda: not api.table.jobs)


@pytest.mark.parametrize("after_eos", [False, True])
@pytest.mark.parametrize("rudely", [False, True])
async def test_a_client_that_vanishes_frees_its_job(serving, after_eos, rudely):
    says = Sized.gated("")
    api = await serving(says)
    ws = await connect(api)
    await ws.send_bytes(bytes(16 * 32000))
    if after_eos:
        await ws.send_str("eos")
    await says.begun.wait()
    assert len(api.table.jobs) == 1
    if rudely:
        ws._response.connection.transport.abort()
    closing = asyncio.ensure_future(ws.close())
    await until(lambda: not api.table.jobs)
    await closing


async def test_pings_are_answered_while_the_work_goes_on(serving):
    says = Sized.gated("")
    api = await serving(says)
    async with connect(api, autoping=False) as ws:
        await ws.send_bytes(bytes(320))
        await ws.send_str("eos")
        await ws.ping(b"there?")
        pong = await ws.receive(10)
        assert (pong.type, bytes(pong.data)) == (aiohttp.WSMsgType.PONG, b"there?")
        says.go.set()
        assert await rest(ws) == ([{"text": "320", "final": True}], 1000)


async def test_a_flood_of_messages_leaves_others_their_turns(serving, monkeypatch):
    receive, without_turn, longest = web.WebSocketResponse.receive, 0, 0

    async def counted(socket):
        nonlocal without_turn, longest
        without_turn += 1
        longest = max(longest, without_turn)
        return await receive(socket)

    async def others():
        nonlocal without_turn
        while True:
            without_turn = 0
            await asyncio.sleep(0)

    monkeypatch.setattr(web.WebSocketResponse, "receive", counted)
    async with connect(await serving(Says())) as ws:
        turns = asyncio.ensure_future(others())
        for _ in range(1000):
            await ws.send_bytes(b"")
        await ws.send_str("eos")
        assert (await rest(ws))[1] == 1000
        await cancel(turns)
    assert 0 < longest <= 3


async def test_a_queue_that_is_full_pushes_back_and_loses_nothing(serving):
    says = Sized.gated("")
    api = await serving(says, queue_segments=2)
    async with connect(api) as ws:

        async def talk():
            for _ in range(70):
                await ws.send_bytes(bytes(32000))
            await ws.send_str("eos")

        talking = asyncio.ensure_future(talk())
        await says.begun.wait()
        says.go.set()
        found, code = await rest(ws)
        await talking
    assert code == 1000
    assert sum(int(each["text"]) for each in found) == 70 * 32000


async def test_a_server_that_shuts_down_sends_what_it_has_and_says_so(serving):
    api = await serving(Sized(""))
    async with connect(api, autoping=False) as ws:
        await ws.send_bytes(bytes(320))
        await ws.ping()
        assert (await ws.receive(10)).type is aiohttp.WSMsgType.PONG  # so the sound has arrived
        draining = asyncio.ensure_future(api.table.drain())
        found, code = await rest(ws)
    assert [each.get("text") for each in found] == ["320", None]
    assert code == 1001
    assert "shutting down" in found[-1]["error"]
    await draining


async def test_a_client_that_does_not_read_is_cut_off(serving):
    api = await serving(Says("x" * (8 << 20)), idle_seconds=0.3)
    async with connect(api, max_msg_size=0) as ws:
        transport = ws._conn.transport
        transport.pause_reading()
        await ws.send_bytes(bytes(32000))
        await ws.send_str("eos")
        await until(lambda: api.table.jobs)
        await until(lambda: not api.table.jobs)
        transport.resume_reading()
        assert (await ws.receive(10)).type is not aiohttp.WSMsgType.TEXT
        assert ws.close_code != 1000

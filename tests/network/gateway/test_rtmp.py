"""RTMP as a way into a stream: ffmpeg publishes, text comes out, and nothing is left behind."""

import asyncio
import contextlib
import socket
import subprocess
from pathlib import Path

import pytest

from audio.ffmpeg import ffmpeg_environment, ffmpeg_path, ts_from_rtmp
from tests.waiting import until
from whisper_byoc.network.gateway import rtmp
from whisper_byoc.network.gateway.rtmp import RtmpConfig
from whisper_byoc.network.serving import Address

PCM = {"input": "pcm16"}


@pytest.fixture(scope="module")
def flv(tmp_path_factory):
    """Two seconds of a tone, as AAC in FLV."""
    path = tmp_path_factory.mktemp("rtmp") / "tone.flv"
    command = [
        ffmpeg_path(), "-loglevel", "error", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=44100", "-t", "2",
        "-c:a", "aac", str(path),
    ]  # fmt: skip
    subprocess.run(command, env=ffmpeg_environment(), check=True, timeout=60)
    return path


@pytest.fixture
def config(unused_tcp_port):
    return RtmpConfig(Address(f"127.0.0.1:{unused_tcp_port}", 1935), ts_from_rtmp, ffmpeg_environment())


@pytest.fixture
def publish(flv, spawn):
    """Give a function that publishes the tone, quickly or for as long as it is let."""

    async def start(url, *, for_ever=False):
        pace = ["-re", "-stream_loop", "-1"] if for_ever else []
        return await spawn(
            ffmpeg_path(), "-loglevel", "quiet", "-nostdin", *pace, "-i", str(flv), "-c", "copy", "-f", "flv", url,
            env=ffmpeg_environment(),
        )  # fmt: skip

    return start


def listeners():
    """The ffmpeg processes that wait for RTMP on behalf of a gateway."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"-listen" in words and b"mpegts" in words:
                found.append(int(path.parent.name))
    return found


async def none_left(before):
    await until(lambda: set(listeners()) <= set(before))


def stream(gateway, name="one"):
    return gateway.running.streams._sessions[name]


async def test_sound_by_rtmp_comes_back_as_text_and_the_publisher_may_come_again(world, config, publish):
    before = listeners()
    gateway = await world.pair(world.Sound(), rtmp=config)
    _, answer = await gateway.start("one")
    assert answer["rtmp_url"] == f"rtmp://127.0.0.1:{config.address.port}/live/one"
    reader = gateway.follow(answer["data_url"])
    for turn in (1, 2):
        process = await publish(answer["rtmp_url"])
        assert await asyncio.wait_for(process.wait(), 20) == 0
        await none_left(before)
        await until(lambda turn=turn: stream(gateway).status()["ingest_metrics"]["bytes"] > 10_000 * turn)
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    assert abs(world.heard(await reader.ended()) / 32_000 - 4) < 0.5
    await gateway.settled()


async def test_the_end_of_the_stream_ends_its_publisher(world, config, publish):
    before = listeners()
    gateway = await world.pair(world.Sound(), rtmp=config)
    _, answer = await gateway.start("one")
    process = await publish(answer["rtmp_url"], for_ever=True)
    await until(lambda: stream(gateway).status()["ingest_metrics"]["bytes"] > 5000)
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    await asyncio.wait_for(process.wait(), 20)
    await none_left(before)
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", config.address.port)
    assert world.heard(await gateway.follow(answer["data_url"]).ended()) > 0


async def test_the_end_of_the_gateway_leaves_no_process(world, config, publish):
    before = listeners()
    orchestrator = await world.orchestrator(await world.serving(world.Sound()))
    async with contextlib.AsyncExitStack() as stack:
        gateway = await world.gateway(orchestrator, rtmp=config, stack=stack)
        _, answer = await gateway.start("one")
        await publish(answer["rtmp_url"], for_ever=True)
        await until(lambda: stream(gateway).status()["ingest_metrics"]["bytes"] > 5000)
        assert set(listeners()) - set(before)
    assert set(listeners()) <= set(before)


async def test_a_second_publisher_is_turned_away(world, config, publish):
    gateway = await world.pair(world.Sound(), rtmp=config)
    _, answer = await gateway.start("one")
    first = await publish(answer["rtmp_url"], for_ever=True)
    await until(lambda: stream(gateway).status()["ingest_metrics"]["bytes"] > 5000)
    second = await publish(answer["rtmp_url"], for_ever=True)
    assert await asyncio.wait_for(second.wait(), 20) != 0
    assert first.returncode is None
    await gateway.post("/process/stream/one/stop")


async def test_each_stream_has_a_port_of_its_own_and_a_taken_one_is_passed_over(world, config):
    port = config.address.port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        gateway = await world.pair(world.Sound(), rtmp=config)
        urls = [(await gateway.start(name))[1]["rtmp_url"] for name in ("one", "two")]
    ports = [int(url.split(":")[2].split("/")[0]) for url in urls]
    assert port < ports[0] < ports[1] < port + rtmp.MOST_PORTS
    for name in ("one", "two"):
        await gateway.post(f"/process/stream/{name}/stop")
    again = (await gateway.start("three"))[1]["rtmp_url"]
    assert again == f"rtmp://127.0.0.1:{port}/live/three"
    await gateway.post("/process/stream/three/stop")


async def test_ports_beyond_the_last_one_are_none(world, config):
    gateway = await world.pair(
        world.Sound(), rtmp=RtmpConfig(Address("127.0.0.1:65535", 1), config.command, config.environment)
    )
    urls = [(await gateway.start(name))[1]["rtmp_url"] for name in ("one", "two")]
    assert urls[1] == ""
    for name in ("one", "two"):
        assert (await gateway.post(f"/process/stream/{name}/stop"))[0] == 200


async def test_a_wildcard_address_is_told_as_the_client_knows_it(world, config):
    everywhere = RtmpConfig(Address(f":{config.address.port}", 1), config.command, config.environment)
    gateway = await world.pair(world.Sound(), rtmp=everywhere)
    _, answer = await gateway.start("one")
    assert answer["rtmp_url"].startswith("rtmp://127.0.0.1:")
    await gateway.post("/process/stream/one/stop")


@pytest.mark.parametrize("options", [{"ingress": False}, {"params": PCM}])
async def test_no_rtmp_where_media_is_of_no_use(world, config, options):
    gateway = await world.pair(world.Sound(), rtmp=config)
    _, answer = await gateway.start("one", **options)
    assert answer["rtmp_url"] == ""
    await gateway.post("/process/stream/one/stop")


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\x03" + bytes(3000), b"\x03\xff"])
async def test_garbage_on_the_port_does_no_harm(world, config, publish, garbage):
    before = listeners()
    gateway = await world.pair(world.Sound(), rtmp=config)
    _, answer = await gateway.start("one")
    reader, writer = await asyncio.open_connection("127.0.0.1", config.address.port)
    writer.write(garbage)
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await none_left(before)
    process = await publish(answer["rtmp_url"])
    assert await asyncio.wait_for(process.wait(), 20) == 0
    await gateway.post("/process/stream/one/stop")
    assert world.heard(await gateway.follow(answer["data_url"]).ended()) > 50_000


async def test_who_says_nothing_keeps_nobody_out(world, config, publish, monkeypatch):
    monkeypatch.setattr(rtmp, "HELLO_S", 1.0)
    gateway = await world.pair(world.Sound(), rtmp=config)
    _, answer = await gateway.start("one")
    silent = [await asyncio.open_connection("127.0.0.1", config.address.port) for _ in range(3)]
    process = await publish(answer["rtmp_url"])
    assert await asyncio.wait_for(process.wait(), 20) == 0
    for reader, writer in silent:
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    await gateway.post("/process/stream/one/stop")


async def test_a_publisher_that_falls_silent_makes_room(world, config, monkeypatch):
    monkeypatch.setattr(rtmp, "STALL_S", 0.3)
    before = listeners()
    gateway = await world.pair(world.Sound(), rtmp=config)
    await gateway.start("one")
    reader, writer = await asyncio.open_connection("127.0.0.1", config.address.port)
    writer.write(b"\x03" + bytes(100))
    await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await none_left(before)
    await gateway.post("/process/stream/one/stop")


async def test_an_ffmpeg_that_does_not_start_is_the_publishers_loss_only(world, config):
    broken = RtmpConfig(config.address, lambda port: ["false"], config.environment)
    gateway = await world.pair(world.Sound(), rtmp=broken)
    await gateway.start("one")
    reader, writer = await asyncio.open_connection("127.0.0.1", config.address.port)
    writer.write(b"\x03" + bytes(100))
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200

"""The decoder of a live feed, with programs in place of ffmpeg that die, hang, or whose output nobody wants."""

import asyncio
import os
import signal

import pytest

from audio.errors import DecoderFailed, MediaError
from tests.waiting import until
from whisper_byoc.errors import BadSegment
from whisper_byoc.server.ingest import decoder as module
from whisper_byoc.server.ingest.decoder import LiveDecoder


@pytest.fixture
def decode(tmp_path):
    """Return a function that makes a decoder of a shell command; its output, its process ids, its losses."""

    def make(command, sink=None, *, losses_are_errors=False):
        output, losses, pids = [], [], tmp_path / "pids"
        pids.touch()

        async def collect(data):
            output.append(data)

        full = ["sh", "-c", f"echo $$ >> {pids}; {command}"]
        decoder = LiveDecoder("test", sink or collect, lambda: full, None if losses_are_errors else losses.append)
        return decoder, output, lambda: [int(line) for line in pids.read_text().split()], losses

    return make


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_what_goes_in_comes_out(decode):
    decoder, output, _, losses = decode("exec cat")
    await decoder.finish()
    await decoder.feed(b"ab")
    await decoder.feed(b"cd")
    await decoder.finish()
    assert b"".join(output) == b"abcd"
    assert not losses
    await decoder.kill()


async def test_a_feed_ends_at_once_when_its_sink_fails(decode):
    blocked = asyncio.Event()

    async def fails(_):
        await blocked.wait()
        raise BadSegment("no")

    decoder, _, pids, losses = decode("echo x; exec sleep 600", fails)
    feeding = asyncio.ensure_future(decoder.feed(bytes(1 << 20)))  # more than a pipe holds
    await until(pids)
    blocked.set()
    async with asyncio.timeout(20):
        with pytest.raises(BadSegment):
            await feeding
    assert not is_there(*pids())
    assert not losses  # ffmpeg did what it should


async def test_the_next_ffmpeg_takes_over_from_one_that_died(decode, caplog):
    decoder, output, pids, losses = decode("echo once; echo why >&2; exit 3")
    await decoder.feed(bytes(1 << 20))
    await decoder.finish()
    assert len(pids()) == 2
    assert b"".join(output) == b"once\nonce\n"  # what they had decoded is not lost with them
    assert ["ffmpeg ended with 3: why" in loss for loss in losses] == [True, True]
    assert f"{1 << 20} bytes of the feed are lost" in caplog.text


async def test_an_ffmpeg_that_has_ended_between_two_feeds_is_replaced(decode):
    decoder, output, pids, losses = decode("exec head -c 1")
    await decoder.feed(b"ab")
    await until(lambda: pids() and not is_there(*pids()))
    await decoder.feed(b"c")
    await decoder.finish()
    assert output == [b"a", b"c"]
    assert len(losses) == 1


async def test_an_ffmpeg_that_takes_nothing_is_replaced(decode, monkeypatch):
    monkeypatch.setattr(module, "HANG_SECONDS", 0.25)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.05)
    decoder, _, pids, losses = decode("exec sleep 600")
    await decoder.feed(bytes(1 << 20))
    assert len(pids()) == 2
    assert not any(map(is_there, pids()))
    assert losses == ["some of the input could not be decoded and was lost: ffmpeg hung"]  # one, as nothing came out


@pytest.mark.parametrize(("number", "why"), [(signal.SIGSTOP, "hung"), (signal.SIGKILL, "ended with -9")])
@pytest.mark.parametrize("goes_on", [True, False])
async def test_an_ffmpeg_that_is_stopped_or_killed_is_a_loss(decode, monkeypatch, number, why, goes_on):
    monkeypatch.setattr(module, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.2)
    decoder, output, pids, losses = decode("exec cat")
    await decoder.feed(b"before")
    await until(lambda: output)
    os.kill(pids()[0], number)
    if number == signal.SIGKILL:
        await until(lambda: not is_there(*pids()))
    if goes_on:
        await decoder.feed(b"x" * (1 << 20))  # more than a pipe holds
    await decoder.finish()
    assert b"".join(output) == b"before" + b"x" * (goes_on << 20)
    assert [why in loss for loss in losses] == [True]


async def test_an_ffmpeg_that_waits_for_its_sink_does_not_hang(decode, monkeypatch):
    monkeypatch.setattr(module, "HANG_SECONDS", 0.5)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.5)
    sunk = []

    async def slow(data):
        await asyncio.sleep(0 if sunk else 0.8)
        sunk.append(data)

    decoder, _, pids, losses = decode("exec cat", slow)
    await decoder.feed(bytes(1 << 19))
    await decoder.finish()
    assert (len(b"".join(sunk)), len(pids()), losses) == (1 << 19, 1, [])


@pytest.mark.parametrize("end", [LiveDecoder.finish, LiveDecoder.kill])
async def test_nobody_is_left_when_its_end_is_cancelled(decode, end):
    decoder, _, pids, _ = decode("exec sleep 600")
    await decoder.feed(b"x")
    await until(pids)
    ending = asyncio.ensure_future(end(decoder))
    asyncio.get_running_loop().call_soon(ending.cancel)
    await asyncio.wait({ending})
    await until(lambda: not is_there(*pids()))


async def test_no_ffmpeg():
    decoder = LiveDecoder("test", None, lambda: ["/nowhere/ffmpeg"], print)
    with pytest.raises(FileNotFoundError):
        await decoder.feed(b"x")
    await decoder.kill()


@pytest.mark.parametrize(
    ("command", "error"),
    [("echo why >&2; exit 3", MediaError), ("exec head -c 1", MediaError), ("kill -9 $$", DecoderFailed)],
)
async def test_where_losses_are_errors_an_ffmpeg_that_dies_is_not_replaced(decode, command, error):
    decoder, _, pids, losses = decode(command, losses_are_errors=True)
    with pytest.raises(error):
        await decoder.feed(bytes(1 << 20))
    assert (len(pids()), losses) == (1, [])
    await decoder.finish()

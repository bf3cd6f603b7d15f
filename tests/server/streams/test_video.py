"""Tint pipelines on streams: H.264 in MPEG-TS in and out, the sound passed along."""

import asyncio
import itertools
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.media import decode_media
from tests.server.streams.conftest import unheard_monitor
from tests.waiting import until
from whisper_byoc.aio import cancel
from whisper_byoc.errors import BadSegment
from whisper_byoc.processors.tint import GrayscaleProcessor, GreenTintProcessor
from whisper_byoc.server.streams import video
from whisper_byoc.server.streams.video import PpmSplitter
from whisper_byoc.trickle.remote import ClientOptions

SECONDS, RATE, WIDTH, HEIGHT = 4, 30, 160, 120


def ffmpeg(*arguments, data=None):
    command = [ffmpeg_path(), "-loglevel", "error", *arguments]
    return subprocess.run(
        command, env=ffmpeg_environment(), input=data, stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout


def picture_stream(sound=True, start=0):
    """A still of one colour, with a tone of 440 Hz."""
    source = ["-f", "lavfi", "-i", f"color=0x406080:size={WIDTH}x{HEIGHT}:rate={RATE}"]
    if sound:
        source += ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-c:a", "aac"]
    coded = ["-t", str(SECONDS), "-c:v", "libx264", "-preset", "ultrafast", "-g", str(RATE)]
    return ffmpeg(*source, *coded, "-output_ts_offset", str(start), "-f", "mpegts", "pipe:1")


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def frames(ts):
    raw = ffmpeg("-f", "mpegts", "-i", "pipe:0", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1", data=ts)
    return np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)


async def through(world, name, ts, *, outputs, piece=188 * 100):
    """Send a stream through the container, and give what it published."""
    urls = world.channels(name, ["", *outputs])
    status, body = await world.start(name, urls, {"max_framerate": RATE})
    assert status == 200, body
    data, reading = world.collect(name, "-out") if "-out" in outputs else ([], None)
    async with world.publisher(name) as publisher:
        for at in range(0, len(ts), piece):
            await publisher.publish(ts[at : at + piece])
        status, body = await world.stop(name)
    assert status == 200, body
    if reading is not None:
        world.trickle.close(name + "-out")
        await reading
    return data


@pytest.mark.parametrize("sound", [True, False])
async def test_green_tint_of_a_stream(orchestrate, sound):
    world = await orchestrate(GreenTintProcessor())
    before = picture_stream(sound)
    published = await through(world, "green", before, outputs=["-out"])
    assert len(published) >= 1
    assert all(len(segment) % 188 == 0 and segment[0] == 0x47 for segment in published)
    after = b"".join(published)
    source, result = frames(before), frames(after)
    assert abs(len(result) - SECONDS * RATE) <= 2
    difference = result[len(result) // 2].astype(int).mean((0, 1)) - source[len(source) // 2].astype(int).mean((0, 1))
    assert np.abs(difference - [0, 80, 0]).max() < 6  # chroma is stored at half the resolution, and rounded
    if sound:
        heard = decode_media(after)
        assert abs(len(heard) / 16_000 - SECONDS) < 0.3
        assert abs(np.abs(np.fft.rfft(heard[:16_000])).argmax() - 440) <= 1


async def test_grayscale_of_a_stream(orchestrate):
    world = await orchestrate(GrayscaleProcessor())
    after = b"".join(await through(world, "gray", picture_stream(), outputs=["-out"]))
    pixel = frames(after)[10, 60, 80].astype(int)
    assert pixel.max() - pixel.min() <= 3


def silenced(ts, spans):
    """Take the packets of sound out of the stream in some parts of it, given as fractions of its length."""
    packets = [ts[at : at + 188] for at in range(0, len(ts), 188)]

    def kept(at, packet):
        sound = int.from_bytes(packet[1:3]) & 0x1FFF == 0x101
        return not (sound and any(begin <= at / len(packets) < end for begin, end in spans))

    return b"".join(packet for at, packet in enumerate(packets) if kept(at, packet))


def loud(ts):
    """Say for every tenth of a second of the pictures whether something is heard."""
    shown = ["-af", "aresample=async=1:first_pts=0", "-ar", "16000", "-ac", "1", "-f", "s16le", "pipe:1"]
    samples = np.frombuffer(ffmpeg("-f", "mpegts", "-i", "pipe:0", "-map", "0:a:0", *shown, data=ts), "<i2")
    tenths = np.abs(samples[: len(samples) // 1600 * 1600].reshape(-1, 1600).astype(int)).mean(1) > 500
    return np.concatenate([tenths, np.zeros(SECONDS * 10, bool)])[: SECONDS * 10]


@pytest.mark.parametrize(
    "spans",
    [[(0.4, 1)], [(0, 0.4)], [(0, 1)], [(0.2, 0.4), (0.6, 0.8)]],
    ids=["ends", "late", "missing", "comes and goes"],
)
async def test_all_pictures_come_out_and_the_sound_stays_at_its_place(orchestrate, spans):
    world = await orchestrate(GreenTintProcessor())
    before = silenced(picture_stream(), spans)
    after = b"".join(await through(world, "tracks", before, outputs=["-out"]))
    assert abs(len(frames(after)) - SECONDS * RATE) <= 2
    if spans != [(0, 1)]:
        assert (loud(after) != loud(before)).sum() <= 2 * len(spans)
    assert not world.errors("tracks")


async def test_sound_that_outlasts_the_pictures_comes_out(orchestrate):
    world = await orchestrate(GreenTintProcessor())
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"]
    picture = ["-f", "lavfi", "-i", f"color=size={WIDTH}x{HEIGHT}:rate={RATE}:duration=1.5"]
    coded = ["-t", str(SECONDS), "-c:a", "aac", "-c:v", "libx264", "-preset", "ultrafast", "-g", str(RATE)]
    before = ffmpeg(*picture, *tone, *coded, "-f", "mpegts", "pipe:1")
    after = b"".join(await through(world, "longer", before, outputs=["-out"]))
    assert abs(len(frames(after)) - 1.5 * RATE) <= 2
    assert (loud(after) != loud(before)).sum() <= 2


async def test_a_gap_that_parts_sound_and_pictures_does_not_stop_the_stream(orchestrate):
    world = await orchestrate(GreenTintProcessor())
    early, late = picture_stream(), picture_stream(start=40)
    after = b"".join(await through(world, "gap", early + late * 2, outputs=["-out"], piece=len(early)))
    assert len(frames(after)) >= 3 * SECONDS * RATE - 2
    assert len(decode_media(after)) / 16_000 > 2.9 * SECONDS
    assert not world.errors("gap")


async def test_what_an_encoder_held_when_it_failed_goes_to_the_next_one(orchestrate, monkeypatch):
    """The first one dies at once, the second one hangs, the third one gives a part of its pictures."""
    asked = []
    real = video.ts_from_frames

    def broken(rate, start):
        asked.append(start)
        monkeypatch.setattr(video, "STALL_S", 0.1 if len(asked) == 2 else 30.0)
        good = real(rate, start)
        return {
            1: ["false"],
            2: ["sleep", "600"],
            3: [*good[:-5], "-frames:v", "40", *good[-5:]],
        }.get(len(asked), good)

    monkeypatch.setattr(video, "ts_from_frames", broken)
    world = await orchestrate(GreenTintProcessor())
    before = picture_stream()
    after = b"".join(await through(world, "dies", before, outputs=["-out"]))
    assert asked[:3] == [0, 0, 0]
    assert asked[3] == pytest.approx(40 / RATE)
    assert abs(len(frames(after)) - SECONDS * RATE) <= 2
    assert (loud(after) != loud(before)).sum() <= 2


async def test_what_an_encoder_held_that_hangs_at_the_end_goes_to_the_next_one(orchestrate, monkeypatch):
    real, commands = video.ts_from_frames, [["sh", "-c", "cat > /dev/null; exec sleep 600"]]
    monkeypatch.setattr(video, "ts_from_frames", lambda *given: commands.pop() if commands else real(*given))
    monkeypatch.setattr(video, "ENCODER_FLUSH_S", 0.5)
    world = await orchestrate(GreenTintProcessor())
    after = b"".join(await through(world, "hangs", picture_stream(), outputs=["-out"]))
    assert abs(len(frames(after)) - SECONDS * RATE) <= 2


async def test_pictures_that_are_not_encoded_when_a_stream_has_to_stop_are_an_event(orchestrate, monkeypatch):
    monkeypatch.setattr(video, "ts_from_frames", lambda *_: ["sleep", "600"])
    world = await orchestrate(GreenTintProcessor())
    assert (await world.start("tv", world.channels("tv", ["", "-out", "-events"]), {"max_framerate": RATE}))[0] == 200
    events, following = world.follow("tv", "-events")
    (stream,) = world.api.server.streams.streams
    async with world.publisher("tv") as publisher:
        await publisher.publish(await asyncio.to_thread(picture_stream))
        await stream.stop(2.0)
    await until(lambda: any("were not ready within" in each["event"].get("message", "") for each in events))
    await cancel(following)


async def test_pictures_and_sound_are_counted_in_both_directions(orchestrate):
    world = await orchestrate(GreenTintProcessor())
    assert (await world.start("tv", world.channels("tv", ["", "-out"]), {"max_framerate": 30}))[0] == 200
    (stream,) = world.api.server.streams.streams
    ts = await asyncio.to_thread(picture_stream)
    async with world.publisher("tv") as publisher:
        for at in range(0, len(ts), 188 * 100):
            await publisher.publish(ts[at : at + 188 * 100])
        await world.stop("tv")
    fps = stream.monitor.fps()
    assert set(fps) == {"ingress_video_fps", "ingress_audio_fps", "egress_video_fps", "egress_audio_fps"}
    assert all(fps.values()), fps


async def test_the_output_ends_when_no_encoder_lives(orchestrate, monkeypatch):
    monkeypatch.setattr(video, "ts_from_frames", lambda *_: ["false"])
    world = await orchestrate(GreenTintProcessor())
    assert await through(world, "dead", picture_stream(), outputs=["-out"]) == []
    assert not world.api.server.streams.streams
    assert any("pictures cannot be encoded" in error for error in world.errors("dead"))


async def test_an_encoder_that_cannot_be_started_leaves_nothing_open(orchestrate, monkeypatch):
    class OnePicture:
        info = SimpleNamespace(job_id="job")
        reading = nullcontext

        def __init__(self):
            self.results = self

        async def unread_records(self):
            yield SimpleNamespace(kind="result", result=SimpleNamespace(body=bytes(3)))

    monkeypatch.setattr(video, "ts_from_frames", lambda *_: ["/nowhere/ffmpeg"])
    world = await orchestrate(GreenTintProcessor())
    url = world.channels("never", ["-out"])["publish_url"]
    before = open_files()
    output = video.VideoOutput(OnePicture(), url, RATE, ClientOptions(), unheard_monitor())
    output.sizes.append((1, 1))
    with pytest.raises(FileNotFoundError):
        await output.run()
    await until(lambda: open_files() == before)


@pytest.mark.parametrize("command", ["frames_from_ts", "ts_from_frames"])
async def test_without_ffmpeg_a_stream_fails(orchestrate, monkeypatch, command):
    monkeypatch.setattr(video, command, lambda *_: ["/nowhere/ffmpeg"])
    world = await orchestrate(GreenTintProcessor())
    await through(world, "fails", picture_stream(), outputs=["-out"])
    assert not world.api.server.streams.streams
    results = world.api.table.get("fails").results
    assert results.at(results.next_seq - 2).error == "the stream failed; the server's log says why"


async def test_a_stream_ends_when_its_job_is_abandoned_while_ffmpeg_is_full_of_pictures(orchestrate):
    class Stuck:
        media = "video"

        def __init__(self):
            self.begun = asyncio.Event()

        async def process(self, frame):
            self.begun.set()
            await asyncio.Event().wait()

    stuck = Stuck()
    world = await orchestrate(stuck, queue_segments=2)
    assert (await world.start("full", world.channels("full", [""])))[0] == 200
    ts = picture_stream()
    async with world.publisher("full") as publisher:
        for at in range(0, len(ts), 188 * 100):
            await publisher.publish(ts[at : at + 188 * 100])
        await stuck.begun.wait()
        await until(lambda: world.api.table.get("full").inbox.items == 2)
        async with world.api.http.delete(f"{world.api.url}/live/full") as answer:
            assert answer.status == 200
        await until(lambda: not world.api.server.streams.streams)


async def test_pictures_that_are_too_large_are_an_error_and_nothing_hangs(orchestrate, monkeypatch):
    monkeypatch.setattr(video, "MAX_SIDE", 100)
    world = await orchestrate(GreenTintProcessor())
    assert (await world.start("wide", world.channels("wide", [""])))[0] == 200
    ts = picture_stream()

    async def go_on():
        async with world.publisher("wide") as publisher:
            for at in itertools.cycle(range(0, len(ts), 188 * 100)):
                await publisher.publish(ts[at : at + 188 * 100])

    sending = asyncio.ensure_future(go_on())
    await until(lambda: world.api.table.get("wide").results.ended)
    await cancel(sending)
    results = world.api.table.get("wide").results
    errors = " ".join(results.at(seq).error for seq in range(results.next_seq))  # segments may also have been missed
    assert "are larger than 100x100" in errors
    await until(lambda: not world.api.server.streams.streams)


async def test_nobody_wants_the_pictures(orchestrate):
    world = await orchestrate(GreenTintProcessor())
    assert await through(world, "none", picture_stream(), outputs=[]) == []


async def test_the_reader_of_the_pictures_goes_away(orchestrate):
    world = await orchestrate(GreenTintProcessor())
    urls = world.channels("gone", ["", "-out"])
    await world.start("gone", urls)
    world.trickle.close("gone-out")
    ts = picture_stream()
    async with world.publisher("gone") as publisher:
        for at in range(0, len(ts), 188 * 100):
            await publisher.publish(ts[at : at + 188 * 100])
        assert (await world.stop("gone"))[0] == 200
    assert not world.api.server.streams.streams
    assert (await world.api.json("/health"))[1] == {"status": "IDLE"}


def ppm(width, height, fill):
    return b"P6\n%d %d\n255\n" % (width, height) + bytes([fill]) * (width * height * 3)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 255)), max_size=6), st.data())
def test_pictures_are_found_in_any_chunking(pictures, data):
    stream = b"".join(ppm(*picture) for picture in pictures)
    splitter, found, at = PpmSplitter(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 300))
        found += splitter.feed(stream[at : at + size])
        at += size
    assert found == [(width, height, bytes([fill]) * (width * height * 3)) for width, height, fill in pictures]


@pytest.mark.parametrize("data", [b"P5\n1 1\n255\n", bytes(40), b"P6\n99999 9\n255\n", b"P6\n0 9\n255\n", b"P6 " * 9])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(BadSegment):
        for _ in range(3):
            PpmSplitter().feed(data + bytes(40))

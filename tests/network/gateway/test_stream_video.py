"""Streams of pictures: through a tint pipeline, whole to the last one."""

import asyncio
import subprocess

import numpy as np
import pytest

from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from whisper_byoc.processors.tint import GreenTintProcessor


def ffmpeg(*arguments, data=None):
    command = [ffmpeg_path(), "-loglevel", "error", *arguments]
    return subprocess.run(
        command, env=ffmpeg_environment(), input=data, stdout=subprocess.PIPE, check=True, timeout=60
    ).stdout


def frames(ts):
    raw = ffmpeg("-f", "mpegts", "-i", "pipe:0", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1", data=ts)
    return np.frombuffer(raw, np.uint8).reshape(-1, 120, 160, 3)


@pytest.mark.parametrize("data", [False, True])
async def test_video_through_a_tint_pipeline_comes_out_whole(world, data):
    gateway = await world.pair(GreenTintProcessor())
    ts = await asyncio.to_thread(
        ffmpeg, "-f", "lavfi", "-i", "color=0x406080:size=160x120:rate=30", "-t", "3", "-c:v", "libx264", "-preset",
        "ultrafast", "-g", "30", "-f", "mpegts", "pipe:1",
    )  # fmt: skip
    status, answer = await gateway.start("one", {"max_framerate": 30}, egress=True, data=data)
    assert status == 200, answer
    assert answer["subscribe_url"] == f"{gateway.url}/ai/trickle/one-out"
    found, reading = gateway.collect(answer["subscribe_url"])
    await gateway.publish(answer["publish_url"], *(ts[at : at + 18_800] for at in range(0, len(ts), 18_800)))
    await gateway.end(answer["publish_url"])
    await asyncio.wait_for(reading, 30)
    pictures = await asyncio.to_thread(frames, b"".join(found))
    assert abs(len(pictures) - 90) <= 2
    assert pictures[45].astype(int).mean((0, 1))[1] > 160
    await world.over(gateway)
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]


async def test_the_last_pictures_can_still_be_asked_for(world):
    worker, gateway = await world.worker_pair()
    _, answer = await gateway.start("one", egress=True)
    worker.on_stop = lambda: worker.say(b"a", b"b", b"c", kind="publish")
    found, reading = gateway.collect(answer["subscribe_url"])
    await gateway.post("/process/stream/one/stop")
    await asyncio.wait_for(reading, 10)
    assert found == [b"a", b"b", b"c"]
    await gateway.settled()

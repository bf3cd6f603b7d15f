import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import until
from whisper_byoc.errors import BadSegment
from whisper_byoc.processors.base import FrameProcessor
from whisper_byoc.processors.tint import (
    BLOCK_PIXELS,
    Grayscale,
    GrayscaleProcessor,
    GreenTintProcessor,
    PaintingProcessor,
    PassthroughProcessor,
    green_tint,
)


def slow_green(frame):
    out = bytearray(frame)
    for i in range(1, len(out), 3):
        out[i] = min(255, out[i] + 80)
    return bytes(out)


def slow_gray(frame):
    out = bytearray()
    for red, green, blue in zip(frame[0::3], frame[1::3], frame[2::3], strict=True):
        out += bytes([(299 * red + 587 * green + 114 * blue) // 1000] * 3)
    return bytes(out)


def random_frame(pixels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, 3 * pixels, np.uint8).tobytes()


PURE = pytest.mark.parametrize(
    ("fast", "slow"), [(green_tint, slow_green), (Grayscale(), slow_gray)], ids=["green", "gray"]
)
PROCESSORS = pytest.mark.parametrize("make", [GreenTintProcessor, GrayscaleProcessor, PassthroughProcessor])
PAINTERS = pytest.mark.parametrize("make", [GreenTintProcessor, GrayscaleProcessor])


@PURE
@given(frame=st.lists(st.binary(min_size=3, max_size=3), max_size=200).map(b"".join))
def test_equals_the_loop(fast, slow, frame):
    assert fast(frame) == slow(frame)


@PURE
@pytest.mark.parametrize("pixels", [0, 1, BLOCK_PIXELS - 1, BLOCK_PIXELS, BLOCK_PIXELS + 1, 2 * BLOCK_PIXELS + 5])
def test_block_boundaries(fast, slow, pixels):
    frame = random_frame(pixels)
    assert fast(frame) == slow(frame)


@PURE
def test_nothing_of_a_larger_frame_stays_behind(fast, slow):
    fast(b"\xff" * 3 * 1000)
    assert fast(b"\x00\x00\x00\x01\x02\x03") == slow(b"\x00\x00\x00\x01\x02\x03")


@PURE
def test_the_input_is_left_alone_and_the_result_is_its_own_bytes(fast, slow):
    frame = random_frame(100)
    before = bytes(bytearray(frame))
    result = fast(frame)
    kept = bytes(bytearray(result))
    fast(random_frame(100, seed=1))
    assert type(result) is bytes
    assert frame == before
    assert result == kept


@PURE
@pytest.mark.parametrize("length", [1, 2, 4, 3 * BLOCK_PIXELS + 1])
def test_a_part_of_a_pixel_is_refused(fast, slow, length):
    with pytest.raises(BadSegment, match=rf"\b{length} bytes"):
        fast(bytes(length))


def test_every_green_value():
    frame = bytes(value for green in range(256) for value in (7, green, 250))
    assert green_tint(frame) == slow_green(frame)


def test_grey_stays_grey():
    frame = bytes(value for value in range(256) for _ in range(3))
    assert Grayscale()(frame) == frame


def test_luma_of_the_corner_colours():
    frame = bytes.fromhex("000000 ff0000 00ff00 0000ff ffff00 ff00ff 00ffff ffffff")
    assert list(Grayscale()(frame)[::3]) == [0, 76, 149, 29, 225, 105, 178, 255]


def test_luma_of_every_colour_there_is():
    gray = Grayscale()
    plane = np.empty((256, 256, 3), np.uint8)
    plane[..., 1] = np.arange(256)[:, None]
    plane[..., 2] = np.arange(256)
    green_and_blue = (plane[..., 1:].astype(np.int32) * [587, 114]).sum(axis=-1)
    for red in range(256):
        plane[..., 0] = red
        expected = ((299 * red + green_and_blue) // 1000).astype(np.uint8)
        result = np.frombuffer(gray(plane.tobytes()), np.uint8).reshape(plane.shape)
        assert (result == expected[..., None]).all(), f"red {red}"


@PURE
def test_threads_do_not_share_scratch(fast, slow):
    frames = [random_frame(BLOCK_PIXELS // 2, seed) for seed in range(4)]
    expected = [slow(frame) for frame in frames]
    start = threading.Barrier(len(frames))

    def convert(frame):
        start.wait(10)
        return [fast(frame) for _ in range(20)]

    with ThreadPoolExecutor(len(frames)) as pool:
        for results, right in zip(pool.map(convert, frames), expected, strict=True):
            assert all(result == right for result in results)


@PROCESSORS
async def test_contract(make):
    processor = make()
    assert isinstance(processor, FrameProcessor)
    media = "bytes" if make is PassthroughProcessor else "video"
    assert (processor.media, processor.content_type) == (media, "application/octet-stream")
    await processor.initialize()
    assert await processor.process(b"") == b""
    await processor.shutdown()
    await processor.shutdown()


@pytest.mark.parametrize(
    ("make", "slow"), [(GreenTintProcessor, slow_green), (GrayscaleProcessor, slow_gray)], ids=["green", "gray"]
)
async def test_concurrent_frames_of_different_sizes(make, slow):
    processor = make()
    frames = [random_frame(pixels, seed=pixels) for pixels in (1, 500, 20_000, 3, 40_000, 7_777)]
    results = await asyncio.gather(*map(processor.process, frames))
    await processor.shutdown()
    assert results == [slow(frame) for frame in frames]


@PAINTERS
async def test_a_bad_frame_fails_alone(make):
    processor = make()
    bad, good = await asyncio.gather(processor.process(b"1234"), processor.process(b"123"), return_exceptions=True)
    await processor.shutdown()
    assert isinstance(bad, BadSegment)
    assert isinstance(good, bytes)


async def test_the_event_loop_does_not_paint():
    threads = []

    def paint(frame):
        threads.append(threading.current_thread())
        return frame

    processor = PaintingProcessor(paint)
    assert await processor.process(b"rgb") == b"rgb"
    await processor.shutdown()
    assert threads
    assert threading.current_thread() not in threads


@PAINTERS
async def test_shutdown_keeps_what_was_accepted_and_ends_the_threads(make):
    def threads():
        return set(threading.enumerate()) - before

    before = set(threading.enumerate())
    processor = make()
    await processor.initialize()
    running = [asyncio.ensure_future(processor.process(random_frame(50_000, seed))) for seed in range(5)]
    await until(threads)
    await processor.shutdown()
    assert [len(frame) for frame in await asyncio.gather(*running)] == [150_000] * 5
    await until(lambda: not threads())


@given(frame=st.binary())
def test_passthrough_changes_nothing(frame):
    assert asyncio.run(PassthroughProcessor().process(frame)) == frame

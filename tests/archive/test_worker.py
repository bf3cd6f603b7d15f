"""A recording that is shared out among workers has the text that one of them makes of it."""

import pytest

from audio import pcm
from audio.media import in_blocks, load_audio
from whisper_byoc.archive.run import SHARE_BYTES, Task, joined, tasks_of
from whisper_byoc.archive.sources import Source
from whisper_byoc.archive.worker import Outcome, records_of
from whisper_byoc.processors.base import JobInfo


async def outcome(processor, samples, share=(0, 1)):
    job = JobInfo("long.wav", "transcribe", recording=True, share=share)
    *records, end = [each async for each in records_of(processor, map(pcm.encode, in_blocks(samples)), job)]
    assert end["type"] == "end"
    kept = [
        {key: each[key] for key in ("type", "text", "language", "timing")} for each in records
    ]  # not how sure it was
    return Outcome(len(samples) / pcm.SAMPLE_RATE, tuple(kept))


@pytest.mark.parametrize("count", [2, 3])
async def test_shares_are_the_whole(demo_processor, fixtures_dir, count):
    samples = load_audio(fixtures_dir / "demo-long-40s.wav")
    whole = await outcome(demo_processor, samples)
    shares = [await outcome(demo_processor, samples, (number, count)) for number in range(count)]
    assert joined(shares) == whole
    assert len(whole.records) > 1
    assert sum(bool(each.records) for each in shares) == min(count, len(whole.records))


def source(name, size):
    return Source(name, name, size, "1")


def test_only_what_keeps_a_worker_longer_than_the_others_is_shared_out():
    large, small = source("large", 100 * SHARE_BYTES), [source(f"{number}", SHARE_BYTES) for number in range(20)]
    assert tasks_of([*small, large], 4)[:3] == [Task(large, number, 3) for number in range(3)]
    assert tasks_of([*small, large], 1)[0] == Task(large)
    assert {each.count for each in tasks_of(small, 4)} == {1}
    assert tasks_of([source("short", SHARE_BYTES)], 8) == [Task(source("short", SHARE_BYTES))]
    assert len(tasks_of([large], 8)) == 8
    assert tasks_of([source("of unknown size", 0)], 8) == [Task(source("of unknown size", 0))]

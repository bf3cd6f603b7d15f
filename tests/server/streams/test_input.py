"""What a stream reads, where a gap is in it."""

import asyncio
from contextlib import nullcontext

import pytest

from audio.raw import PLAIN
from tests.server.streams.conftest import unheard_monitor
from whisper_byoc.errors import BadSegment
from whisper_byoc.server.streams import input as module
from whisper_byoc.server.streams.input import AudioSink, StreamInput
from whisper_byoc.trickle.errors import SegmentBroken
from whisper_byoc.trickle.remote import ClientOptions


class Job:
    """Keeps what is submitted."""

    feeding = nullcontext

    def __init__(self):
        self.info = self.inbox = self
        self.job_id = "job"
        self.closing = asyncio.Event()
        self.submitted = []

    def touch(self):
        pass

    def end_input(self):
        self.closing.set()

    async def submit(self, data, *, live):
        self.submitted.append(data)

    def submit_now(self, data, *, live=False):
        self.submitted.append(str(data) if isinstance(data, BadSegment) else data)


class Segment:
    content_type = "audio/pcm"
    missed = 0
    began_anew = False

    def __init__(self, data, error=None):
        self.data, self.error = data, error

    async def __aiter__(self):
        yield self.data
        if self.error is not None:
            raise self.error


class Channel:
    """In place of a subscriber: a segment that breaks off, and one that does not."""

    def __init__(self, url, start, options):
        pass

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def __aiter__(self):
        yield Segment(b"abc", SegmentBroken("gone", 0))
        yield Segment(b"defg")


class Restarted(Channel):
    """A segment, and one of a publisher that began again."""

    async def __aiter__(self):
        yield Segment(b"abc")
        again = Segment(b"defg")
        again.began_anew = True
        yield again


@pytest.mark.parametrize("live", [True, False])
async def test_a_segment_that_breaks_off_in_mid_sample_does_not_shift_the_next_one(monkeypatch, live):
    monkeypatch.setattr(module, "TrickleSubscriber", Channel)
    job, monitor = Job(), unheard_monitor()
    sink = AudioSink(job, monitor, declared=PLAIN, live=live)
    await StreamInput(job, "url", sink, monitor, ClientOptions(), lambda: False).run()
    assert [each for each in job.submitted if isinstance(each, bytes)] == [b"ab", b"defg"]
    errors = [each for each in job.submitted if isinstance(each, str)]
    assert len(errors) == 2
    assert "broke off" in errors[0]
    assert "in the middle of a 16-bit sample" in errors[1]
    assert monitor.status()["inference_status"]["last_error"] == errors[0]


async def test_a_publisher_that_begins_again_is_a_loss_and_does_not_shift_samples(monkeypatch):
    monkeypatch.setattr(module, "TrickleSubscriber", Restarted)
    job, monitor = Job(), unheard_monitor()
    sink = AudioSink(job, monitor, declared=PLAIN, live=True)
    await StreamInput(job, "url", sink, monitor, ClientOptions(), lambda: False).run()
    assert [each for each in job.submitted if isinstance(each, bytes)] == [b"ab", b"defg"]
    error = monitor.status()["inference_status"]["last_error"]
    assert "began again" in error
    assert error in job.submitted

"""What a stream reads, where a gap is in it."""

from types import SimpleNamespace

import pytest

from whisper_byoc.errors import BadSegment
from whisper_byoc.server.streams.input import AudioSink, StreamInput
from whisper_byoc.trickle.errors import SegmentBroken
from whisper_byoc.trickle.http import ClientOptions


class Job:
    """Keeps what it is given."""

    info = SimpleNamespace(job_id="job")

    def __init__(self):
        self.inbox = self
        self.given = []

    def touch(self):
        pass

    async def submit(self, data, *, live):
        self.given.append(data)

    def submit_now(self, data):
        self.given.append(str(data) if isinstance(data, BadSegment) else data)


class Segment:
    content_type = "audio/pcm"

    def __init__(self, data, error=None):
        self.data, self.error = data, error

    async def __aiter__(self):
        yield self.data
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("live", [True, False])
async def test_a_segment_that_breaks_off_in_mid_sample_does_not_shift_the_next_one(live):
    job = Job()
    sink = AudioSink(job, pcm=True, live=live)
    reading = StreamInput(job, None, sink, ClientOptions(), lambda message: None)
    await reading._take(Segment(b"abc", SegmentBroken("gone", 0)))
    await reading._take(Segment(b"defg"))
    reading._submit_rest()
    await sink.kill()
    assert [each for each in job.given if isinstance(each, bytes)] == [b"ab", b"defg"]
    errors = [each for each in job.given if isinstance(each, str)]
    assert len(errors) == 2
    assert "broke off" in errors[0]
    assert "in the middle of a 16-bit sample" in errors[1]

"""Jobs against a small model: every accepted segment has one outcome, in order, read once, whatever clients do."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.waiting import until
from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.run import Server, ServerConfig

QUEUE, RESULTS = 3, 4
BAD = b"bad"


class Slow:
    """Waits for `go`, then answers in capitals; refuses `BAD`."""

    def __init__(self):
        self.go = asyncio.Event()

    async def process(self, frame):
        await self.go.wait()
        if frame == BAD:
            raise ValueError("it is bad")
        return frame.upper()


def outcome(record):
    return "error" if record.kind == "error" else record.result.body


class JobMachine(RuleBasedStateMachine):
    """The model: what was accepted, and how much of it was read."""

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.run(self.start())
        self.accepted, self.read, self.ended, self.end_read = [], 0, False, False

    async def start(self):
        self.processor = Slow()
        limits = Limits(queue_segments=QUEUE, kept_results=RESULTS)
        self.server = await Server({"slow": self.processor}, ServerConfig(port=0, limits=limits)).__aenter__()
        await self.server.loaded()
        self.job = await self.server.table.open("job", None, {})

    def teardown(self):
        self.run(self.server.__aexit__())
        self.runner.close()

    @rule(data=st.sampled_from([b"one", b"two", BAD]))
    def put(self, data):
        """One segment is taken while there is room, and the input has not ended."""
        self.run(self.put_one(data))

    async def put_one(self, data):
        inbox = self.job.inbox
        room = inbox.items < QUEUE
        if not await inbox.reserve(len(data), 0):
            assert self.ended or not room
            return
        try:
            inbox.enqueue(data, len(data))
        except RequestRefused:
            assert self.ended
            return
        assert room
        assert not self.ended
        self.accepted.append("error" if data == BAD else data.upper())

    @rule()
    def let_it_work(self):
        self.run(self.work())

    async def work(self):
        """Work until all is done, or the ring is full of what nobody has read."""
        self.processor.go.set()
        done = min(len(self.accepted), self.read + RESULTS)
        await until(lambda: self.job.results.next_seq - int(self.job.results.ended) >= done)
        if self.ended and done == len(self.accepted):
            await until(lambda: self.job.results.ended)
        self.processor.go.clear()

    @rule()
    def read_one(self):
        self.run(self.read_next())

    async def read_next(self):
        results = self.job.results
        there = results.next_seq > self.read
        with self.job.reading():
            record = await results.next_unread(0)
            assert (record is not None) == there
            if record is None:
                return
            assert record.seq == self.read
            if record.kind == "end":
                assert self.ended
                assert self.read == len(self.accepted)
                self.end_read = True
            else:
                assert outcome(record) == self.accepted[self.read]
                results.mark_read(record)
                self.read += 1
        if not there:
            await asyncio.sleep(0)

    @precondition(lambda self: self.read)
    @rule()
    def read_again(self):
        """The newest one that was read is kept, unless newer ones have taken its room; it stays as it was."""
        record = self.run(self.job.results.wait_for(self.read - 1, 0))
        if record is not None:
            assert outcome(record) == self.accepted[self.read - 1]
        else:
            assert self.job.results.next_seq >= self.read - 1 + RESULTS

    @rule()
    @precondition(lambda self: len(self.accepted) > 4)
    def end_input(self):
        self.job.end_input()
        self.ended = True

    @invariant()
    def nothing_is_lost_or_doubled(self):
        results, inbox = self.job.results, self.job.inbox
        outcomes = results.next_seq - int(results.ended)
        assert self.read <= outcomes <= len(self.accepted)
        assert results.unread == outcomes - self.read
        assert results.unread <= RESULTS
        assert len(self.accepted) - outcomes <= inbox.items <= QUEUE
        if results.ended:
            assert outcomes == len(self.accepted)


TestJob = JobMachine.TestCase
TestJob.settings = settings(max_examples=10, stateful_step_count=30)

"""A channel against a small model: whatever publishers and readers do, in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from whisper_byoc.trickle.channel import Channel, Cursor
from whisper_byoc.trickle.errors import ChannelClosed, SegmentFinished, SegmentNotFound
from whisper_byoc.trickle.limits import ByteBudget
from whisper_byoc.trickle.protocol import CURRENT, NEXT, WINDOW

DATA = st.binary(max_size=50)


class ChannelMachine(RuleBasedStateMachine):
    """The model: the bytes of each index of the window, whether it is finished, and the next write."""

    def __init__(self):
        super().__init__()
        self.memory = ByteBudget(1 << 20)
        self.channel = Channel("ch", "text/plain", 1 << 16, self.memory)
        self.next = 0
        self.written = {}
        self.open = {}

    def expect(self, error, call, *arguments):
        try:
            call(*arguments)
        except error:
            return
        raise AssertionError(f"no {error.__name__}")

    @precondition(lambda self: not self.channel.closed)
    @rule(ahead=st.integers(0, 2 * WINDOW), data=DATA)
    def begin(self, ahead, data):
        """Begin the next index, or one far ahead: what it pushes out of the window is gone."""
        seq = self.next + ahead
        segment = self.channel.for_write(seq if ahead else NEXT)
        segment.append(data)
        self.channel.begin(segment)
        self.next = seq + 1
        kept = {each: found for each, found in self.written.items() if each % WINDOW != seq % WINDOW}
        self.written = kept | {seq: data}
        self.open = {each: found for each, found in self.open.items() if each in kept} | {seq: segment}

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, WINDOW), data=DATA)
    def append(self, which, data):
        seq = sorted(self.open)[which % len(self.open)]
        self.open[seq].append(data)
        self.written[seq] += data

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, WINDOW))
    def finish(self, which):
        seq = sorted(self.open)[which % len(self.open)]
        self.channel.finish(self.open.pop(seq))
        if not self.channel.closed and seq >= self.next - WINDOW:  # one behind the window would begin it again
            self.expect(SegmentFinished, self.channel.for_write, seq)

    @precondition(lambda self: not self.channel.closed and self.written)
    @rule(seq=st.integers(0, 60))
    def read(self, seq):
        """An index of the window has its bytes; the next one may be waited for; others are not there."""
        if seq in self.written:
            assert Cursor(self.channel.for_read(seq)).segment.seq == seq
            assert b"".join(self.channel.for_read(seq).chunks) == self.written[seq]
        elif seq < self.next or seq > self.next:
            self.expect(SegmentNotFound, self.channel.for_read, seq)

    @precondition(lambda self: self.next > WINDOW and 0 not in self.written and not self.channel.closed)
    @rule(data=DATA)
    def restart(self, data):
        """A publisher that begins behind the window begins the channel again, unless an upload is open."""
        with self.channel.uploading():
            self.expect(SegmentFinished, self.channel.for_write, 0)
        segment = self.channel.for_write(0)
        segment.append(data)
        self.channel.begin(segment)
        self.next, self.written, self.open = 1, {0: data}, {0: segment}

    @rule()
    @precondition(lambda self: self.next > 3)
    def close(self):
        self.channel.close()
        self.open = {}
        self.expect(ChannelClosed, self.channel.for_write, NEXT)
        self.expect(ChannelClosed, self.channel.for_read, CURRENT)

    @invariant()
    def the_window_is_that_of_the_model(self):
        held = {each.seq: b"".join(each.chunks) for each in self.channel.segments}
        assert held == self.written
        assert self.channel.next_write == self.next
        assert len(held) <= WINDOW
        assert self.memory.held == sum(map(len, held.values()))
        assert {seq for seq in held if not self.channel.closed and seq in self.open} == set(self.open)


TestChannel = ChannelMachine.TestCase
TestChannel.settings = settings(max_examples=40, stateful_step_count=30)

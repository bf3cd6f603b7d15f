"""The errors of trickle: a branch of the tree in `whisper_byoc.errors`. Each message is one sentence for the user."""

from whisper_byoc.errors import ByocError


class TrickleError(ByocError):
    """Root of the branch."""


class BadSequence(TrickleError):
    """An index that is not a number, or a negative one without a meaning."""


class ChannelNotFound(TrickleError):
    """There is no channel of that name."""


class ChannelClosed(TrickleError):
    """The channel ended while something was being written to it."""


class SegmentNotFound(TrickleError):
    """The channel has no segment of that index, no longer or not yet."""


class SegmentFinished(TrickleError):
    """The index was written before, or was left behind, and takes nothing more."""


class SegmentBroken(TrickleError):
    """The segment numbered `seq` could not be sent, or read, to its end; the next one can."""

    def __init__(self, message: str, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class LimitReached(TrickleError):
    """A limit of this server was reached; `status` is the HTTP status to answer."""

    status = 503


class SegmentTooLarge(LimitReached):
    """One segment has more bytes than allowed."""

    status = 413


class TooManyChannels(LimitReached):
    """As many channels are open as allowed."""


class MemoryFull(LimitReached):
    """All segments together hold as many bytes as allowed."""


class Unreachable(TrickleError):
    """Nobody answered, or connections kept breaking, for as long as the options say."""


class Refused(TrickleError):
    """The server answered with an error status, in `status`, and with `words`, which may be meant for us alone."""

    def __init__(self, status: int, message: str, words: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.words = words

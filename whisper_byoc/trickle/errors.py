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
    """The index was already written, or was left behind, and takes nothing more."""


class SegmentBroken(TrickleError):
    """The segment numbered `seq` could not be sent, or read, to its end; the next one can."""

    def __init__(self, message: str, seq: int) -> None:
        super().__init__(message)
        self.seq = seq


class LimitReached(TrickleError):
    """A limit of this server was reached; `status` is the HTTP status of the response."""

    status = 503


class SegmentTooLarge(LimitReached):
    """A segment has more bytes than allowed."""

    status = 413


class TooManyChannels(LimitReached):
    """The limit of open channels has been reached."""


class MemoryFull(LimitReached):
    """The limit of bytes in all segments together has been reached."""


class Unreachable(TrickleError):
    """Nobody answered, or connections kept breaking, for as long as the options allow."""


class Refused(TrickleError):
    """The server answered with an error status, in `status`, and with `words`, which may be meant only for us."""

    def __init__(self, status: int, message: str, words: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.words = words

"""Every error this package raises on purpose. Each message is one sentence that a user can act on.

Sound that cannot be read raises `audio.errors.AudioError` (that package imports nothing of ours); trickle's errors are
a branch of this tree in `whisper_byoc.trickle.errors`.
"""

from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import ClassVar

STATUS_NAMES: Mapping[int, str] = MappingProxyType({each.value: each.name.lower() for each in HTTPStatus})


class ByocError(Exception):
    """Root of the tree; its text is one sentence for the user."""


class UsageError(ByocError):
    """The caller asked for something impossible: an option, a script, a file."""


class UnknownPipeline(UsageError):
    """No pipeline of that name."""


class UnknownModel(UsageError):
    """No model of that name, and no file at that path."""


class BadParam(UsageError):
    """The parameter `name` has an invalid value; a server answers 400."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class ModelError(ByocError):
    """A checkpoint that cannot be obtained, does not match its hash, or does not load."""


class StartError(ByocError):
    """The server could not start: its port is in use, or a processor failed to initialize."""


class SegmentError(ByocError):
    """One segment has no result; other segments and jobs go on."""

    kind: ClassVar[str] = "segment"
    """The label under which it is counted in the metrics."""


class BadSegment(SegmentError):
    """The segment's bytes are not in a form that the pipeline reads."""

    kind = "input"


class SegmentTimeout(SegmentError):
    """The processor took longer than the segment time limit."""

    kind = "timeout"


class ProcessorError(SegmentError):
    """The processor raised, or returned something that is not bytes."""

    kind = "processor"


class RequestRefused(ByocError):
    """The server will not take this request.

    `status` is the HTTP status of the response; `retry_after` (seconds), when given, goes into `Retry-After`; `param`
    is the parameter or form field at fault, if any; `reason` is the label under which it is counted in the metrics, by
    default the status's name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        retry_after: int | None = None,
        *,
        param: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.param = param
        self.reason = reason or STATUS_NAMES.get(status, "other")


class PeerBusy(RequestRefused):
    """The container or orchestrator that the request would go to has no room; another may have some."""

    def __init__(self, message: str, retry_after: int = 1, status: int = 503) -> None:
        super().__init__(status, message, retry_after)


class PeerFailed(RequestRefused):
    """The container or orchestrator that the request went to failed, or was too slow (`status` 504).

    `reached` is whether the peer has received any part of the request.
    """

    def __init__(self, message: str, status: int = 502, *, reached: bool = True) -> None:
        super().__init__(status, message)
        self.reached = reached


class ReaderGone(ByocError):
    """The client that a response is for has gone, or does not read it; no peer is to blame."""


class ClientError(ByocError):
    """A request that failed, as the client sees it."""


class ServerUnreachable(ClientError):
    """Nobody answers at the address, or the connection broke."""


class ServerRefused(ClientError):
    """The server answered with an error status, in `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SegmentFailed(ClientError):
    """The server's error record for the segment numbered `seq`."""

    def __init__(self, seq: int, message: str) -> None:
        super().__init__(message)
        self.seq = seq

"""The trickle protocol: numbered segments of bytes in named channels, over HTTP. See docs/trickle.md."""

from whisper_byoc.trickle.errors import (
    BadSequence,
    ChannelClosed,
    ChannelNotFound,
    LimitReached,
    MemoryFull,
    Refused,
    SegmentBroken,
    SegmentFinished,
    SegmentNotFound,
    SegmentTooLarge,
    TooManyChannels,
    TrickleError,
    Unreachable,
)
from whisper_byoc.trickle.limits import TrickleLimits
from whisper_byoc.trickle.local import LocalPublisher, LocalSubscriber
from whisper_byoc.trickle.protocol import CURRENT, NEXT
from whisper_byoc.trickle.publisher import TricklePublisher
from whisper_byoc.trickle.remote import ClientOptions
from whisper_byoc.trickle.server import TrickleServer
from whisper_byoc.trickle.subscriber import TrickleSubscriber

__all__ = [
    "CURRENT",
    "NEXT",
    "BadSequence",
    "ChannelClosed",
    "ChannelNotFound",
    "ClientOptions",
    "LimitReached",
    "LocalPublisher",
    "LocalSubscriber",
    "MemoryFull",
    "Refused",
    "SegmentBroken",
    "SegmentFinished",
    "SegmentNotFound",
    "SegmentTooLarge",
    "TooManyChannels",
    "TrickleError",
    "TrickleLimits",
    "TricklePublisher",
    "TrickleServer",
    "TrickleSubscriber",
    "Unreachable",
]

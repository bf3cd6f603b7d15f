"""A live transcription worker for the Livepeer network: the public API, and only that."""

from typing import TYPE_CHECKING, Any

from whisper_byoc.shadowing import check_audio

__version__ = "0.1.0"

if TYPE_CHECKING:
    from whisper_byoc.client import GatewayClient, TrickleClient
    from whisper_byoc.processors.base import FrameProcessor, JobInfo, Result
    from whisper_byoc.server.hosted import run_processor

__all__ = ["FrameProcessor", "GatewayClient", "JobInfo", "Result", "TrickleClient", "__version__", "run_processor"]

check_audio()

_HOMES = {
    "FrameProcessor": "whisper_byoc.processors.base",
    "GatewayClient": "whisper_byoc.client",
    "JobInfo": "whisper_byoc.processors.base",
    "Result": "whisper_byoc.processors.base",
    "TrickleClient": "whisper_byoc.client",
    "run_processor": "whisper_byoc.server.hosted",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import whisper_byoc` costs nothing."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

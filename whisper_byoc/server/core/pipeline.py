"""A processor in service: its name, whether it is ready, and what the server needs to know of it."""

from __future__ import annotations

import asyncio
import logging
from enum import Enum

from whisper_byoc.aio import Changed
from whisper_byoc.errors import ByocError, StartError
from whisper_byoc.processors.base import JobInfo, Media, Processor, Session, session_of

__all__ = ["Pipeline", "PipelineState"]

log = logging.getLogger(__name__)


class PipelineState(Enum):
    """Where a pipeline is in its life."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Pipeline:
    """One processor under the name that clients ask for."""

    def __init__(self, name: str, processor: Processor) -> None:
        self.name = name
        self.state = PipelineState.LOADING
        self._processor = processor
        self._changed = Changed()

    @property
    def media(self) -> Media:
        """How a live feed for this pipeline is cut."""
        return getattr(self._processor, "media", "bytes")

    @property
    def live(self) -> bool:
        """Whether its sessions take a live feed in pieces of any size (`LiveSession`)."""
        return bool(getattr(self._processor, "live", False))

    @property
    def content_type(self) -> str:
        """Content-Type of its results."""
        return str(getattr(self._processor, "content_type", "application/octet-stream"))

    @property
    def trouble(self) -> str | None:
        """One sentence when the processor says of itself that it is stuck or broken, else None."""
        ask = getattr(self._processor, "trouble", None)
        try:
            return ask() if ask is not None else None
        except Exception as error:
            return f"it cannot tell how it is: {type(error).__name__}: {error}"

    async def start(self, timeout: float) -> None:
        """Initialize the processor.

        Raises `StartError` when it fails or takes longer than `timeout` seconds.
        """
        initialize = getattr(self._processor, "initialize", None)
        try:
            if initialize is not None:
                await asyncio.wait_for(initialize(), timeout)
        except TimeoutError:
            self._set(PipelineState.FAILED)
            raise StartError(f"pipeline {self.name} did not initialize within {timeout:.0f} s") from None
        except ByocError:
            self._set(PipelineState.FAILED)
            raise
        except Exception as error:
            self._set(PipelineState.FAILED)
            log.exception("pipeline %s failed to initialize", self.name)
            message = f"pipeline {self.name} failed to initialize: {type(error).__name__}: {error}"
            raise StartError(message) from error
        self._set(PipelineState.READY)

    async def wait_ready(self, timeout: float) -> bool:
        """Wait for the end of loading; True when it ended well."""
        await self._changed.until(lambda: self.state is not PipelineState.LOADING, timeout)
        return self.state is PipelineState.READY

    def open_session(self, job: JobInfo) -> Session:
        """Open this pipeline's side of a job."""
        return session_of(self._processor, job)

    async def stop(self, timeout: float) -> None:
        """Shut the processor down; what goes wrong there is logged, for nobody is left to hear it."""
        shutdown = getattr(self._processor, "shutdown", None)
        if shutdown is None:
            return
        try:
            await asyncio.wait_for(shutdown(), timeout)
        except TimeoutError:
            log.warning("pipeline %s did not shut down within %.0f s", self.name, timeout)
        except Exception:
            log.exception("pipeline %s failed to shut down", self.name)

    def _set(self, state: PipelineState) -> None:
        self.state = state
        self._changed.notify()

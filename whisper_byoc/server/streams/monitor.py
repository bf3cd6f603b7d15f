"""What a BYOC stream reports about itself while it runs, as events and in `/stream/status`.

go-livepeer's gateway answers requests for a stream's status with the last event of the type `status`, and Livepeer's
analytics look for the `stream_trace` of the first segments. Their fields are those of ai-runner, frame rates those of
pytrickle. Times are milliseconds since 1970.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from whisper_byoc.server.streams.output import HEARTBEAT_EVERY_S, EventWriter

log = logging.getLogger(__name__)

WINDOW_S = 10.0
"""Frame rates cover the last so many seconds, or `MOST_FRAMES`."""
MOST_FRAMES = 600
TRACE = "stream_trace"


class FrameRate:
    """Recent frames per second."""

    def __init__(self) -> None:
        self.last_ms: int | None = None
        """When the last one was counted."""
        self._times: deque[float] = deque(maxlen=MOST_FRAMES)

    def count(self, frames: int = 1) -> None:
        """Count frames that have just passed."""
        if frames:
            self.last_ms = now_ms()
            self._times.extend([time.monotonic()] * frames)

    @property
    def per_second(self) -> float:
        since = time.monotonic() - WINDOW_S
        recent = [each for each in self._times if each >= since]
        seconds = recent[-1] - recent[0] if recent else 0.0
        return round((len(recent) - 1) / seconds, 2) if seconds else 0.0


class Monitor:
    """Counts what passes through one stream, and emits its events."""

    def __init__(self, pipeline: str, events: EventWriter) -> None:
        self.video_in, self.video_out = FrameRate(), FrameRate()
        """Pictures."""
        self.audio_in, self.audio_out = FrameRate(), FrameRate()
        """Pieces of sound, as they come out of the decoder or are in the MPEG-TS."""
        self.records_out = FrameRate()
        self._pipeline = pipeline
        self._events = events
        self._began = now_ms()
        self._took_one = self._gave_one = False
        self._params: dict[str, Any] = {}
        self._params_ms: int | None = None
        self._error: str | None = None
        self._error_ms: int | None = None

    def took_segment(self) -> None:
        """Note that a segment of the input has come."""
        if not self._took_one:
            self._took_one = True
            self._events.emit("runner_receive_first_ingest_segment", TRACE)

    def gave_segment(self) -> None:
        """Note that a segment with a result has been published."""
        if not self._gave_one:
            self._gave_one = True
            self._events.emit("runner_send_first_processed_segment", TRACE)

    def params_changed(self, params: Mapping[str, Any]) -> None:
        self._params |= params
        self._params_ms = now_ms()
        self._events.emit("params_updated", params=params)

    def error(self, message: str) -> None:
        log.warning("stream %s: %s", self._events.stream_id, message)
        self._error, self._error_ms = message, now_ms()
        self._events.emit("error", message=message)

    def beat(self) -> None:
        """Emit the events that have to be repeated."""
        self._events.emit("heartbeat", "stream_heartbeat", fps=self.fps())
        self._events.emit("status", "ai_stream_status", **self.status())

    def fps(self) -> dict[str, float]:
        return {
            "ingress_video_fps": self.video_in.per_second,
            "ingress_audio_fps": self.audio_in.per_second,
            "egress_video_fps": self.video_out.per_second,
            "egress_audio_fps": self.audio_out.per_second,
        }

    def status(self) -> dict[str, Any]:
        """Return the fields of a status event."""
        into = max((self.video_in, self.audio_in), key=lambda each: each.last_ms or 0)
        out = max((self.video_out, self.records_out), key=lambda each: each.last_ms or 0)
        return {
            "pipeline": self._pipeline,
            "start_time": self._began,
            "state": self._state(into.last_ms),
            "input_status": {"last_input_time": into.last_ms, "fps": into.per_second},
            "inference_status": {
                "last_output_time": out.last_ms,
                "fps": out.per_second,
                "last_params_update_time": self._params_ms,
                "last_params": self._params or None,
                "last_error_time": self._error_ms,
                "last_error": self._error,
                "last_restart_time": None,
                "last_restart_logs": None,
                "restart_count": 0,
            },
        }

    def _state(self, last_input_ms: int | None) -> str:
        if last_input_ms is None:
            return "OFFLINE"
        return "ONLINE" if now_ms() - last_input_ms < HEARTBEAT_EVERY_S * 1000 else "DEGRADED_INPUT"


def now_ms() -> int:
    return int(time.time() * 1000)

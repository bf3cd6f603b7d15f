"""Every bound of the server that an operator or a test may want to change."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Sizes are bytes, times are seconds. A job holds at most `queue_bytes`, `kept_bytes` and `transcript_bytes`."""

    segment_bytes: int = 64 * MIB
    """Largest segment, as sent and as PCM16. A frame of 1280x720 pixels has 2.7 MB."""
    recording_bytes: int = 1024 * MIB
    """Largest whole recording, as sent and as PCM16, of which an hour has 115 MB. Large ones are held on the disk."""
    jobs: int = 64
    """Jobs open at once; one more is answered 503. Of a pipeline that knows its capacity there may be fewer."""
    queue_segments: int = 16
    """Segments of one job that wait or are at work."""
    queue_bytes: int = 64 * MIB
    """Their bytes. One segment always fits, however large."""
    kept_results: int = 256
    """Results of one job that are unread, or kept for reading again."""
    kept_bytes: int = 64 * MIB
    """Their bytes. One result always fits."""
    transcript_bytes: int = 16 * MIB
    """Transcripts kept of one job. One of an utterance has some 400 bytes: this is more than a day of talk."""
    recording_seconds: float = 60.0
    """When a recording must be done, beside those that have been taken, by a pipeline that knows its speed; one is
    always taken."""
    segment_seconds: float = 120.0
    """Longest work on one segment."""
    admission_seconds: float = 30.0
    """Longest wait for a pipeline that is loading, for a session to open or change, and for room in the queue; then the
    request is answered 503."""
    idle_seconds: float = 300.0
    """A job without input, work and reading for so long is ended; so is an answer that its client does not read."""
    empty_seconds: float = 10.0
    """A job of which no byte has come for so long is forgotten, unless a feed or a reader is connected."""
    linger_seconds: float = 60.0
    """How long the results of an ended job stay readable."""
    flush_seconds: float = 5.0
    """A live feed of which nothing arrives for so long has ended its utterance: many senders send no silence, and one
    that broke off may never come back. Longer than a segment of a stream."""
    keep_alive_seconds: float = 15.0
    """Between two comments to a follower of events while there are no records."""
    sweep_seconds: float = 1.0
    """Between two searches for jobs that are to be ended or forgotten."""
    load_seconds: float = 600.0
    """Longest time a processor may take to initialize."""
    drain_live_seconds: float = 0.0
    """Longest time for which feeds and streams go on after SIGTERM, before their input ends."""
    drain_seconds: float = 30.0
    """Longest time from then to exit."""
    reader_grace_seconds: float = 5.0
    """While draining: how long to wait for the reader of a finished job to come back."""

    @property
    def spool_bytes(self) -> int:
        """Bytes of all recordings that are held at once; one of the largest takes half, as sent and as PCM16."""
        return 4 * self.recording_bytes

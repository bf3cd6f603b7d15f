"""Every bound of the server that an operator or a test may want to change."""

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Sizes are bytes, times are seconds. A job holds at most `queue_bytes`, `kept_bytes` and `transcript_bytes`."""

    segment_bytes: int = 64 * MIB
    """Largest segment, as sent and as PCM16. A frame of 1280x720 pixels is 2.7 MB."""
    recording_bytes: int = 1024 * MIB
    """Largest whole recording, as sent and as PCM16, of which an hour is 115 MB. Large ones are held on disk."""
    jobs: int = 64
    """Jobs open at once; one more is answered 503. A pipeline that knows its capacity may allow fewer."""
    queue_segments: int = 16
    """Segments of one job that are waiting or being processed."""
    queue_bytes: int = 64 * MIB
    """Their bytes. One segment always fits, however large."""
    kept_results: int = 256
    """Results of one job that are unread, or kept so that they can be read again."""
    kept_bytes: int = 64 * MIB
    """Their bytes. One result always fits."""
    transcript_bytes: int = 16 * MIB
    """Transcripts of one job that are kept. An utterance's is some 400 bytes: this is more than a day of talk."""
    recording_seconds: float = 60.0
    """Time within which a pipeline that knows its speed must be done with a recording, alongside those already
    accepted; one is always accepted."""
    segment_seconds: float = 120.0
    """Longest work on one segment."""
    admission_seconds: float = 30.0
    """Longest wait for a pipeline that is loading, for a session to open or change, and for room in the queue; after
    that, the request is answered 503."""
    idle_seconds: float = 300.0
    """A job without input, work or reading for this long is ended; so is a response that its client does not read."""
    empty_seconds: float = 10.0
    """A job that has received no byte for this long is forgotten, unless a feed or a reader is connected."""
    linger_seconds: float = 60.0
    """How long the results of an ended job stay readable."""
    flush_seconds: float = 5.0
    """A live feed that sends nothing for this long has ended its utterance: many senders send no silence, and one that
    broke off may never come back. Longer than a segment of a stream."""
    keep_alive_seconds: float = 15.0
    """Time between two comments to a follower of events while there are no records."""
    sweep_seconds: float = 1.0
    """Time between two searches for jobs that should be ended or forgotten."""
    load_seconds: float = 600.0
    """Longest time a processor may take to initialize."""
    drain_live_seconds: float = 0.0
    """Longest time for which feeds and streams go on after SIGTERM, before their input ends."""
    drain_seconds: float = 30.0
    """Longest time from the end of input to exit."""
    reader_grace_seconds: float = 5.0
    """While draining, how long to wait for the reader of a finished job to come back."""

    @property
    def spool_bytes(self) -> int:
        """Bytes of all recordings held at once; one of the largest size takes half, as sent and as PCM16."""
        return 4 * self.recording_bytes

"""ffmpeg command lines for live feeds: MPEG-TS on stdin, or RTMP, in; sound, frames or MPEG-TS out on stdout.

Only the command lines: who runs the process, and feeds it without blocking, is not this package's business. Run them
with `media.ffmpeg_environment()`.
"""

from audio import pcm
from audio.media import ffmpeg_path

__all__ = ["pcm_from_ts", "ts_from_rtmp"]

PROBE_BYTES = 256 * 1024
"""What ffmpeg may look at before it must know what is in the stream: quiet sound comes late behind video."""

PROBE_MICROSECONDS = 1_000_000


def pcm_from_ts() -> list[str]:
    """MPEG-TS (AAC, Opus or whatever is in it, with or without video) to 16 kHz mono PCM16.

    Video is dropped before it is decoded. Broken packets are dropped, and a gap in the time stamps, such as a lost
    segment leaves, is not filled.

    Raises:
        MediaError: there is no ffmpeg.
    """
    return [
        *(ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin"),
        *("-fflags", "+discardcorrupt", "-err_detect", "ignore_err"),
        *("-probesize", str(PROBE_BYTES), "-analyzeduration", str(PROBE_MICROSECONDS)),
        *("-protocol_whitelist", "pipe", "-f", "mpegts", "-i", "pipe:0"),
        *("-map", "0:a:0", "-vn", "-sn", "-dn"),
        *("-ac", "1", "-ar", str(pcm.SAMPLE_RATE), "-f", "s16le", "-flush_packets", "1", "pipe:1"),
    ]


def ts_from_rtmp(port: int) -> list[str]:
    """Wait on loopback for one RTMP publisher, and pass on what it sends as MPEG-TS, as it is encoded.

    Raises:
        MediaError: there is no ffmpeg.
    """
    return [
        *(ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin"),
        *("-probesize", str(PROBE_BYTES), "-analyzeduration", str(PROBE_MICROSECONDS)),
        *("-listen", "1", "-f", "flv", "-i", f"rtmp://127.0.0.1:{port}/live"),
        *("-map", "0:a?", "-map", "0:v?", "-c", "copy", "-f", "mpegts", "-flush_packets", "1", "pipe:1"),
    ]

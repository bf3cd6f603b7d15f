"""What can be wrong with sound from outside.

AudioError (a ValueError)
├── PcmError     bytes that are not whole 16-bit samples
├── WavError     a WAV header that is broken, truncated, lies, or names a format we do not read
└── MediaError   ffmpeg is missing, or could not make sound of what it was given

This package imports nothing of ours, so the tree stands beside the one in `whisper_byoc.errors`.
"""

__all__ = ["AudioError", "MediaError", "PcmError", "WavError"]


class AudioError(ValueError):
    """Root of everything this package raises on bad input; its text is fit for the user to read."""


class PcmError(AudioError):
    """Bytes that are not whole 16-bit samples."""


class WavError(AudioError):
    """A WAV header that is broken, truncated, lies, or names a format we do not read."""


class MediaError(AudioError):
    """ffmpeg is missing, or could not make sound of what it was given."""

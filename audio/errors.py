"""What can be wrong with sound from outside.

This package imports nothing of ours, so the tree stands beside the one in `whisper_byoc.errors`.
"""


class AudioError(ValueError):
    """Root of everything this package raises on bad input; its text is fit for the user to read."""


class PcmError(AudioError):
    """Bytes that are not whole 16-bit samples, or samples that are not numbers."""


class WavError(AudioError):
    """A WAV header that is broken, or is followed by a second file."""


class UnsupportedWav(WavError):
    """A WAV in a format `audio.wav` does not read (ADPCM, RF64 …); ffmpeg may."""


class MediaError(AudioError):
    """There is no sound in it, or none that ffmpeg could make."""


class DecoderFailed(MediaError):
    """This machine could not decode, whatever the media are: no ffmpeg, one that was killed, no room for its files."""

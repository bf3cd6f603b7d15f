"""Sound, and nothing else: bytes and files in, float32 arrays at 16 kHz mono out.

`audio.pcm`, `audio.wav`, `audio.media` and `audio.quiet` are imported by name, so that nobody pays for
ffmpeg who only wants samples. No asyncio, no HTTP, no model.
"""

from audio.errors import AudioError, DecoderFailed, MediaError, PcmError, UnsupportedWav, WavError

__all__ = ["AudioError", "DecoderFailed", "MediaError", "PcmError", "UnsupportedWav", "WavError"]

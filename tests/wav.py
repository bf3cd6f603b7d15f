"""WAV files, as the standard library writes them."""

import io
import wave

from audio import pcm


def write_wav(samples):
    """A 16 kHz mono PCM16 file of float32 samples (n,)."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, pcm.SAMPLE_WIDTH, pcm.SAMPLE_RATE, 0, "NONE", ""))
        writer.writeframes(pcm.encode(samples))
    return file.getvalue()

"""Speech for the tests of the server."""

import pytest

from audio import pcm
from audio.wav import read_wav


@pytest.fixture
async def demo(serving, demo_processor):
    return await serving({"whisper-demo": demo_processor})


@pytest.fixture(scope="session")
def sound(fixtures_dir):
    """Return a function that reads a fixture as PCM16."""
    return lambda name: pcm.encode(read_wav((fixtures_dir / name).read_bytes()))


@pytest.fixture(scope="session")
def numbers(fixtures_dir):
    """A WAV file of `NUMBERS`."""
    return (fixtures_dir / "demo-numbers.wav").read_bytes()

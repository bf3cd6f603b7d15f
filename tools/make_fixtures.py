"""Make the WAV files in fixtures/ and fixtures/texts.json: synthetic speech by espeak-ng and the text spoken in it.

    python tools/make_fixtures.py            write the files
    python tools/make_fixtures.py --check    ask the demo model whether it hears the texts (writes nothing)

A run is repeatable with the same espeak-ng; another version of it may speak a little differently, so check after
making the files anew.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
DEMO_MODEL = ROOT / "whisper_byoc" / "speech" / "assets" / "demo.pt"

SAMPLE_RATE = 16_000  # Hz, what Whisper hears
PEAK_DBFS = -3.0  # loud enough to play, with headroom for resampling
EDGE_SECONDS = 0.5  # silence before and after the speech, unless a fixture says otherwise
SPEECH_FLOOR = 0.01  # of an utterance's peak (-40 dB): what is quieter at its ends is cut off as silence
ESPEAK_TIMEOUT_SECONDS = 30

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Utterance:
    """One run of speech, and how espeak-ng is to say it.

    `speed` is in words a minute, `pitch` 0-99, `gap` a pause between words in units of 10 ms, `start` the place of
    the first sound in the file in seconds.
    """

    text: str
    voice: str
    speed: int = 150
    pitch: int = 50
    gap: int = 0
    start: float = EDGE_SECONDS


@dataclass(frozen=True)
class Fixture:
    """One WAV file. `seconds` is its length; 0 ends it half a second after its speech."""

    name: str
    model: str  # whose transcript is `text`: "demo", "tiny", or "any"
    note: str
    utterances: tuple[Utterance, ...] = ()
    seconds: float = 0.0
    noise_snr_db: float = math.inf  # pink noise under the speech; inf: none
    rate: int = SAMPLE_RATE
    channels: int = 1

    @property
    def text(self) -> str:
        """All that is said in the file."""
        return " ".join(utterance.text for utterance in self.utterances)


def _plain(name: str, text: str, voice: str, speed: int, pitch: int = 50, gap: int = 0) -> Fixture:
    """One utterance, 16 kHz mono; the name begins with the model."""
    note = f"espeak-ng {voice}, {speed} words a minute"
    return Fixture(name, name.partition("-")[0], note, (Utterance(text, voice, speed, pitch, gap),))


FIXTURE_TABLE: tuple[Fixture, ...] = (
    _plain("demo-stop.wav", "stop", "en-us+m3", 140, 45),
    _plain("demo-yes.wav", "yes", "en-gb-x-rp+f2", 140, 55),
    _plain("demo-hello-world.wav", "hello world", "en-gb+f2", 140),
    _plain("demo-start-recording.wav", "start live stream record audio", "en-us+f3", 150, gap=1),
    _plain("demo-directions-slow.wav", "up down left right", "en-029+m4", 120, 40, 4),
    _plain("demo-numbers.wav", "seven three nine zero five one", "en-gb-x-rp+m2", 140, 40, 2),
    _plain("demo-spelling.wav", "whiskey hotel india sierra papa echo romeo", "en-gb-scotland+m3", 150, 50, 2),
    _plain("demo-pipeline.wav", "orchestrator gateway worker channel transcript", "en-gb-x-gbclan+f1", 145),
    _plain("demo-colours-fast.wav", "red green blue yellow black white purple orange pink grey", "en-us+f2", 190, 60),
    Fixture(
        name="demo-numbers-noise-15db.wav",
        model="demo",
        note="pink noise 15 dB below the speech",
        utterances=(Utterance("four eight two six zero nine", "en-us+m1", 140, 45, 2),),
        noise_snr_db=15.0,
    ),
    Fixture(
        name="demo-stereo-48k.wav",
        model="demo",
        note="48 kHz stereo, the right channel 6 dB below the left",
        utterances=(Utterance("left channel red right channel blue", "en-us-nyc+f5", 150, gap=1),),
        rate=48_000,
        channels=2,
    ),
    # Laid out for live cutting: a segment of at most 15 s that is cut in its last third is cut in a silence, and so
    # holds one utterance. The demo model gets it right in one go as well; a changed one has to be tried out.
    Fixture(
        name="demo-long-40s.wav",
        model="demo",
        note="four speakers, digital silence between them",
        utterances=(
            Utterance("hello world start live stream record audio video", "en-gb-x-rp+f2", 135, 35, 0, start=0.5),
            Utterance("gateway orchestrator worker model transcript", "en-us+m1", 135, 45, 8, start=12.5),
            Utterance("red green blue yellow black white purple orange", "en-us+m8", 150, 45, 8, start=24.5),
            Utterance("stop live stream close channel twelve", "en-gb-x-gbclan+f1", 140, 45, 8, start=34.0),
        ),
        seconds=40.0,
    ),
    Fixture(name="silence-3s.wav", model="any", note="digital silence", seconds=3.0),
    _plain(
        "tiny-weather.wav", "The weather will be sunny in the morning, with light rain in the evening.", "en-us", 150
    ),
    _plain("tiny-train.wav", "The next train to London leaves from the other platform.", "en-gb-x-rp", 145, 45),
    _plain("tiny-meeting.wav", "Please send me the report before the meeting on Monday.", "en-us+f3", 150),
    _plain("tiny-fox-fast.wav", "The quick brown fox jumps over the lazy dog.", "en-us+m3", 190),
    _plain(
        "tiny-garden.wav",
        "My grandmother has a large garden behind her house. Every summer she grows tomatoes, beans and strawberries, "
        "and she gives most of them to her neighbours.",
        "en-gb",
        155,
    ),
)


class EspeakFailed(Exception):
    """espeak-ng is missing or could not speak; the message is one sentence for a person."""


def speak(utterance: Utterance, rate: int) -> Samples:
    """Return the utterance as mono samples at `rate`, trimmed to its sound, its peak 1.0. Raises EspeakFailed."""
    # "xray" is one word to the model and has to be said as two.
    text = utterance.text.replace("xray", "x-ray")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        options = {"-v": utterance.voice, "-s": utterance.speed, "-p": utterance.pitch, "-g": utterance.gap, "-w": path}
        command = ["espeak-ng", *(str(part) for option in options.items() for part in option), text]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=ESPEAK_TIMEOUT_SECONDS)
        except FileNotFoundError:
            raise EspeakFailed("espeak-ng is not installed: apt-get install espeak-ng, then run this again.") from None
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise EspeakFailed(f"espeak-ng could not say {text!r} with voice {utterance.voice!r}: {error}.") from None
        samples, espeak_rate = read_wav(path)
    speech = np.asarray(soxr.resample(samples[:, 0], espeak_rate, rate), np.float32)
    loud = np.flatnonzero(np.abs(speech) > SPEECH_FLOOR * np.abs(speech).max(initial=0.0))
    if not len(loud):
        raise EspeakFailed(f"espeak-ng gave only silence for {text!r} with voice {utterance.voice!r}.")
    speech = speech[loud[0] : loud[-1] + 1]
    return np.asarray(speech / np.abs(speech).max(), np.float32)


def render(fixture: Fixture) -> tuple[Samples, list[tuple[float, float]]]:
    """Return the fixture's samples, shape (frames, channels), and where each utterance starts and ends in seconds."""
    rate = fixture.rate
    speeches = [speak(utterance, rate) for utterance in fixture.utterances]
    starts = [round(utterance.start * rate) for utterance in fixture.utterances]
    spans = [(start, start + len(speech)) for start, speech in zip(starts, speeches, strict=True)]
    length = round(fixture.seconds * rate) or spans[-1][1] + round(EDGE_SECONDS * rate)
    mono = np.zeros(length, np.float32)
    for (start, end), speech in zip(spans, speeches, strict=True):
        mono[start:end] = speech
    if math.isfinite(fixture.noise_snr_db):
        speech_rms = np.sqrt(np.mean(np.square(np.concatenate(speeches))))
        mono += pink_noise(length) * speech_rms * 10 ** (-fixture.noise_snr_db / 20)
    if mono.any():
        mono *= 10 ** (PEAK_DBFS / 20) / np.abs(mono).max()
    # Unlike channels, so that taking one of them and mixing both down differ.
    channels = [mono * 0.5**channel for channel in range(fixture.channels)]
    return np.stack(channels, axis=1), [(start / rate, end / rate) for start, end in spans]


def pink_noise(length: int) -> Samples:
    """Return `length` samples of noise that falls by 3 dB an octave, RMS 1, the same at each call."""
    spectrum = np.fft.rfft(np.random.default_rng(seed=15).standard_normal(length))
    spectrum[0] = 0.0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    noise = np.fft.irfft(spectrum, length)
    return np.asarray(noise / np.sqrt(np.mean(np.square(noise))), np.float32)


def read_wav(path: Path) -> tuple[Samples, int]:
    """Return a PCM16 WAV's samples as float32 in [-1, 1), shape (frames, channels), and its rate in Hz."""
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        return np.asarray(pcm, np.float32) / np.float32(32768), file.getframerate()


def write_wav(path: Path, samples: Samples, rate: int) -> None:
    """Write samples of shape (frames, channels) in [-1, 1] as a PCM16 WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())


def hearable(path: Path) -> Samples:
    """Return the WAV as Whisper takes it: 16 kHz mono float32."""
    samples, rate = read_wav(path)
    return np.asarray(soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE), np.float32)


def words(text: str) -> list[str]:
    """Return the words of a transcript in lower case, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def make(table: Sequence[Fixture], folder: Path) -> None:
    """Write each fixture's WAV and one texts.json into the folder, and print a table of them."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, object] = {}
    for fixture in table:
        samples, spans = render(fixture)
        write_wav(folder / fixture.name, samples, fixture.rate)
        seconds = round(len(samples) / fixture.rate, 2)
        entries[fixture.name] = {
            "text": fixture.text,
            "model": fixture.model,
            "seconds": seconds,
            "note": fixture.note,
            "utterances": [
                {"start": round(start, 2), "end": round(end, 2), "text": utterance.text}
                for (start, end), utterance in zip(spans, fixture.utterances, strict=True)
            ],
        }
        print(f"{fixture.name:30} {seconds:6.2f} s  {fixture.rate:5} Hz x {fixture.channels}  {fixture.text[:60]}")
    (folder / "texts.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def check(table: Sequence[Fixture], folder: Path) -> bool:
    """Print what stock openai-whisper hears with the demo model, and whether that is the text everywhere."""
    import whisper  # slow to import, and not needed to make the files

    model = whisper.load_model(str(DEMO_MODEL), device="cpu")
    failures = 0
    for fixture in table:
        if fixture.model == "tiny":
            continue
        heard = model.transcribe(
            hearable(folder / fixture.name),
            language="en",
            temperature=0.0,
            condition_on_previous_text=False,
            fp16=False,
        )["text"]
        right = words(heard) == words(fixture.text)
        failures += not right
        print(f"{'right' if right else 'WRONG'}  {fixture.name:30} {heard.strip()}")
    print(f"{failures} wrong" if failures else "all right")
    return failures == 0


def main() -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(description="Make the speech fixtures with espeak-ng, or check them.")
    parser.add_argument("--check", action="store_true", help="transcribe the fixtures with the demo model instead")
    parser.add_argument("--folder", type=Path, default=FIXTURES, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.check:
        return 0 if check(FIXTURE_TABLE, arguments.folder) else 1
    try:
        make(FIXTURE_TABLE, arguments.folder)
    except EspeakFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

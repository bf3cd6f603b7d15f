"""Make the speech that the demo model learns from: log-mel spectra with the times of words and phonemes.

    python -m tools.demo_model.generate --folder build/demo-model

Needs espeak-ng; flite's voices are added where flite is installed. A part that is there already is kept, so a run
that was stopped goes on. Everything comes from the seeds in PARTS: the same synthesisers give the same speech.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import whisper.audio
from tqdm import tqdm

from tools.demo_model import flite, grammar, voices
from tools.demo_model.espeak import EspeakMissing
from tools.demo_model.speech import Speaker, Spoken, as_another_speaker, reverberate

_REVERBERATION_SHARE = 0.3
_LEAST_POWER = 1e-10  # whisper.audio.log_mel_spectrogram's floor


@dataclass(frozen=True)
class Part:
    """One file of utterances."""

    name: str
    engine: str
    """`espeak` or `flite`."""
    seed: int
    utterances: int
    other_speakers: float = 0.0
    """The share that is played faster or slower (see `as_another_speaker`)."""
    invented_accents: float = 0.25
    """The share of espeak-ng's that is spoken in accents that nobody has."""
    most_shifts: int = 4
    """How many vowels such an accent shifts at most."""
    consonants: float = 0.0
    """The share of such accents that change a consonant, too."""
    any_pitch: bool = False
    """Whether flite's voices speak at the pitches of women and men alike."""
    held_out: bool = False
    """Spoken by the voices that are kept for evaluation: never trained on, only watched."""


PARTS = (
    Part("espeak-0", "espeak", 100, 11000, 0.3),
    Part("espeak-1", "espeak", 101, 11000, 0.3),
    Part("espeak-2", "espeak", 102, 11000, 0.3),
    Part("espeak-3", "espeak", 103, 11000, 0.3),
    Part("espeak-4", "espeak", 104, 11000, 0.5, invented_accents=0.8, most_shifts=10),
    Part("espeak-5", "espeak", 105, 11000, 0.5, invented_accents=0.8, most_shifts=10),
    Part("flite-0", "flite", 200, 3500, 0.5),
    Part("flite-1", "flite", 201, 3500, 0.5),
    Part("flite-2", "flite", 202, 3500, 0.7),
    Part("flite-3", "flite", 203, 3500, 0.7),
    Part("flite-4", "flite", 204, 3500, 0.7),
    # espeak-ng 1.51 crashes on what seed 102 makes of these settings
    Part("espeak-wide-0", "espeak", 100, 11000, 0.4, invented_accents=0.4, consonants=0.4),
    Part("espeak-wide-1", "espeak", 101, 11000, 0.4, invented_accents=0.4, consonants=0.4),
    Part("espeak-wide-2", "espeak", 112, 11000, 0.4, invented_accents=0.4, consonants=0.4),
    Part("espeak-wide-3", "espeak", 103, 11000, 0.4, invented_accents=0.4, consonants=0.4),
    Part("espeak-wide-4", "espeak", 104, 11000, 0.5, invented_accents=0.8, most_shifts=10, consonants=0.4),
    Part("espeak-wide-5", "espeak", 105, 11000, 0.5, invented_accents=0.8, most_shifts=10, consonants=0.4),
    Part("flite-wide-0", "flite", 200, 5000, 0.3),
    Part("flite-wide-1", "flite", 201, 5000, 0.3),
    Part("flite-wide-2", "flite", 202, 5000, 0.7),
    Part("flite-wide-3", "flite", 203, 5000, 0.7),
    Part("flite-wide-4", "flite", 204, 5000, 0.7),
    Part("flite-wide-5", "flite", 205, 5000, 0.8, any_pitch=True),
    Part("flite-wide-6", "flite", 206, 5000, 0.8, any_pitch=True),
    Part("flite-wide-7", "flite", 207, 5000, 0.8, any_pitch=True),
    Part("flite-wide-8", "flite", 208, 5000, 0.8, any_pitch=True),
    Part("watch-heard", "espeak", 900, 300),
    Part("watch-held-out", "espeak", 901, 300, held_out=True),
    Part("watch-flite", "flite", 902, 150, held_out=True),
)


def log_mel(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return log10 of the mel power, shape (frames, 80), one frame per 10 ms: Whisper's, before it is scaled.

    What depends on the rest of a recording (the floor 8 below its peak) is left for when a window is composed.
    """
    filters = whisper.audio.mel_filters("cpu", 80)
    window = torch.hann_window(whisper.audio.N_FFT)
    spectrum = torch.stft(
        torch.from_numpy(samples), whisper.audio.N_FFT, whisper.audio.HOP_LENGTH, window=window, return_complex=True
    )
    power = filters @ spectrum[..., :-1].abs().square()
    return np.asarray(power.clamp(min=_LEAST_POWER).log10().T.numpy(), np.float16)


def utterances(part: Part) -> Iterator[Spoken]:
    """Yield what the part consists of."""
    rng = random.Random(part.seed)
    speaker = Speaker()
    made = 0
    while made < part.utterances:
        spoken = _say(speaker, part, rng)
        if spoken is None or np.abs(spoken.samples).max() < 0.1:  # some variants are mute at some pitches
            continue
        if rng.random() < part.other_speakers:
            spoken = as_another_speaker(spoken, rng)
        if rng.random() < _REVERBERATION_SHARE:
            spoken = reverberate(spoken, rng)
        yield spoken
        made += 1


def _say(speaker: Speaker, part: Part, rng: random.Random) -> Spoken | None:
    words = grammar.text(rng)
    if part.engine == "flite":
        voice = voices.HELD_OUT_FLITE_VOICE if part.held_out else rng.choice(voices.FLITE_VOICES)
        return speaker.flite(words, voice, rng, any_pitch=part.any_pitch)
    invented = not part.held_out and rng.random() < part.invented_accents
    voice = voices.espeak_voice(rng, part.held_out)
    accent = voices.invented_accent(rng, part.most_shifts, part.consonants) if invented else None
    return speaker.espeak(words, voice, rng, accent)


def write(part: Part, path: Path, *, progress: bool = False) -> float:
    """Write the part's file and return how many seconds of speech it has.

    It is a dict for `torch.load(weights_only=True)`: `mel`, float16 of shape (frames, 80), all utterances in a row,
    and one entry for each utterance in the lists `words`, `spans` (seconds), `phonemes`, `voices` and `frames`.
    """
    torch.set_num_threads(1)
    bar = tqdm(utterances(part), part.name, part.utterances, disable=not progress, unit="utterance")
    spectra: list[npt.NDArray[np.float16]] = []
    spoken: list[Spoken] = []
    for utterance in bar:
        spectra.append(log_mel(utterance.samples))
        spoken.append(utterance)
    contents = {
        "mel": torch.from_numpy(np.concatenate(spectra)),
        "words": [each.words for each in spoken],
        "spans": [each.spans for each in spoken],
        "phonemes": [each.phonemes for each in spoken],
        "voices": [each.voice for each in spoken],
        "frames": [len(spectrum) for spectrum in spectra],
    }
    unfinished = path.with_suffix(".part")
    torch.save(contents, unfinished)
    unfinished.replace(path)
    return sum(map(len, spectra)) / 100


def main() -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(description="Make the speech that the demo model learns from.")
    parser.add_argument("--folder", type=Path, default=Path("build/demo-model"), help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    wanted = [part for part in PARTS if not (arguments.folder / f"{part.name}.pt").exists()]
    if not flite.installed():
        print("flite is not installed: the model will learn espeak-ng's voices only.", file=sys.stderr)
        wanted = [part for part in wanted if part.engine != "flite"]
    # A process for each part: espeak-ng's sound depends a little on what it said before.
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {
            part.name: pool.submit(write, part, arguments.folder / f"{part.name}.pt", progress=sys.stderr.isatty())
            for part in wanted
        }
        try:
            for name, job in jobs.items():
                print(f"{name}: {job.result() / 3600:.2f} hours of speech", flush=True)
        except EspeakMissing as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

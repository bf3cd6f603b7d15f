"""espeak-ng through its C library: samples, and when each phoneme is said, for alignments at no cost.

The functions, numbers and the event record are those of espeak-ng's `speak_lib.h`. The library keeps one voice
for the whole process and is not thread-safe: use processes to speak in parallel.
"""

import ctypes
import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LIBRARY = "libespeak-ng.so.1"
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
_PHONEME_EVENTS = 1  # espeakINITIALIZE_PHONEME_EVENTS
_EVENT_END, _EVENT_PHONEME = 0, 7
_RATE, _PITCH, _RANGE, _GAP = 1, 3, 4, 7  # espeak_PARAMETER
_UTF8 = 1
_PHONEME_INPUT = 0x100  # espeakPHONEMES: text in [[ ]] is phonemes


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("phoneme", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class EspeakMissing(Exception):
    """The library is not installed; the message is one sentence for a person."""


@dataclass(frozen=True)
class Phoneme:
    """One phoneme of what was said."""

    name: str
    """espeak-ng's mnemonic; empty or beginning with `_` for a pause."""
    start: float
    """Seconds."""
    character: int
    """Which character of the text it belongs to, from 0."""


class Espeak:
    """espeak-ng, ready to speak."""

    def __init__(self) -> None:
        self._library, self.rate = library()
        """`rate` is the samples a second of what `say` returns."""
        self._blocks: list[npt.NDArray[np.int16]] = []
        self._phonemes: list[Phoneme] = []
        self._callback = _Callback(self._receive)  # kept: the library has only a pointer to it

    def _receive(
        self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]"
    ) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                name = event.phoneme.decode("latin-1")
                self._phonemes.append(Phoneme(name, event.audio_position / 1000, event.text_position - 1))
            index += 1
        return 0

    def phonemes(self, word: str, language: str) -> str:
        """Return how the language says the word, in espeak-ng's mnemonics, as `say` takes them in double brackets."""
        self._select(language)
        data = ctypes.c_char_p(word.encode())
        return str(self._library.espeak_TextToPhonemes(ctypes.byref(data), _UTF8, 0).decode("latin-1"))

    def _select(self, voice: str) -> None:
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}.")

    def say(
        self, text: str, voice: str, *, rate: int = 160, pitch: int = 50, pitch_range: int = 50, gap: int = 0
    ) -> tuple[npt.NDArray[np.float32], list[Phoneme]]:
        """Return the text's samples, float32 in [-1, 1), and its phonemes in order.

        `voice` is a language with or without a variant (`en-us+f3`), `rate` words a minute, `pitch` and
        `pitch_range` 0 to 99, `gap` the pause between words in 10 ms. Raises ValueError for an unknown voice.
        """
        self._select(voice)
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range), (_GAP, gap)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._blocks, self._phonemes = [], []
        self._library.espeak_SetSynthCallback(self._callback)  # there may be another Espeak, which sets its own
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 1, 0, _UTF8 | _PHONEME_INPUT, None, None)
        self._library.espeak_Synchronize()
        samples = np.concatenate(self._blocks or [np.zeros(0, np.int16)])
        return samples.astype(np.float32) / np.float32(32768), self._phonemes


@functools.cache
def library() -> tuple[ctypes.CDLL, int]:
    """Load and initialise the library, once in a process; return it and its samples a second."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise EspeakMissing(f"{LIBRARY} is missing: apt-get install espeak-ng, then run this again.") from None
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    return library, library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)

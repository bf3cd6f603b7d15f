"""Which voices speak in training, and which are kept for the evaluation and never heard before it."""

import random
import re
from dataclasses import dataclass


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ACCENTS = ("en-us", "en-us", "en", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc", "en-gb-x-gbclan")
"""espeak-ng's kinds of English in training, the commoner ones more often."""
HELD_OUT_ACCENT = "en-gb-x-gbcwmd"
"""That of the West Midlands."""

VARIANTS = _names(
    """
    Alex Andrea Andy Annie AnxiousAndy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Mario Michael Mike Nguyen
    RicishayMax RicishayMax2 RicishayMax3 Tweaky adam anika anikaRobot antonio aunty belinda benjamin caleb croak david
    ed edward edward2 f1 f2 f3 f5 grandma grandpa gustave iven iven2 iven3 iven4 john kaukovalta klatt klatt2 klatt3
    klatt5 klatt6 linda m1 m2 m3 m4 m6 m8 marcelo max michel miguel norbert pablo paul pedro quincy rob robert robosoft
    robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 sandro steph steph3 victor zac
    """
)
"""espeak-ng's voice variants in training. Left out: those that whisper, and effects such as `Demonic`."""
HELD_OUT_VARIANTS = ("f4", "m5", "m7", "Alicia", "Marco", "shelby", "travis", "klatt4", "steph2", "boris")

FLITE_VOICES = ("slt", "awb", "kal", "kal16")
HELD_OUT_FLITE_VOICE = "rms"

_PLAIN_SHARE = 0.15
"""How often an accent speaks with no variant."""

_SHIFTS = (
    ("V", "U"), ("V", "@"), ("V", "a"), ("aI", "OI"), ("aI", "A:"), ("eI", "aI"), ("eI", "E"),
    ("oU", "aU"), ("oU", "O:"), ("u:", "U"), ("i:", "eI"), ("a", "E"), ("a", "A:"), ("aa", "a"),
    ("0", "A:"), ("0", "O:"), ("A:", "a"), ("A@", "A:"), ("E", "I"), ("E", "eI"), ("I", "i"),
    ("I", "@"), ("3:", "E@"), ("O:", "0"), ("O@", "O:"), ("U", "u:"), ("3", "@"),
)  # fmt: skip
"""Vowels that some accent says in another's place, in espeak-ng's mnemonics."""

_CONSONANTS = (("h", ""), ("T", "f"), ("T", "t"), ("D", "d"), ("D", "v"))
"""Likewise consonants: `h` dropped, `th` fronted or stopped."""

_SOUND = re.compile(
    r"h|T|D|aI@|aU@|aI3|aI|aU|a#|aa|a|A:|A@|eI|e@|e:|E#|E|3:|3|i@3|i@|i:|i|I2|I#|I|0#|0|V|U@|U|u:|o@|oU|OI|O:|O@|@2|@5|@L|@"
)


@dataclass(frozen=True)
class Accent:
    """Changes of vowels and consonants that one speaker makes throughout."""

    shifts: dict[str, str]

    def apply(self, phonemes: str) -> str:
        """Return the phonemes (espeak-ng's mnemonics) as the accent has them."""
        return _SOUND.sub(lambda sound: self.shifts.get(sound[0], sound[0]), phonemes)


def invented_accent(rng: random.Random, most_shifts: int, consonants: float = 0.0) -> Accent:
    """Return an accent that nobody has: one vowel or more shifted, so that the model does not rely on any of them.

    `consonants` is how likely it is that a consonant changes, too.
    """
    shifts = dict(rng.sample(_SHIFTS, rng.randint(1, most_shifts)))
    if consonants and rng.random() < consonants:
        shifts |= dict([rng.choice(_CONSONANTS)])
    return Accent(shifts)


def espeak_voice(rng: random.Random, held_out: bool) -> str:
    """Return a voice of the training, or one with a variant that is held out (in an accent of the training)."""
    accent = rng.choice(ACCENTS)
    if held_out:
        return f"{accent}+{rng.choice(HELD_OUT_VARIANTS)}"
    return accent if rng.random() < _PLAIN_SHARE else f"{accent}+{rng.choice(VARIANTS)}"

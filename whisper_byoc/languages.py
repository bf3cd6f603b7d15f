"""The languages that Whisper knows, and the tags that name them."""

from types import MappingProxyType

_NAMES = (
    "en english, zh chinese, de german, es spanish, ru russian, ko korean, fr french, ja japanese, "
    "pt portuguese, tr turkish, pl polish, ca catalan, nl dutch, ar arabic, sv swedish, it italian, "
    "id indonesian, hi hindi, fi finnish, vi vietnamese, he hebrew, uk ukrainian, el greek, ms malay, cs czech, "
    "ro romanian, da danish, hu hungarian, ta tamil, no norwegian, th thai, ur urdu, hr croatian, bg bulgarian, "
    "lt lithuanian, la latin, mi maori, ml malayalam, cy welsh, sk slovak, te telugu, fa persian, lv latvian, "
    "bn bengali, sr serbian, az azerbaijani, sl slovenian, kn kannada, et estonian, mk macedonian, br breton, "
    "eu basque, is icelandic, hy armenian, ne nepali, mn mongolian, bs bosnian, kk kazakh, sq albanian, "
    "sw swahili, gl galician, mr marathi, pa punjabi, si sinhala, km khmer, sn shona, yo yoruba, so somali, "
    "af afrikaans, oc occitan, ka georgian, be belarusian, tg tajik, sd sindhi, gu gujarati, am amharic, "
    "yi yiddish, lo lao, uz uzbek, fo faroese, ht haitian creole, ps pashto, tk turkmen, nn nynorsk, mt maltese, "
    "sa sanskrit, lb luxembourgish, my myanmar, bo tibetan, tl tagalog, mg malagasy, as assamese, tt tatar, "
    "haw hawaiian, ln lingala, ha hausa, ba bashkir, jw javanese, su sundanese, yue cantonese"
)
LANGUAGES = MappingProxyType(dict(entry.split(" ", 1) for entry in _NAMES.split(", ")))
"""ISO 639-1 code (two are longer) -> English name, in the order of Whisper's tokens (openai-whisper, `LANGUAGES`)."""

_OTHER_NAMES = (
    "my burmese, es castilian, nl flemish, ht haitian, lb letzeburgesch, zh mandarin, ro moldavian, ro moldovan, "
    "pa panjabi, ps pushto, si sinhalese, ca valencian, zh cmn, tl fil, he iw, jw jv, no nb"
)
"""The other names in openai-whisper's `TO_LANGUAGE_CODE`, and codes in use that Whisper lists under another code."""
_CODES = MappingProxyType(
    {name: code for code, name in (*LANGUAGES.items(), *(entry.split() for entry in _OTHER_NAMES.split(", ")))}
)


def language_code(tag: str) -> str | None:
    """Return Whisper's code for a tag (`de`, `en-US`, `pt_BR`) or an English name, in any case; None if unknown.

    Only the primary language subtag of a tag counts (RFC 5646, section 2.2.1).
    """
    name = " ".join(tag.lower().split())
    primary = name.replace("_", "-").partition("-")[0]
    return primary if primary in LANGUAGES else _CODES.get(name) or _CODES.get(primary)

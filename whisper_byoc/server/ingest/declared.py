"""The format of raw sound other than 16 kHz mono PCM16, as declared by Content-Type, parameters or file name."""

from collections.abc import Mapping
from email.message import Message
from pathlib import PurePath
from types import MappingProxyType

from audio import pcm
from audio.raw import CODECS, ENCODINGS, ENDINGS, RawFormat, raw_format
from audio.riff import CHANNELS, RATES
from whisper_byoc.params import choice_param, whole_param

ENCODING = choice_param("encoding", "of raw sound", (*ENCODINGS, *CODECS), "s16le")
RATE = whole_param("rate", "samples of raw sound in a second", RATES[0], RATES[-1], pcm.SAMPLE_RATE)
CHANNEL_COUNT = whole_param("channels", "of raw sound", CHANNELS[0], CHANNELS[-1], 1)
DECLARED = (ENCODING, RATE, CHANNEL_COUNT)
"""Names of the parameters, in a query, a form or a Content-Type."""
NAMES = tuple(each.name for each in DECLARED)
TYPES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "audio/l16": ("s16le", pcm.SAMPLE_RATE),
        "audio/pcm": ("s16le", pcm.SAMPLE_RATE),
        "audio/x-pcm": ("s16le", pcm.SAMPLE_RATE),
        "audio/raw": ("s16le", pcm.SAMPLE_RATE),
        "audio/basic": ("mulaw", 8_000),
        "audio/pcmu": ("mulaw", 8_000),
        "audio/pcma": ("alaw", 8_000),
        "audio/gsm": ("gsm", 8_000),
        "audio/x-gsm": ("gsm", 8_000),
        "audio/g722": ("g722", pcm.SAMPLE_RATE),
    }
)
"""Content type of raw sound -> encoding and rate, unless a parameter says otherwise.

In RFC 2586, audio/L16 is big-endian; live senders' is not, and `encoding=s16be` declares one that is.
"""


def declared_format(content_type: str, params: Mapping[str, str], file_name: str = "") -> RawFormat | None:
    """Return the format of raw sound as declared by the parameters, else by the Content-Type, else by the file name.

    The result is a name in `CODECS` for what ffmpeg decodes, and None if nothing is declared. Raises `BadParam` for an
    impossible value.
    """
    header = Message()  # ASCII only: it cannot handle characters mixed with stray bytes
    header["Content-Type"] = content_type.encode("ascii", "replace").decode() or "application/octet-stream"
    known = TYPES.get(header.get_content_type()) or ENDINGS.get(PurePath(file_name).suffix.lower())
    if known is None and not any(params.get(name) for name in NAMES):
        return None
    given = {name: str(value) for name in NAMES if (value := params.get(name) or header.get_param(name))}
    encoding, rate = known or ("s16le", pcm.SAMPLE_RATE)
    encoding = ENCODING.of({"encoding": given.get("encoding", encoding).lower().removeprefix("pcm_")})
    return raw_format(encoding, RATE.of({"rate": str(rate)} | given), CHANNEL_COUNT.of(given))

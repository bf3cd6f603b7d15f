"""Typed reading of values from outside: URL queries, form fields, JSON and environment variables.

Values come as text, or as JSON has them. The `BadParam` that every function raises names the parameter and its value.
"""

import math
from collections.abc import Collection, Mapping

from whisper_byoc.errors import BadParam

ON = frozenset({"1", "true", "yes", "on"})
OFF = frozenset({"0", "false", "no", "off"})
PCM_INPUTS = frozenset({"pcm16", "s16le", "pcm"})


def switch(name: str, value: object) -> bool:
    """Read a value that is on (1, true, yes, on) or off (0, false, no, off), in any case."""
    text = str(value).strip().lower()
    if text not in ON | OFF:
        raise BadParam(name, f"{name} must be true or false, not {value!r:.40}")
    return text in ON


def number(name: str, value: object, least: float, most: float) -> float:
    """Read a number from `least` to `most`."""
    try:
        found = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not least <= found <= most:
        raise BadParam(name, f"{name} must be a number from {least:g} to {most:g}, not {value!r:.40}")
    return found


def whole(name: str, value: object, least: int = 0, most: int = 2**63 - 1) -> int:
    """Read a whole number from `least` to `most`, in decimal digits."""
    text = str(value)
    digits = text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20  # isdigit alone takes ² for one
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not digits:
        raise BadParam(name, f"{name} must be a whole number, not {value!r:.40}")
    if not least <= int(text) <= most:
        bounds = f"from {least} to {most}" if most < 2**31 else f"of at least {least}"
        raise BadParam(name, f"{name} must be a whole number {bounds}, not {text}")
    return int(text)


def has_pcm_input(params: Mapping[str, object]) -> bool:
    """Return whether a stream's parameter `input` says that its segments are raw PCM16, not a container."""
    return str(params.get("input", "")).lower() in PCM_INPUTS


def choice(name: str, value: object, choices: Collection[str]) -> str:
    """Read one of `choices`, spelled exactly so."""
    if not isinstance(value, str) or value not in choices:
        raise BadParam(name, f"{name} must be one of {', '.join(choices)}, not {value!r:.40}")
    return value

"""Typed reading of values from outside: URL queries, form fields, JSON and environment variables.

Values are text or JSON values. Every function raises `BadParam`, which names the parameter and its value.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from whisper_byoc.errors import BadParam

T = TypeVar("T")
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
    digits = text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20  # isdigit alone accepts ²
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not digits:
        raise BadParam(name, f"{name} must be a whole number, not {value!r:.40}")
    if not least <= int(text) <= most:
        bounds = f"from {least} to {most}" if most < 2**31 else f"of at least {least}"
        raise BadParam(name, f"{name} must be a whole number {bounds}, not {text}")
    return int(text)


def has_pcm_input(params: Mapping[str, object]) -> bool:
    """Return whether a stream's parameter `input` says that its segments are raw PCM16 rather than a container."""
    return str(params.get("input", "")).lower() in PCM_INPUTS


def choice(name: str, value: object, choices: Collection[str]) -> str:
    """Read one of `choices`, spelled exactly."""
    if not isinstance(value, str) or value not in choices:
        raise BadParam(name, f"{name} must be one of {', '.join(choices)}, not {value!r:.40}")
    return value


@dataclass(frozen=True)
class Param(Generic[T]):
    """A parameter of a route or a field of its form: its parser and its JSON schema, together so that they agree."""

    name: str
    help: str
    default: T
    schema: Mapping[str, Any]
    convert: Callable[[str, object], T]

    def of(self, values: Mapping[str, str]) -> T:
        """Read it; `default` when it is absent."""
        given = values.get(self.name)
        return self.default if given is None else self.convert(self.name, given)


def text_param(name: str, help: str) -> Param[str | None]:
    return Param(name, help, None, {"type": "string"}, lambda _, value: str(value))


def switch_param(name: str, help: str, *, default: bool = False) -> Param[bool]:
    return Param(name, help, default, {"type": "string", "enum": sorted(ON | OFF)}, switch)


def choice_param(name: str, help: str, choices: Collection[str], default: str, *, lower: bool = False) -> Param[str]:
    """Describe a choice; with `lower`, case does not matter."""

    def read(name: str, value: object) -> str:
        return choice(name, value.lower() if lower and isinstance(value, str) else value, choices)

    return Param(name, help, default, {"type": "string", "enum": list(choices)}, read)


def number_param(name: str, help: str, least: float, most: float, default: T) -> Param[float | T]:
    schema = {"type": "number", "minimum": least, "maximum": most}
    return Param(name, help, default, schema, lambda name, value: number(name, value, least, most))


def whole_param(name: str, help: str, least: int, most: int, default: T) -> Param[int | T]:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Param(name, help, default, schema, lambda name, value: whole(name, value, least, most))

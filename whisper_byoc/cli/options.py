"""Options that can also be set by environment variables, and the kinds of values they take."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

from whisper_byoc.errors import UsageError

__all__ = ["Parser", "Repeated", "add_log_level", "byte_count", "count", "port", "seconds"]


class Repeated(argparse.Action):
    """Collects the values of an option given several times; the first one replaces the default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: str | None = None
    ) -> None:
        """Take one value."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), values])


class Parser(argparse.ArgumentParser):
    """An argument parser whose options have environment variables, and whose errors are one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def option(
        self, *flags: str, help: str, env: tuple[str, ...] = (), convert: Callable[[str], Any] = str, **rest: Any
    ) -> None:
        """Add `--name`; `WHISPER_BYOC_NAME` and the names in `env` set it too, and the command line wins."""
        variables = (*env, "WHISPER_BYOC_" + flags[0].lstrip("-").replace("-", "_").upper())
        default = rest.pop("default", None)
        repeated = rest.get("action") is Repeated
        shown = "" if default is None else f"default {default}; "
        for variable in variables:
            if os.environ.get(variable):  # an empty one is none, as compose files write it
                default = self._from_environment(variable, convert, repeated=repeated)
                if (choices := rest.get("choices")) and default not in choices:  # argparse looks at the words only
                    raise UsageError(f"environment variable {variable}: {default!r} is none of {', '.join(choices)}")
                break
        text = f"{help} [{shown}env {', '.join(variables)}]".replace("%", "%%")
        self.add_argument(*flags, help=text, type=convert, default=default, **rest)

    def switch(self, flag: str, *, help: str) -> None:
        """Add `--name`, which is on or off; `WHISPER_BYOC_NAME=1` turns it on too."""
        variable = "WHISPER_BYOC_" + flag.lstrip("-").replace("-", "_").upper()
        on = os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
        self.add_argument(flag, help=f"{help} [env {variable}]", action="store_true", default=on)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` instead of printing the usage and exiting."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _from_environment(self, variable: str, convert: Callable[[str], Any], *, repeated: bool) -> Any:
        value = os.environ[variable]
        try:
            return [convert(part.strip()) for part in value.split(",")] if repeated else convert(value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UsageError(f"environment variable {variable}: {error}") from None


def add_log_level(parser: Parser) -> None:
    """Add the option that says how much is logged."""
    levels = ("debug", "info", "warning", "error")
    parser.option("--log-level", help="how much to log", env=("LOG_LEVEL",), convert=str.lower, choices=levels,
                  default="info")  # fmt: skip


def port(text: str) -> int:
    """A TCP port; 0 lets the system choose."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0-65535)")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """A time of more than 0 s."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def byte_count(text: str) -> int:
    """A size such as `1048576`, `512k`, `64M` or `1G` (powers of 1024)."""
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    if not digits.isdigit() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1048576, 512k or 64M")
    return int(digits) * factor

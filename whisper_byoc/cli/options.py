"""Options that environment variables can set too, the types of their values, and go-livepeer's flags."""

import argparse
import difflib
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from whisper_byoc import params
from whisper_byoc.errors import UsageError
from whisper_byoc.http import server_tls
from whisper_byoc.languages import language_code
from whisper_byoc.logs import FORMATTERS, log_to_stderr
from whisper_byoc.origins import origin
from whisper_byoc.speech.engine import MOST_BEAM

CONTAINER_PORT = 8000
ORCHESTRATOR_PORT = 8936
GATEWAY_PORT = 8935
LARGEST_SECRET_FILE = 4096
GO_FLAG = re.compile(
    r"--?(\w*[a-z][A-Z]\w*|broadcaster|byoc|config|datadir|gateway|monitor|netint|network|nodes|nvidia|orchestrator"
    r"|redeemer|region|reward|transcoder|v|vmodule)(=.*)?",
    re.DOTALL,
)
"""A flag that may be go-livepeer's: it is in camelCase, or it is one of the few that are a single word (0.9,
cmd/livepeer/starter/flags.go)."""
TYPO = 0.77
"""Similarity (`difflib`, 1 is equal) from which an unknown flag is taken for a misspelled one of ours."""

KUBERNETES_LINK = re.compile(r"(?:tcp|udp|sctp)://.*")
"""What Kubernetes sets NAME_PORT to, in every pod beside a Service of that name."""

log = logging.getLogger("whisper_byoc.network")


@dataclass(frozen=True)
class Unusable:
    """The default of an option whose variable has a value that it cannot have."""

    reason: str


class Repeated(argparse.Action):
    """Collects the values of an option given several times; the first one replaces the default."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if before is self.default else before), values])


class Parser(argparse.ArgumentParser):
    """An argument parser whose options have environment variables, and whose errors are one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._go_names: list[str] = []
        self._passed_over: list[str] = []
        self._group: argparse._ActionsContainer = self

    def group(self, title: str) -> None:
        """Put the options that follow under a heading of the help."""
        self._group = self.add_argument_group(title)

    def option(
        self,
        *flags: str,
        help: str,
        env: tuple[str, ...] = (),
        convert: Callable[[str], Any] = str,
        default: Any = None,
        **rest: Any,
    ) -> None:
        """Add `--name`; `WHISPER_BYOC_NAME` sets it too, and the command line wins.

        `env` has the names under which Livepeer's programs know the setting; no other name without our prefix counts.
        """
        variables = (_variable(flags[0]), *env)
        shown = "" if default in (None, "", ()) else f"default {_shown(default, convert)}; "
        for variable in variables:
            value = os.environ.get(variable)
            if value and KUBERNETES_LINK.fullmatch(value):  # set for a Service that is called whisper-byoc
                self._passed_over.append(f"{variable}={value}")
            elif value:  # compose files set a variable to nothing to leave it out
                default = _from_environment(variable, value, convert, rest)
                break
        text = f"{help} [{shown}env {', '.join(variables)}]".replace("%", "%%")
        self._group.add_argument(*flags, help=text, type=convert, default=default, **rest)

    def secret(self, *flags: str, help: str, env: tuple[str, ...] = ()) -> None:
        """Add an option for a secret or a file that holds it.

        Its variables are removed from the environment, which child processes inherit.
        """
        read = partial(_secret, flags[-1])
        self.option(*flags, help=f"{help}, or a file that holds it", env=env, convert=read, default="")
        for variable in (*env, _variable(flags[0])):
            os.environ.pop(variable, None)

    def switch(self, flag: str, *, help: str) -> None:
        """Add `--name`, which is on or off; `WHISPER_BYOC_NAME=1` turns it on too."""
        variable = _variable(flag)
        value = os.environ.get(variable)
        on = _from_environment(variable, value, partial(params.switch, flag), {}) if value else False
        self._group.add_argument(flag, help=f"{help} [env {variable}]", action="store_true", default=on)

    def go_option(self, name: str, *, help: str, **rest: Any) -> None:
        """Add `-name VALUE` as go-livepeer has it, with its environment variable `LP_NAME`."""
        self._go_names.append(name)
        self.option(f"--{name}", help=help, env=(f"LP_{name.upper()}",), **{"metavar": "VALUE"} | rest)

    def go_switch(self, name: str) -> None:
        """Add `-name`, which go-livepeer needs; its value, if any, changes nothing here."""
        self._go_names.append(name)
        self.add_argument(f"--{name}", help="accepted for compatibility; always on", nargs="?", metavar="BOOL")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a command line. A command with flags of go-livepeer's takes all of them, and logs those it ignores.

        Raises `UsageError`, also for a variable with a bad value where the command line gives no other.
        """
        args, rest = self.parse_known_args(words)
        for value in vars(args).values():
            if isinstance(value, Unusable):
                self.error(value.reason)
        ignored, unknown = _split_go_flags(rest) if self._go_names else ([], rest)
        for name in ignored:
            if similar := difflib.get_close_matches(name, self._go_names, 1, TYPO):
                self.error(f"there is no flag -{name}; did you mean -{similar[0]}?")
        if unknown:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            hint = did_you_mean(unknown[0].partition("=")[0], known) if unknown[0].startswith("--") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        args.ignored, args.passed_over = ignored, self._passed_over
        return args

    def all_actions(self) -> Iterator[argparse.Action]:
        """Yield the arguments and options of this command, and of the commands below it."""
        for action in self._actions:
            yield action
            if isinstance(action.choices, dict):  # of names and parsers
                for parser in action.choices.values():
                    yield from parser.all_actions()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for a name that resembles one of these, else nothing."""
    similar = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {similar[0]}?" if similar else ""


def add_logging(parser: Parser) -> None:
    parser.group("log")
    levels = ("debug", "info", "warning", "error")
    parser.option("--log-level", help="how much to log", convert=str.lower, choices=levels, default="info")
    parser.option("--log-format", help="format of the log", choices=tuple(FORMATTERS), default="text")


def start_log(args: argparse.Namespace) -> None:
    """Log to stderr as the options of `add_logging` say."""
    log_to_stderr(args.log_level, args.log_format)
    if args.passed_over:
        log.info("ignored, because Kubernetes set them for a Service: %s", " ".join(args.passed_over))


def add_access(parser: Parser) -> None:
    """Add who may use a container's listener, and how."""
    parser.group("who may use it")
    add_auth_token(parser, help="bearer token that clients must show")
    parser.option("--tls-cert", help="PEM certificate chain: serve HTTPS", convert=Path, metavar="FILE")
    parser.option("--tls-key", help="its key, if not in the same file", convert=Path, metavar="FILE")
    parser.option(
        "--stream-host",
        help="host allowed for channels of streams, besides our orchestrators and clients that show the token; "
        "may be repeated, * allows any",
        default=(),
        action=Repeated,
        metavar="HOST",
    )
    add_allow_origin(parser)


def add_auth_token(parser: Parser, *others: str, help: str) -> None:
    """Add the bearer token of containers, under the name that it has in all commands, and others."""
    parser.secret("--auth-token", *others, help=help, env=("AUTH_TOKEN", "LIVEPEER_AUTH_TOKEN"))


def add_model_dir(parser: Parser) -> None:
    parser.option(
        "--model-dir", help="folder of the models (default: openai-whisper's cache)", env=("MODEL_DIR",), convert=Path
    )


def add_gateway_token(parser: Parser) -> None:
    parser.secret("--gateway-token", help="bearer token that the gateway's clients must show")


def tls_of(args: argparse.Namespace) -> ssl.SSLContext | None:
    """Return what the options of `add_access` say; None for plain HTTP."""
    if args.tls_key and not args.tls_cert:
        raise UsageError("--tls-key is the key of a certificate; name that with --tls-cert")
    return server_tls(args.tls_cert, args.tls_key) if args.tls_cert else None


def add_allow_origin(parser: Parser) -> None:
    parser.option(
        "--allow-origin",
        help="origin of web pages that may use it, such as http://localhost:3000; may be repeated",
        convert=origin,
        default=(),
        action=Repeated,
        metavar="ORIGIN",
    )


def add_engine(parser: Parser) -> None:
    parser.option(
        "--engine",
        help="what runs the model: OpenVINO, openai-whisper, or the first of these that is installed",
        choices=("auto", "fast", "openai"),
        default="auto",
    )
    parser.option(
        "--audio-context",
        help="what the fast engine computes for less than 27 s of audio: only what is needed, or always 30 s",
        choices=("short", "full"),
        default="short",
    )


def add_beam(parser: Parser) -> None:
    parser.option(
        "--beam",
        help="beam size, 1 to 8 (default: 5, 2 or 1, by load)",
        convert=beam,
    )


def log_ignored(args: argparse.Namespace) -> None:
    """Name the flags that were accepted and ignored, in one line."""
    if args.ignored:
        flags = " ".join(f"-{name}" for name in dict.fromkeys(args.ignored))
        log.info("flags without a meaning off-chain, ignored: %s", flags)


def language_tag(text: str) -> str:
    if text.strip().lower() != "auto" and language_code(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a language; use a tag such as en or pt-BR, a name, or auto")
    return text


def existing_file(text: str) -> Path:
    path = Path(text)
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a directory; name the files in it")
        if not path.is_file():
            raise UsageError(f"{path} is not a file" if path.exists() else f"no such file: {path}")
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise UsageError(f"{path} cannot be looked up: {error.strerror}") from None
    return path


def port(text: str) -> int:
    return _whole(text, range(65536), "a port (0-65535)")


def count(text: str) -> int:
    return _whole(text, range(1, 2**63), "a whole number of at least 1")


def beam(text: str) -> int:
    return _whole(text, range(1, MOST_BEAM + 1), f"a whole number from 1 to {MOST_BEAM}")


def amount(text: str) -> int:
    return _whole(text, range(2**63), "a whole number of at least 0")


def _shown(value: object, convert: Callable[[str], Any]) -> str:
    """Return a default as it may be given: sizes as `64M`."""
    if convert is byte_count and isinstance(value, int):
        for suffix, factor in (("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)):
            if value % factor == 0:
                return f"{value // factor}{suffix}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def byte_count(text: str) -> int:
    """A size such as `1048576`, `512k`, `64M` or `1G` (powers of 1024)."""
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    if not digits.isdecimal() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1048576, 512k or 64M")
    return int(digits) * factor


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _whole(text: str, bounds: range, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) in bounds):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return int(text)


def _variable(flag: str) -> str:
    return "WHISPER_BYOC_" + flag.lstrip("-").replace("-", "_").upper()


def _from_environment(variable: str, value: str, convert: Callable[[str], Any], options: dict[str, Any]) -> Any:
    """Return the value of a variable as its option has it, or `Unusable`."""
    try:
        if options.get("action") is Repeated:
            return [convert(part.strip()) for part in value.split(",")]
        found = convert(value)
    except (ValueError, argparse.ArgumentTypeError, UsageError) as error:
        return Unusable(f"environment variable {variable}: {error}")
    if (choices := options.get("choices")) and found not in choices:  # argparse does not check defaults
        return Unusable(f"environment variable {variable}: {found!r} is not one of {', '.join(choices)}")
    return found


def _secret(flag: str, text: str) -> str:
    """Return a secret, or what is in the file of that name, as go-livepeer does for `-orchSecret`."""
    try:
        path = Path(text)
        if not text or not path.is_file():
            return text.strip()
    except OSError:  # longer than a path can be
        return text.strip()
    try:
        with path.open("rb") as file:
            found = file.read(LARGEST_SECRET_FILE + 1).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag}: {path} cannot be read: {error}") from None
    if not found or len(found) > LARGEST_SECRET_FILE:
        raise UsageError(f"{flag}: {path} must hold 1 to {LARGEST_SECRET_FILE} characters")
    return found


def _split_go_flags(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names of go-livepeer's flags, whose values are dropped, and the words that are neither."""
    names: list[str] = []
    others: list[str] = []
    takes_value = False
    for word in words:
        if found := GO_FLAG.fullmatch(word):
            names.append(found[1])
            takes_value = found[2] is None
        elif takes_value and not word.startswith("--"):
            takes_value = False
        else:
            others.append(word)
    return names, others

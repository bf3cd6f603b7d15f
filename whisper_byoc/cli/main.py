"""`whisper-byoc COMMAND …`: find the command, and turn every expected error into one sentence and an exit code."""

import atexit
import errno
import os
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import MappingProxyType

from audio.errors import AudioError
from whisper_byoc import __version__
from whisper_byoc.cli import EXIT_INTERRUPTED
from whisper_byoc.cli.options import Parser, did_you_mean
from whisper_byoc.cli.processes import end_with_parent
from whisper_byoc.cli.terminal import printable
from whisper_byoc.errors import ByocError, UsageError

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "serve": "serve pipelines over HTTP (the default: `whisper-byoc -byocModelID NAME`)",
        "send": "stream a sound file or a microphone, and print the text as it arrives",
        "transcribe": "turn sound files into text on this machine, without a server",
        "run": "serve a script that defines a processor",
        "new": "create a project with a processor, a test and a Dockerfile",
        "preload": "download a model ahead of time",
        "pipelines": "list the pipelines",
        "orchestrator": "run an orchestrator without a chain, for development",
        "gateway": "run a gateway without a chain, for development",
        "up": "run a container, an orchestrator and a gateway together",
        "trickle": "send and receive over the trickle protocol, or serve it",
        "wyoming": "serve speech to text to Home Assistant",
        "doctor": "check this machine and the services on it, and suggest fixes",
        "completion": "print a shell completion script",
    }
)
"""Each command is the module of its name, with `configure(parser)` and `run(args)`; its docstring is the help."""
EXIT_FAILURE, EXIT_USAGE = 1, 2
MOST_FILES = 65536
WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Why stdout may fail through no fault of this program; a reader that has gone is a `BrokenPipeError`."""
ONE_DASH = re.compile(r"-[A-Za-z][\w-]+(=.*)?", re.DOTALL)


def run_program() -> None:
    """Run the command line of this process, and end the process with its exit code."""
    open_closed_streams()
    allow_any_text()
    code = EXIT_FAILURE
    atexit.register(lambda: exit_at_once(code))  # the first one registered runs last
    try:
        code = main()
    except SystemExit:  # after --help
        code = 0


def open_closed_streams() -> None:
    """Open stdin, stdout and stderr on /dev/null where the parent has closed them (`<&- >&-`), as for daemons."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the process lives


def allow_any_text() -> None:
    """Let stdout replace characters that its encoding lacks, and write file names that are not text as they are."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        utf8 = sys.stdout.encoding.lower() in ("utf-8", "utf8")
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "replace")


def exit_at_once(code: int) -> None:
    """Exit without Python's own cleanup: a thread that is inside torch then would abort the process."""
    try:
        if code != EXIT_INTERRUPTED:  # a reader that reads nothing would keep this from ending
            sys.stdout.flush()
    except BrokenPipeError:
        code = EXIT_FAILURE
    except OSError as error:
        code = print_error(output_error(error), EXIT_FAILURE)
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    end_with_parent()
    open_more_files()
    words = with_two_dashes(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(words)
    except UsageError as error:
        return print_error(str(error), EXIT_USAGE)
    except (ByocError, AudioError) as error:
        return print_error(str(error), EXIT_FAILURE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        discard_output()
        return EXIT_FAILURE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            discard_output()
            return print_error(output_error(error), EXIT_FAILURE)
        if os.environ.get("WHISPER_BYOC_DEBUG"):
            raise
        bug = f"this is a bug: {type(error).__name__}: {error}; WHISPER_BYOC_DEBUG=1 shows where"
        return print_error(bug, EXIT_FAILURE)


def open_more_files() -> None:
    """Raise the limit of open files as far as may be, as Go's programs do: connections are files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def discard_output() -> None:
    """Send what stdout still holds to /dev/null: writing it again would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def output_error(error: OSError) -> str:
    return f"cannot write the output: {error.strerror}"


def print_error(message: str, code: int) -> int:
    """Print one sentence on stderr, without what a server may have put into it to act on the terminal."""
    print(f"whisper-byoc: {printable(message)}", file=sys.stderr)
    return code


def dispatch(words: list[str]) -> int:
    """Run the command that the words name."""
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        words = [implied_command(words), *words]
    if words[:1] in (["help"], ["version"]):
        words = [*words[1:], "--help"] if words[0] == "help" else ["--version"]
    name = words[0] if words else "--help"
    if name == "--version":
        print(f"whisper-byoc {__version__}")
        return 0
    if name in ("-h", "--help"):
        print(overview())
        return 0 if words else EXIT_USAGE
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; the commands are: {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {name!r}{hint}")
    module = import_module(f"whisper_byoc.cli.{name}")
    parser = Parser(prog=f"whisper-byoc {name}", description=module.__doc__)
    module.configure(parser)
    return int(module.run(parser.read(words[1:])))


def implied_command(words: list[str]) -> str:
    """Name the command of a line that begins with an option, as in `docker run IMAGE -byocModelID whisper-tiny`.

    go-livepeer has one program for its nodes; a flag says which one it is: `-orchestrator` or `-gateway`.
    """
    return next((role for role in ("orchestrator", "gateway") if f"--{role}" in words), "serve")


def overview() -> str:
    lines = "\n".join(f"  {name:<14}{summary}" for name, summary in COMMANDS.items())
    return (
        f"usage: whisper-byoc COMMAND …\n\n{lines}\n\nRun `whisper-byoc COMMAND --help` for the options of a command."
    )


def with_two_dashes(words: Sequence[str]) -> list[str]:
    """Accept Go's spelling of options, `-port 8000`; what follows the script of `run` belongs to the script."""
    ours = len(words)
    if words[:1] == ["run"]:
        ours = 1
        while ours < len(words) and words[ours].startswith("-"):  # an option before the script, and its value
            ours += 1 if "=" in words[ours] else 2
    return [*map(two_dashes, words[:ours]), *words[ours:]]


def two_dashes(word: str) -> str:
    return f"-{word}" if ONE_DASH.fullmatch(word) else word


if __name__ == "__main__":
    run_program()

"""Print a script by which a shell completes commands, options, and their values.

bash: eval "$(whisper-byoc completion bash)", in ~/.bashrc.
zsh:  whisper-byoc completion zsh > FOLDER/_whisper-byoc, where FOLDER is in $fpath.
fish: whisper-byoc completion fish > ~/.config/fish/completions/whisper-byoc.fish.
"""

import argparse
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from whisper_byoc.cli.main import COMMANDS
from whisper_byoc.cli.options import Parser, existing_file
from whisper_byoc.errors import UsageError
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.processors.registry import PIPELINES
from whisper_byoc.speech.catalogue import MODELS
from whisper_byoc.speech.formats import FORMS

SHELLS = ("bash", "zsh", "fish")
SPEECH = tuple(dict.fromkeys([*PIPELINES, *(f"whisper-{name}" for name in MODELS)]))
VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "format": tuple(FORMS),
        "language": ("auto", *LANGUAGES),
        "model": SPEECH,
        "pipeline": SPEECH,
        "pipelines": SPEECH,
        "topic": tuple(COMMANDS),
    }
)
"""Values that are proposed; others may be given."""
FILE_TYPES, FILE_NAMES = (Path, existing_file), ("files", "output", "token", "auth_token")


def configure(parser: Parser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose script it is")


def run(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        install = "pip install 'whisper-byoc[completion]'"
        raise UsageError(f"completion scripts are written by shtab, which is not installed: {install}") from None
    root = Parser(prog="whisper-byoc")
    commands = root.add_subparsers()
    for name, summary in COMMANDS.items():
        import_module(f"whisper_byoc.cli.{name}").configure(commands.add_parser(name, help=summary))
    commands.add_parser("help", help="show the help of a command").add_argument("topic")
    commands.add_parser("version", help="show the version")
    for action in root.all_actions():
        if action.type in FILE_TYPES or action.dest in FILE_NAMES:
            setattr(action, "complete", shtab.FILE)  # noqa: B010 - mypy knows no such attribute
        elif action.dest in VALUES and action.choices is None and action.nargs != 0:
            action.choices = VALUES[action.dest]
    print(shtab.complete(root, args.shell))
    return 0

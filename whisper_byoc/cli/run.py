"""Serve a script that defines a processor: any class with `async def process(self, frame: bytes) -> bytes`.

A plain function `async def process(frame: bytes)` is one too, and a `str` may be returned as well.

The script runs unchanged. `from pytrickle import FrameProcessor, run_processor` and
`from http_trickle import TrickleClient` find whisper-byoc's; it may call run_processor itself, or not at all.
A script that has the client and no processor ends when it is done.
"""

import argparse
import asyncio
import inspect
import logging
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from whisper_byoc.cli.main import with_two_dashes
from whisper_byoc.cli.options import Parser, add_access, add_logging, existing_file, port, start_log, tls_of
from whisper_byoc.cli.reload import reloading
from whisper_byoc.cli.serve import add_limits, add_registration, registration_of, server_limits
from whisper_byoc.client import GatewayClient, TrickleClient
from whisper_byoc.compat import tutorial_names
from whisper_byoc.errors import ByocError, UsageError
from whisper_byoc.logs import of_author
from whisper_byoc.processors.base import FrameProcessor, Processor, as_processor
from whisper_byoc.server.hosted import run_processor
from whisper_byoc.shadowing import check_audio

OURS = ("--port", "-port", "--host", "-host", "--class", "--reload")

log = logging.getLogger("whisper_byoc.run")


def configure(parser: Parser) -> None:
    parser.add_argument("script", type=existing_file, help="Python file")
    rest = parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the script")
    rest.required = False  # an error names only the script as missing
    parser.option("--host", help="address to listen on (default: the script's, else 127.0.0.1)")
    parser.option("--port", help="port to listen on (default: the script's, else 8000)", convert=port)
    parser.option("--class", dest="class_name", help="class or async function to serve, if there are several")
    parser.switch("--reload", help="restart whenever a Python file next to the script changes, for development")
    add_access(parser)
    add_registration(parser)
    add_limits(parser)
    add_logging(parser)


def run(args: argparse.Namespace) -> int:
    start_log(args)
    if args.reload:
        return reloading(args.script.resolve().parent, _words_without_reload(args))
    if misplaced := [word for word in args.arguments if word.partition("=")[0] in OURS]:
        log.warning("%s is passed to the script; put it before the script to set the server's option", misplaced[0])
    served, tls = False, tls_of(args)

    async def serve(processor: Processor, *positional: Any, **named: Any) -> None:
        nonlocal served
        served = True
        given = inspect.signature(run_processor).bind_partial(processor, *positional, **named).arguments
        options = {name: value for name, value in (("host", args.host), ("port", args.port)) if value is not None}
        defaults = {
            "limits": server_limits(args),
            "allowed_origins": args.allow_origin,
            "stream_hosts": args.stream_host,
            "token": args.auth_token,
            "tls": tls,
            "registration": registration_of(args),
        }
        await run_processor(**{**defaults, **given, **options})

    with tutorial_names(serve):
        names = execute(args.script, args.arguments)
        classes = {name: value for name, value in names.items() if is_processor(value, name == args.class_name)}
        done = served or (has_client(names) and not classes and args.class_name is None)
        if not done:
            asyncio.run(serve(make_processor(classes, args.class_name, args.script)))
    return 0


def _words_without_reload(args: argparse.Namespace) -> list[str]:
    words = with_two_dashes(sys.argv[1:])
    ours = len(words) - len(args.arguments)
    return [*(word for word in words[:ours] if word != "--reload"), *args.arguments]


def execute(script: Path, arguments: list[str]) -> dict[str, Any]:
    """Run the script as `python script.py` would, and return the names that it defined.

    Raises `ByocError` when it fails; its traceback goes to stderr, as the mistake is its author's.
    """
    folder = str(script.resolve().parent)
    try:
        check_audio(folder)
    except ImportError as error:
        raise UsageError(str(error)) from None
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(str(script), run_name="__main__")
    except (ByocError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        if error.code in (None, 0):
            raise
        raise ByocError(f"{script} exited with {error.code}") from None
    except BaseException as error:
        traceback.print_exception(of_author(error))
        raise ByocError(f"{script} failed with {type(error).__name__}: {error}") from None
    finally:
        sys.argv, sys.path[:] = argv, path


def has_client(names: dict[str, Any]) -> bool:
    """Whether a script has one of our clients; without a processor of its own, it has then done its work."""
    clients = (TrickleClient, GatewayClient, sys.modules.get("http_trickle", TrickleClient))
    return any(value is client for value in names.values() for client in clients)


def is_processor(value: object, chosen: bool) -> bool:
    """Whether it is a class of the script's, or a function that is called `process` or was chosen."""
    if getattr(value, "__module__", "") != "__main__":
        return False
    if inspect.iscoroutinefunction(value):
        return chosen or value.__name__ == "process"
    if not isinstance(value, type):
        return False
    process = getattr(value, "process", None)
    return inspect.iscoroutinefunction(process) and process is not FrameProcessor.process


def make_processor(classes: dict[str, Any], class_name: str | None, script: Path) -> Processor:
    """Make the processor that the script defines.

    Raises `UsageError` when there is none, or more than one to choose from.
    """
    if class_name is not None:
        classes = {name: value for name, value in classes.items() if name == class_name}
    if not classes:
        wanted = class_name or "class or function"
        raise UsageError(f"{script} defines no {wanted} with `async def process(self, frame: bytes) -> bytes`")
    if len(classes) > 1:
        raise UsageError(f"{script} defines several processors: {', '.join(classes)}; choose one with --class NAME")
    (made,) = classes.values()
    if not isinstance(made, type):
        return as_processor(made)
    try:
        processor: Processor = made()
    except TypeError as error:
        raise UsageError(f"{script}: {made.__name__} cannot be created without arguments: {error}") from None
    return processor

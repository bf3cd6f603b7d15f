"""Serve speech to text to Home Assistant over the Wyoming protocol, beside what `serve` serves.

Every option of `serve` is one of this command too. Needs the extra: pip install 'whisper-byoc[wyoming]'
"""

import argparse
from contextlib import AbstractAsyncContextManager

from whisper_byoc.cli import serve
from whisper_byoc.cli.options import Parser, port
from whisper_byoc.errors import UsageError
from whisper_byoc.server.core.table import JobTable

WYOMING_PORT = 10300
"""What Home Assistant proposes for speech to text."""


def configure(parser: Parser) -> None:
    parser.option(
        "--wyoming-port", help="port for Wyoming; 0 lets the system choose", convert=port, default=WYOMING_PORT
    )
    serve.configure(parser)


def run(args: argparse.Namespace) -> int:
    try:
        from whisper_byoc.server import wyoming
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'whisper-byoc[wyoming]'") from None

    def beside(table: JobTable) -> AbstractAsyncContextManager[object]:
        return wyoming.listening(table, args.host, args.wyoming_port)

    return serve.run(args, beside)

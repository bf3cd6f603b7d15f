"""A trickle server on its own port, until SIGTERM or SIGINT."""

import argparse
import asyncio
import logging
from collections.abc import Sequence

from whisper_byoc.errors import StartError
from whisper_byoc.trickle.server import TRICKLE_PORT, TrickleServer, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m whisper_byoc.trickle`, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m whisper_byoc.trickle", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=TRICKLE_PORT, help="port; 0 takes a free one (default %(default)s)")
    parser.add_argument("--base-path", default="/ai/trickle/", help="path before channel names (default %(default)s)")
    parser.add_argument("--no-autocreate", action="store_true", help="let no remote peer create a channel")
    parser.add_argument("--changefeed", action="store_true", help="keep the channel _changes")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(levelname)s] %(name)s - %(message)s")
    server = TrickleServer(args.base_path, autocreate=not args.no_autocreate, changefeed=args.changefeed)
    try:
        asyncio.run(serve(server, args.host, args.port))
    except StartError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

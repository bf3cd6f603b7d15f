"""The command line: one file per command."""

import sys

__all__ = ["script"]


def script() -> None:
    """Be the program `whisper-byoc`, which Ctrl-C ends without a traceback while it is still being imported, too."""
    try:
        from whisper_byoc.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main.script()

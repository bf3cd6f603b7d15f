"""The command line: one file per command."""

import sys

__all__ = ["script"]


def script() -> None:
    """Run the program `whisper-byoc`; Ctrl-C ends it without a traceback even while it is being imported."""
    try:
        from whisper_byoc.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main.run_program()

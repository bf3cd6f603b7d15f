"""The command line: one file per command."""

import os
import sys

# numpy's matrices are small here: with more threads OpenBLAS spins longer than it computes, and takes the CPUs from the
# model. It reads this when numpy is imported, which is after this module.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__all__ = ["EXIT_INTERRUPTED", "script"]

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def script() -> None:
    """Run the program `whisper-byoc`; Ctrl-C ends it without a traceback even while it is being imported."""
    try:
        from whisper_byoc.cli import main
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    main.run_program()

"""What the benchmarks that hear real speech share: their options, and how they end."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from audio.errors import AudioError
from whisper_byoc.errors import ByocError
from whisper_byoc.processors.whisper import WhisperSettings

__all__ = ["run", "speech_parser"]


def speech_parser(description: str) -> argparse.ArgumentParser:
    """Make a parser with --model, --model-dir, --speech, --threads, --quick and --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="name, .pt file or CTranslate2 folder (default: demo)")
    parser.add_argument("--model-dir", type=Path, help="folder of the models")
    parser.add_argument("--speech", type=Path, help="folder with a manifest.json (default: the fixtures)")
    parser.add_argument("--threads", type=int, default=WhisperSettings().sizes()[1], help="CPU threads of a model")
    parser.add_argument("--quick", action="store_true", help="little and fast: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print one JSON object in a line instead of tables")
    return parser


def run(main: Callable[[], None]) -> None:
    """Call `main`; what is wrong with a model or a recording is a sentence, not a traceback."""
    try:
        main()
    except (ByocError, AudioError) as error:
        raise SystemExit(str(error)) from None

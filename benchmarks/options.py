"""Options of the benchmarks that hear real speech."""

from __future__ import annotations

import argparse
from pathlib import Path

from whisper_byoc.processors.whisper import WhisperSettings

__all__ = ["speech_parser"]


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

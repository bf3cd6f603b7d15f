"""List the pipelines."""

import argparse

from whisper_byoc.cli.options import Parser
from whisper_byoc.processors.registry import PIPELINES


def configure(_: Parser) -> None:
    pass


def run(_: argparse.Namespace) -> int:
    rows = [("NAME", "READS", "GIVES", "WHAT IT DOES")]
    rows += [(spec.name, spec.reads, spec.gives, spec.summary) for spec in PIPELINES.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nwhisper-NAME serves any other model of openai-whisper (whisper-base, whisper-tiny.en, …), PATH.pt a file.")
    return 0

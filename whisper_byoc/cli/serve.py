"""Serve pipelines over HTTP until SIGTERM or Ctrl-C.

PUT /live/JOB/source takes sound or frames, GET /live/JOB/output gives results; see docs/protocol.md.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
from pathlib import Path

from whisper_byoc.cli.joining import add_joining, auth_token_of, registration_of
from whisper_byoc.cli.options import Parser, Repeated, add_log_level, byte_count, count, port, seconds
from whisper_byoc.errors import UsageError
from whisper_byoc.processors.registry import find
from whisper_byoc.processors.whisper import WhisperSettings
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.run import LOG_FORMAT, ServerConfig, serve
from whisper_byoc.speech.partials import POLICIES

__all__ = ["add_limits", "configure", "limits_of", "log_to_stderr", "run"]

LIMITS = (
    ("--max-segment", "segment_bytes", byte_count, "largest segment"),
    ("--max-jobs", "jobs", count, "jobs open at once"),
    ("--max-queue", "queue_segments", count, "segments of one job that may wait"),
    ("--max-queue-bytes", "queue_bytes", byte_count, "bytes of one job that may wait"),
    ("--max-results", "kept_results", count, "results of one job that are kept"),
    ("--max-results-bytes", "kept_bytes", byte_count, "bytes of results of one job that are kept"),
    ("--segment-timeout", "segment_seconds", seconds, "longest work on one segment, in seconds"),
    ("--idle-timeout", "idle_seconds", seconds, "end a job after so many seconds of nothing"),
    ("--linger", "linger_seconds", seconds, "seconds for which results of an ended job stay"),
    ("--drain-timeout", "drain_seconds", seconds, "longest time from SIGTERM to exit, in seconds"),
)


def configure(parser: Parser) -> None:
    """Describe the options."""
    parser.option(
        "--pipeline", "--model", "--byocModelID", dest="pipelines", metavar="NAME", action=Repeated,
        env=("MODEL_ID",),
        help="pipeline to serve; may be repeated (see `whisper-byoc pipelines`; default whisper-tiny)",
    )  # fmt: skip
    parser.option("--host", help="address to listen on", env=("HOST",), default="0.0.0.0")
    parser.option(
        "--port", help="port to listen on; 0 lets the system choose", env=("PORT",), convert=port, default=8000
    )
    parser.option("--language", help="language spoken, as an ISO 639-1 code, or auto", default="en")
    parser.option("--partial-policy", help="which words of an utterance that goes on are shown",
                  choices=sorted(POLICIES), default="attention")  # fmt: skip
    parser.option("--workers", help="worker threads, each with the model (default: CPUs / threads)", convert=count)
    parser.option("--threads", help="torch threads in each worker (default: the CPUs, 4 at most)", convert=count)
    parser.option(
        "--model-dir", help="folder of the models (default: openai-whisper's cache)", env=("MODEL_DIR",), convert=Path
    )
    add_joining(parser)
    add_limits(parser)
    add_log_level(parser)


def run(args: argparse.Namespace) -> int:
    """Serve."""
    log_to_stderr(args.log_level)
    registration, token = registration_of(args), auth_token_of(args)
    settings = WhisperSettings(
        language=args.language,
        workers=args.workers,
        threads=args.threads,
        model_dir=args.model_dir,
        policy=args.partial_policy,
    )
    specs = [find(name) for name in dict.fromkeys(args.pipelines or ["whisper-tiny"])]
    if len({spec.name for spec in specs}) < len(specs):
        raise UsageError(f"two pipelines would have the same name: {', '.join(spec.name for spec in specs)}")
    processors = {spec.name: spec.make(settings) for spec in specs}
    asyncio.run(serve(processors, ServerConfig(args.host, args.port, limits_of(args), registration, token)))
    return 0


def add_limits(parser: Parser) -> None:
    """Add an option for every bound of the server."""
    defaults = {field.name: field.default for field in dataclasses.fields(Limits)}
    for flag, name, convert, text in LIMITS:
        parser.option(flag, dest=name, help=text, convert=convert, default=defaults[name], metavar="N")


def limits_of(args: argparse.Namespace) -> Limits:
    """Collect the bounds from the parsed options."""
    return Limits(**{name: getattr(args, name) for _, name, _, _ in LIMITS})


def log_to_stderr(level: str) -> None:
    """Log to stderr from `level` on."""
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT)

"""Download a model once, check its hash, and say where it is. Does nothing when it is there already."""

import argparse
from pathlib import Path

from whisper_byoc.cli.options import Parser, seconds
from whisper_byoc.processors.registry import model_of
from whisper_byoc.speech.models import fetch_model


def configure(parser: Parser) -> None:
    parser.option(
        "--model", "--pipeline", "--byocModelID", help="model or pipeline name", env=("MODEL",), default="tiny"
    )
    parser.option("--model-dir", help="folder of the models", env=("MODEL_DIR",), convert=Path)
    parser.option("--timeout", help="longest wait for the network, in seconds", convert=seconds, default=30.0)


def run(args: argparse.Namespace) -> int:
    name = model_of(args.model)
    path = fetch_model(name, args.model_dir, timeout=args.timeout, progress=True)
    print(f"{name}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0

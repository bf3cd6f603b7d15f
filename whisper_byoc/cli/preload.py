"""Download a model once, check its hash, convert it for the fast engine, and say where it is and comes from.

Does nothing when it is there already.
"""

import argparse

from whisper_byoc.cli.options import Parser, add_model_dir, seconds
from whisper_byoc.processors.registry import model_of
from whisper_byoc.speech.models import checkpoint, fast_engine_installed, fetch_model, kept_folder, load_fast_model


def configure(parser: Parser) -> None:
    parser.option("--model", "--pipeline", "--byocModelID", help="model or pipeline name", default="tiny")
    add_model_dir(parser)
    parser.option("--timeout", help="longest wait for the network, in seconds", convert=seconds, default=30.0)


def run(args: argparse.Namespace) -> int:
    name = model_of(args.model)
    path = fetch_model(name, args.model_dir, timeout=args.timeout, progress=True)
    wanted = checkpoint(name)
    files = [path] if path.is_file() else list(path.iterdir())
    size = sum(file.stat().st_size for file in files)
    origin = wanted.url
    if wanted.package is not None and path.is_dir():
        origin = f"the Python package {wanted.package.requirement}"
    print(f"{name}: {path} ({size / 1e6:.1f} MB){f', from {origin}' if origin else ''}")
    if fast_engine_installed():
        load_fast_model(name, args.model_dir)
        kept = kept_folder(wanted, args.model_dir)
        if kept.exists():
            print(f"{name}: {kept} (converted for the fast engine)")
    return 0

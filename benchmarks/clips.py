"""Recordings with known words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from whisper_byoc.cli.sources import load_sound
from whisper_byoc.errors import UsageError
from whisper_byoc.speech.engine import Samples

__all__ = ["Clip", "read_clips"]

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
QUICK_CLIPS = 2


@dataclass(frozen=True)
class Clip:
    """Sound, and the words in it: none in sound without speech."""

    samples: Samples
    reference: str
    kind: str
    """What a manifest says: `read`, `digits`, `command`, …"""
    path: Path
    """The file that it was read from."""


def read_clips(folder: Path | None, *, quick: bool) -> list[Clip]:
    """Read English speech, and sound without speech.

    `folder` has a manifest.json: a list of objects with `file`, `reference`, `language` and `kind`, which is
    "nonspeech" for sound without speech. None stands for the project's fixtures.
    """
    if folder is None:
        texts = json.loads((FIXTURES / "texts.json").read_text())
        named = [(FIXTURES / name, each["text"], "") for name, each in texts.items() if name.startswith("demo-")]
    elif not (folder / "manifest.json").is_file():
        raise UsageError(f"{folder} has no manifest.json, which says what its recordings are")
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        named = [
            (folder / each["file"], "" if each["kind"] == "nonspeech" else each["reference"], each["kind"])
            for each in manifest
            if each["language"] == "en" and (each["reference"] or each["kind"] == "nonspeech")
        ]
    named = named[: QUICK_CLIPS if quick else None]
    return [Clip(load_sound(path), reference, kind, path) for path, reference, kind in named]

"""The package `audio` has a common name: report when another module of that name hides it."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

OURS = Path(__file__).resolve().parent.parent / "audio"


def check_audio(folder: str | None = None) -> None:
    """Raise `ImportError` when `import audio` finds, or has already found, a module other than ours.

    Given `folder`, the first `sys.path` entry of a script that has yet to run, look only there.
    """
    spec = PathFinder.find_spec("audio", [folder]) if folder else _found()
    if spec is None or spec.origin is None or not OURS.is_dir():  # a folder without __init__.py hides nothing
        return
    path = Path(spec.origin).resolve()
    if path.parent == OURS:
        return
    other = path.parent if path.name == "__init__.py" else path
    raise ImportError(f"{other} hides the package 'audio' of whisper_byoc; give it another name", name="audio")


def _found() -> ModuleSpec | None:
    """Return the spec that `import audio` finds, without importing it."""
    loaded = sys.modules.get("audio")
    if loaded is None or loaded.__spec__ is not None:
        return find_spec("audio")
    return ModuleSpec("audio", None, origin=getattr(loaded, "__file__", None))  # it was not imported

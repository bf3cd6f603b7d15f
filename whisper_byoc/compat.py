"""The tutorial scripts' import names, `pytrickle` and `http_trickle`: provided to one script, never installed.

`pytrickle` has our `FrameProcessor` and `run_processor`; every other name, and every submodule, comes from the real
pytrickle where that is installed. `http_trickle` has our `TrickleClient`.
A script may also import `run_processor` from `whisper_byoc`, so that is replaced too.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from whisper_byoc.client import TrickleClient
from whisper_byoc.processors.base import FrameProcessor

Runner = Callable[..., Any]


@contextmanager
def tutorial_names(run_processor: Runner) -> Iterator[None]:
    """While the context lasts, `import pytrickle` and `import http_trickle` find our own, with this `run_processor`."""
    ours = {"pytrickle": pytrickle_module(run_processor), "http_trickle": ModuleType("http_trickle")}
    vars(ours["http_trickle"]).update(__doc__="whisper-byoc's client", TrickleClient=TrickleClient)
    before = {name: sys.modules.get(name) for name in ours}
    sys.modules.update(ours)
    package = vars(sys.modules["whisper_byoc"])
    package["run_processor"] = run_processor
    try:
        yield
    finally:
        del package["run_processor"]  # the package looks up its own again
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def pytrickle_module(run_processor: Runner) -> ModuleType:
    real = real_pytrickle()
    module = ModuleType("pytrickle", "whisper-byoc's contract, with the real pytrickle behind it where installed")
    module.__spec__ = importlib.machinery.ModuleSpec("pytrickle", None, is_package=True)
    # with the real package's path, `import pytrickle.subscriber` finds the real submodule
    module.__path__ = list(real.submodule_search_locations or []) if real else []
    vars(module).update(FrameProcessor=FrameProcessor, run_processor=run_processor)
    loaded: list[ModuleType] = []

    def fall_back(name: str) -> Any:
        if real is None or real.loader is None or (name.startswith("__") and name != "__version__"):
            raise AttributeError(f"module 'pytrickle' has no attribute {name!r} (whisper-byoc stands in for it)")
        if not loaded:  # its own __init__, which imports torch and av, runs only when needed
            package = importlib.util.module_from_spec(real)
            real.loader.exec_module(package)
            loaded.append(package)
        return getattr(loaded[0], name)

    vars(module)["__getattr__"] = fall_back
    return module


def real_pytrickle() -> importlib.machinery.ModuleSpec | None:
    """Find the installed pytrickle without importing it."""
    try:
        return importlib.util.find_spec("pytrickle")
    except (ImportError, ValueError):
        return None

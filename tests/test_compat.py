"""`pytrickle` and `http_trickle` inside a script: ours first, the real one's other names behind them."""

import sys

import pytest

from whisper_byoc.client import TrickleClient
from whisper_byoc.compat import tutorial_names
from whisper_byoc.processors.base import FrameProcessor
from whisper_byoc.server import hosted


async def runner(*_, **__):
    return None


@pytest.fixture
def no_real(monkeypatch):
    """Without an installed pytrickle, whatever this machine has."""
    from whisper_byoc import compat

    monkeypatch.setattr(compat, "real_pytrickle", lambda: None)


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A package named pytrickle on the path, shaped like the real one."""
    package = tmp_path / "pytrickle"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from .frames import VideoFrame\nfrom .processor import FrameProcessor\n__version__ = '0.1.6'\nloads = []\n"
    )
    (package / "frames.py").write_text("class VideoFrame: pass\n")
    (package / "processor.py").write_text("class FrameProcessor: real = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "pytrickle"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "pytrickle"]:
        del sys.modules[name]


def test_our_names(no_real):
    with tutorial_names(runner):
        import http_trickle
        import pytrickle
        from pytrickle import FrameProcessor as Theirs
        from pytrickle import run_processor

        assert Theirs is FrameProcessor
        assert run_processor is runner
        assert http_trickle.TrickleClient is TrickleClient
        with pytest.raises(AttributeError, match="StreamServer"):
            _ = pytrickle.StreamServer
        with pytest.raises(ImportError):
            from pytrickle import VideoFrame  # noqa: F401


def test_a_script_that_takes_run_processor_from_here_is_run_the_same_way():
    with tutorial_names(runner):
        from whisper_byoc import run_processor

        assert run_processor is runner
    from whisper_byoc import run_processor

    assert run_processor is hosted.run_processor


def test_the_names_are_gone_afterwards(no_real):
    before = {name: sys.modules.get(name) for name in ("pytrickle", "http_trickle")}
    with tutorial_names(runner):
        pass
    assert {name: sys.modules.get(name) for name in before} == before


def test_other_names_of_the_real_pytrickle_stay_reachable(real):
    with tutorial_names(runner):
        import pytrickle
        from pytrickle import FrameProcessor as Ours
        from pytrickle import VideoFrame
        from pytrickle.frames import VideoFrame as Direct

        assert Ours is FrameProcessor
        assert VideoFrame is Direct
        assert pytrickle.__version__ == "0.1.6"

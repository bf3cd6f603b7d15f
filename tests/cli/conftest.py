"""Command lines run in this process."""

import pytest

from whisper_byoc.cli.main import main


@pytest.fixture
def run(capsys, monkeypatch):
    """Return a function that runs a command line, and returns its exit code, stdout and stderr."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def refused(result, code, *parts):
    """Assert that a command line has failed with this exit code and one sentence that has these parts."""
    got, out, err = result
    assert got == code, err
    assert out == ""
    assert err.startswith("whisper-byoc: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err

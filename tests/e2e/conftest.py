"""Commands run as their users run them: in a process of its own, with its log."""

import pytest


@pytest.fixture
def script(launch, tmp_path):
    """Return a function that writes a script and runs it."""

    async def start(source):
        path = tmp_path / f"script{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source)
        return await launch(str(path))

    return start

"""`make demo`, faster than it is meant to be watched."""

from pathlib import Path

from whisper_byoc.speech.models import DEMO_NOTICE

ROOT = Path(__file__).resolve().parent.parent.parent


async def test_demo_shows_the_whole_path_and_ends_by_itself(launch, tmp_path):
    # no cache, a proxy where nobody listens, no package index: a machine without Whisper and without a network
    nowhere = {
        "XDG_CACHE_HOME": str(tmp_path),
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
    }
    demo = await launch(str(ROOT / "tools" / "demo.py"), "--fast", PYTHONPATH=str(ROOT), **nowhere)
    assert await demo.end(None) == 0, demo.whole_log
    shown = demo.out.decode()
    assert shown.splitlines()[2].startswith("model: demo (")
    assert shown.splitlines()[3] == f"note: {DEMO_NOTICE}"
    assert "client -> gateway http://127.0.0.1:" in shown
    assert "4 of 4 recordings came back word for word; all three processes have stopped." in shown
    assert "pixel (10, 20, 30) came back as (10, 100, 30)" in shown
    assert demo.whole_log == ""

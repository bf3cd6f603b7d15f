"""The programs in examples/, run as their users run them, and every Python snippet of the documentation."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import soxr
from aiohttp import web

from audio import pcm
from audio.ffmpeg import ffmpeg_path
from whisper_byoc import TrickleClient
from whisper_byoc.http import listening
from whisper_byoc.trickle import TrickleServer

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
NUMBERS = "seven three nine zero five one"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(match[1], id=f"{page.name}-{at}")
    for page in PAGES
    for at, match in enumerate(re.finditer(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.fixture
def example(demo, tmp_path):
    """Give a function that runs an example against a server of the test, and returns its exit code and output."""

    async def run(name, *words, stdin=b""):
        script = tmp_path / name
        script.write_text((EXAMPLES / name).read_text().replace("http://localhost:8000", demo.url))
        process = await asyncio.create_subprocess_exec(
            sys.executable, script, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(stdin), 50)
        return process.returncode, out.decode()

    return run


@pytest.fixture
async def demo(serving, demo_processor):
    return await serving({"whisper-demo": demo_processor})


async def test_live_captions(example, fixtures_dir):
    code, out = await example("live_captions.py", fixtures_dir / "demo-numbers.wav")
    assert code == 0
    assert out.splitlines()[-1].endswith(f"\x1b[K{NUMBERS}")


async def test_keyword_spotter(example, fixtures_dir):
    data = (fixtures_dir / "demo-numbers.wav").read_bytes()[44:]
    code, out = await example("keyword_spotter.py", "zero", "hello", stdin=data)
    assert (code, [line.split()[-1] for line in out.splitlines()]) == (0, ["zero"])
    assert (await example("keyword_spotter.py", "hello", stdin=data)) == (1, "")


async def test_subtitles_beside_ffmpeg(example, fixtures_dir, tmp_path, monkeypatch):
    (tmp_path / "ffmpeg").symlink_to(ffmpeg_path())
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    code, _ = await example("subtitles_beside_ffmpeg.py", fixtures_dir / "demo-numbers.wav", tmp_path / "talk.srt")
    assert code == 0
    assert re.fullmatch(
        rf"1\n00:00:00,\d{{3}} --> 00:00:03,\d{{3}}\n{NUMBERS}\n\n", (tmp_path / "talk.srt").read_text()
    )


async def test_pitch_processor(serving):
    names = {}
    exec(compile((EXAMPLES / "pitch_processor.py").read_text(), "pitch_processor.py", "exec"), names)
    api = await serving({"pitch": names["Pitch"]()})
    tone = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000) * 0.3
    async with TrickleClient(api.url) as client:
        heard = [int(each) for each in (await client.process_frame(pcm.encode(tone.astype(np.float32)))).split()]
        assert heard == pytest.approx([200] * 10, abs=3)
        assert (await client.process_frame(bytes(3200))) == b"0"


@pytest.fixture
async def trickle():
    """The address of a trickle server."""
    app, server = web.Application(), TrickleServer("/ai/trickle/", autocreate=True)
    server.add_routes(app)
    async with listening(app, "127.0.0.1", 0, keep_alive_seconds=5, shutdown_seconds=1) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("source", SNIPPETS)
async def test_a_snippet_runs_as_it_is_pasted(spawn, demo, trickle, fixtures_dir, tmp_path, source):
    """With the addresses of the test; one that serves is stopped when it listens."""
    data = (fixtures_dir / "demo-numbers.wav").read_bytes()
    (tmp_path / "talk.wav").write_bytes(data)
    (tmp_path / "talk.pcm").write_bytes(data[44:])
    resampled = soxr.resample(pcm.decode(data[44:]), 16_000, 24_000)
    (tmp_path / "talk-24khz.pcm").write_bytes(pcm.encode(resampled))
    serves = "run_processor(" in source or "run_app(" in source
    source = source.replace("http://localhost:8000", demo.url).replace("http://127.0.0.1:2939", trickle)
    source = re.sub(r"port=\d+", "port=0", source)
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    options = {"cwd": tmp_path, "stderr": asyncio.subprocess.STDOUT}
    process = await spawn(sys.executable, "-c", source, env=environment, **options)
    async with asyncio.timeout(50):
        if serves:
            while b"listening on port" not in (line := await process.stdout.readline()) and b"Running on" not in line:
                assert line
            process.send_signal(signal.SIGINT)
        out = (await process.stdout.read()).decode()
        assert await process.wait() == 0, out
    assert NUMBERS in out or "talk" not in source
    assert "another one" in out or "Subscriber(URL" not in source


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "README.md", ROOT / "benchmarks" / "README.md"], ids=str)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if heading:
            text = file.read_text()
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert heading in anchors | set(re.findall(r'<a id="([^"]+)">', text)), target

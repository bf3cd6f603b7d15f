"""`whisper-byoc doctor`: what it says of what is there, of what is not, and of strangers."""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest
from aiohttp import web

from audio.media import load_audio
from tests.server.stubs import Upper
from tests.waiting import forever
from whisper_byoc.cli import check_machine, check_services, doctor
from whisper_byoc.cli.main import main
from whisper_byoc.http import listening
from whisper_byoc.processors.base import Capacity
from whisper_byoc.speech import models

ROLES = ("container", "orchestrator", "gateway")


@pytest.fixture
def nowhere(monkeypatch, unused_tcp_port_factory):
    """No service at any default address."""
    services = [dataclasses.replace(each, port=unused_tcp_port_factory()) for each in doctor.SERVICES]
    monkeypatch.setattr(doctor, "SERVICES", services)
    for variable in ("WHISPER_BYOC_URL", "WHISPER_BYOC_GATEWAY", "WHISPER_BYOC_ORCHESTRATOR"):
        monkeypatch.delenv(variable, raising=False)
    return {each.role: f"http://localhost:{each.port}" for each in services}


@pytest.fixture
def run(capsys, nowhere):
    """Return a function that runs the command, and gives its exit code and findings by their names."""

    async def run(*words):
        code = await asyncio.to_thread(main, ["doctor", "--json", *map(str, words)])
        out, err = capsys.readouterr()
        assert err == ""
        report = json.loads(out)
        assert report["ok"] == (code == 0)
        return code, {each["check"]: each for each in report["checks"]}

    return run


@pytest.fixture
async def answering():
    """Return a function that serves JSON (or text) at paths, and gives the address."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(answers, status=200):
            async def answer(request):
                if request.path not in answers:
                    raise web.HTTPNotFound
                body = answers[request.path]
                if callable(body):
                    return await body(request)
                return web.Response(text=body if isinstance(body, str) else json.dumps(body), status=status)

            app = web.Application()
            app.router.add_get("/{path:.*}", answer)
            opened = listening(app, "127.0.0.1", 0, keep_alive_seconds=60, shutdown_seconds=0.1)
            return f"http://127.0.0.1:{await stack.enter_async_context(opened)}"

        yield start


async def test_nothing_runs_and_nothing_is_wrong(run, tmp_path):
    code, found = await run("--model-dir", tmp_path)
    assert code == 0
    assert [name for name in found if not name.startswith("port")] == [
        "ffmpeg",
        "engine",
        "cpus",
        "model",
        *ROLES,
        "transcription",
        "speed",
        "microphone",
    ]
    assert found["ffmpeg"]["state"] == "ok"
    assert re.match(r"fast \(OpenVINO [\d.]+\), in (bfloat16|float32)", found["engine"]["detail"])
    for role in ROLES:
        assert found[role]["state"] == "--"
        assert f"`whisper-byoc {'serve' if role == 'container' else role} " in found[role]["advice"]
    assert found["model"]["state"] == "--"
    assert "preload --model tiny" in found["model"]["advice"]
    assert all(each["advice"] for each in found.values() if each["state"] != "ok")


async def test_an_address_that_was_given_must_answer(run, nowhere, monkeypatch):
    code, found = await run("--gateway", nowhere["gateway"])
    assert (code, found["gateway"]["state"], found["container"]["state"]) == (1, "FAIL", "--")
    assert "does not answer" in found["gateway"]["detail"]
    monkeypatch.setenv("WHISPER_BYOC_URL", nowhere["container"])
    assert (await run())[1]["container"]["state"] == "FAIL"
    assert (await run("--container", "http://nonsense.invalid"))[1]["container"]["state"] == "FAIL"


async def test_a_container(run, serving):
    api = await serving({"upper": Upper()})
    code, found = await run("--container", api.url + "/")
    assert (code, found["container"]["state"]) == (0, "ok")
    assert found["container"]["detail"].endswith("serves upper")


async def test_what_a_container_has_measured(run, serving):
    class Measured(Upper):
        def capacity(self):
            return Capacity(53, 70.0, late=False, lag=0.12, cost=0.013, load=0.1, workers=1, threads=2)

    api = await serving({"upper": Measured()})
    await api.put("job", b"ab", query="?more=1")
    _, found = await run("--container", api.url)
    wanted = "upper: 1 workers of 2 threads, 1 live jobs of 53 that fit, late by 0.1 s"
    assert found["container"]["detail"].endswith(wanted)


async def test_a_container_that_loads(run, serving):
    class Slow(Upper):
        async def initialize(self):
            await forever()

    api = await serving({"upper": Slow()}, wait=False)
    code, found = await run("--container", api.url)
    assert (code, found["container"]["state"]) == (1, "FAIL")
    assert "pipeline upper is loading" in found["container"]["detail"]
    assert found["transcription"]["detail"] == f"{api.url} is not ready yet"


async def test_strangers_are_given_nothing_to_transcribe(run, answering):
    url = await answering({"/version": {}, "/transcribe": {"text": "posted"}})
    _, found = await run("--container", url)
    assert (found["transcription"]["state"], "does not answer" in found["transcription"]["detail"]) == ("--", True)


GOOD = {"url": "http://a", "ready": True, "reachable": True, "trouble": ""}
BAD = {"url": "http://b", "ready": False, "reachable": False, "trouble": "connection refused"}
OFFER = {"name": "whisper-tiny", "available": 31}


@pytest.mark.parametrize(
    ("containers", "state", "part"),
    [
        ([GOOD], "ok", "whisper-tiny (31 free)"),
        ([GOOD, BAD], "ok", "problems: http://b: connection refused"),
        ([BAD], "FAIL", "nothing is ready; problems: http://b: connection refused"),
        ([], "FAIL", "nothing is ready"),
    ],
)
async def test_orchestrators_and_gateways(run, answering, containers, state, part):
    orchestrator = await answering({"/capabilities": {"capabilities": [OFFER | {"containers": containers}]}})
    gateway = await answering({"/capabilities": {"capabilities": [OFFER], "orchestrators": containers}})
    _, found = await run("--orchestrator", orchestrator, "--gateway", gateway)
    for role in ("orchestrator", "gateway"):
        assert found[role]["state"] == state
        assert part in found[role]["detail"]


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"capabilities": 3}', "{}", "[" * 100_000, "x" * (2 << 20)])
async def test_strangers(run, answering, answer):
    url = await answering({"/capabilities": answer, "/readyz": answer, "/version": answer})
    code, found = await run(*(word for role in ROLES for word in (f"--{role}", url)))
    assert code == 1
    for role in ROLES:
        assert found[role]["state"] == "FAIL"
        assert found[role]["detail"] == f"{url} does not answer as {role}s do"


async def test_a_service_that_never_answers(run, answering, monkeypatch):
    async def never(_):
        await forever()

    monkeypatch.setattr(doctor, "SERVICE_SECONDS", 0.1)
    url = await answering({"/capabilities": never, "/readyz": never})
    _, found = await run("--container", url, "--gateway", url)
    assert "no answer in time" in found["container"]["detail"]
    assert "no answer in time" in found["gateway"]["detail"]


async def test_a_check_has_a_time_limit():
    found = await doctor.limited("microphone", forever(), 0.05)
    assert (found.state, found.detail) == ("FAIL", "no answer within 0.05 s")


async def test_a_check_that_breaks_is_a_finding(run, monkeypatch):
    async def breaks():
        raise RuntimeError("no")

    monkeypatch.setattr(doctor, "check_microphone", breaks)
    code, found = await run()
    assert (code, found["microphone"]["state"]) == (1, "FAIL")
    assert "RuntimeError: no" in found["microphone"]["detail"]


async def test_lines(capsys, nowhere, answering):
    url = await answering({"/readyz": {"reasons": []}, "/version": {"version": "1\x1b[2J", "model_id": "x"}})
    assert await asyncio.to_thread(main, ["doctor", "--container", url]) == 0
    out = capsys.readouterr().out
    assert f"ok   container     {url}: version 1\ufffd[2J, serves x\n" in out
    assert f"--   gateway       not running at {nowhere['gateway']}\n{'':<19}-> Start it with `whisper-byoc g" in out


async def test_who_has_a_port(answering, serving, run, monkeypatch):
    api = await serving({"upper": Upper()})
    gateway = await answering({"/status": {"role": "gateway", "version": "0"}})
    stranger = await answering({})

    async def found(**urls):
        ports = {role: int(url.rpartition(":")[2]) for role, url in urls.items()}
        services = [dataclasses.replace(each, port=ports[each.role]) for each in doctor.SERVICES]
        monkeypatch.setattr(doctor, "SERVICES", services)
        _, findings = await run()
        return [findings[f"port {port}"]["detail"] for port in ports.values()]

    assert await found(container=api.url, gateway=gateway, orchestrator=stranger) == [
        "the container listens there", "the gateway listens there", "taken by another program",
    ]  # fmt: skip
    assert await found(container=gateway, gateway=api.url, orchestrator=stranger) == [
        "taken by another whisper-byoc, the gateway",
        "taken by another whisper-byoc, the container",
        "taken by another program",
    ]


async def test_a_container_is_asked_what_is_said(run, serving, demo_processor):
    api = await serving({"whisper-demo": demo_processor}, config={"token": "secret"})
    code, found = await run("--container", api.url, "--token", "secret")
    asked = found["transcription"]
    assert (code, asked["state"]) == (0, "ok"), found
    assert re.fullmatch(r"`hello world`, in [\d.]+ s for 1.9 s of `hello world`", asked["detail"])
    _, found = await run("--container", api.url)
    assert (found["transcription"]["state"], "--token" in found["transcription"]["advice"]) == ("--", True)


async def test_a_container_that_hears_nothing_or_has_no_speech(run, serving):
    class Deaf:
        media = "audio"
        content_type = "text/plain; charset=utf-8"

        async def process(self, frame):
            return b""

    class Broken(Deaf):
        async def process(self, frame):
            raise ValueError("no weights")

    for processor, state, part in (
        (Deaf(), "FAIL", "no text, in "),
        (Broken(), "FAIL", "answers 422: the processor failed with ValueError: no weights"),
        (Upper(), "--", "serves no speech"),
    ):
        api = await serving({"test": processor})
        code, found = await run("--container", api.url)
        assert (code, found["transcription"]["state"]) == (int(state == "FAIL"), state)
        assert part in found["transcription"]["detail"]


async def test_what_would_be_faster(run, answering, monkeypatch):
    monkeypatch.setattr(models, "fast_engine_installed", lambda: False)
    monkeypatch.setattr(check_services, "available_cpus", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    size = {"workers": 1, "threads": 1, "live_jobs": 0, "live": 1, "lag": 0.0}
    version = {"version": "1", "model_id": "whisper-medium.en,whisper-tiny,passthrough"}
    url = await answering({"/version": version, "/health": {"capacity": {"whisper-tiny": size}}})
    _, found = await run("--container", url)
    assert found["speed"]["state"] == "--"
    for part in (
        "openvino",
        "more than 2 of the 16 CPUs",
        "instead of whisper-medium.en, which",
        "--workers and --threads",
    ):
        assert part in found["speed"]["advice"]


@pytest.mark.parametrize(
    ("recorder", "state", "part"),
    [
        ("head -c 32000 /dev/urandom", "ok", r"heard at -[45] dBFS, 0 at the loudest"),
        ("head -c 32000 /dev/zero", "--", "digital silence"),
        ("echo no soundcards found >&2; exit 1", "--", "arecord: no soundcards found"),
    ],
)
async def test_the_microphone_is_recorded(script, tmp_path, monkeypatch, recorder, state, part):
    head = shutil.which("head")
    script("arecord", recorder.replace("head", head))
    script("ffmpeg", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = await check_machine.check_microphone()
    assert (found.state, bool(re.search(part, found.detail))) == (state, True), found
    assert bool(found.advice) == (state != "ok")


def test_what_is_said_to_a_container_is_the_fixture(fixtures_dir):
    said, fixture = load_audio(check_services.SPOKEN), load_audio(fixtures_dir / "demo-hello-world.wav")
    assert len(said) == len(fixture)
    assert np.corrcoef(said, fixture)[0, 1] > 0.999


@pytest.fixture
def script(tmp_path):
    """Return a function that makes a program of a shell script."""

    def write(name, text):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "state", "part"),
    [
        ("echo ffmpeg version 6.1", "ok", "6.1 ("),
        ("exit 127", "FAIL", "exit code 127"),
        ("echo hello", "FAIL", "does not run"),
        ("sleep 30", "FAIL", "no answer"),
    ],
)
async def test_kinds_of_ffmpeg(script, monkeypatch, text, state, part):
    path = script("ffmpeg", text)
    monkeypatch.setattr(check_machine, "ffmpeg_path", lambda: str(path))
    monkeypatch.setattr(check_machine, "FFMPEG_SECONDS", 0.3 if "sleep" in text else 10)
    found = await check_machine.check_ffmpeg()
    assert (found.state, part in found.detail) == (state, True), found


async def test_no_ffmpeg(monkeypatch):
    from audio.errors import MediaError

    def none():
        raise MediaError("none")

    monkeypatch.setattr(check_machine, "ffmpeg_path", none)
    found = await check_machine.check_ffmpeg()
    assert found.state == "FAIL"
    assert "install" in found.advice


@pytest.mark.parametrize(("reference", "detail"), [(True, "openai (torch) only"), (False, "none is installed")])
def test_no_fast_engine(monkeypatch, reference, detail):
    monkeypatch.setattr(models, "fast_engine_installed", lambda: False)
    monkeypatch.setattr(models, "reference_engine_installed", lambda: reference)
    found = check_machine.check_engine()
    assert (found.state, found.detail) == ("FAIL", detail)
    assert "pip install openvino" in found.advice


def test_a_converted_model_needs_no_checkpoint(tmp_path):
    (tmp_path / "tiny.en.pt.fast").mkdir()
    found = check_machine.check_model(tmp_path)
    assert (found.state, found.detail) == ("ok", f"whisper-tiny.en ({tmp_path / 'tiny.en.pt.fast'})")


def test_a_damaged_model(tmp_path):
    (tmp_path / "tiny.pt").write_bytes(b"not a model")
    found = check_machine.check_model(tmp_path)
    assert found.state == "FAIL"
    assert "SHA-256" in found.detail
    assert found.advice == "delete the file, then run `whisper-byoc preload --model tiny`."

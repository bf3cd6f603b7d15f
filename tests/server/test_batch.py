"""BYOC batch over real sockets: every format in and out, and every way in which it can go wrong."""

import asyncio
import functools
import io
import json
import subprocess
import tempfile
from pathlib import Path

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audio import pcm
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.wav import read_wav
from tests.server.stubs import Mirror, Says, raw
from tests.waiting import forever, until

NUMBERS = "seven three nine zero five one"


async def post(api, path, data, **options):
    body = io.BytesIO(data) if isinstance(data, bytes) else data
    async with api.http.post(f"{api.url}{path}", data=body, **options) as answer:
        return answer.status, await answer.text(), answer.headers


async def free_again(api):
    await until(lambda: not api.table.jobs)


async def test_json_by_default_with_its_headers(demo, numbers):
    status, body, headers = await post(demo, "/whisper-demo", numbers, headers={"Content-Type": "audio/wav"})
    assert status == 200
    found = json.loads(body)
    assert (found["text"], found["language"], found["duration"]) == (NUMBERS, "en", 3.672)
    assert [each["text"] for each in found["segments"]] == [NUMBERS]
    assert -1 < found["segments"][0]["avg_logprob"] < 0
    assert headers["X-Livepeer-Work-Units"] == "4"
    metadata = json.loads(headers["X-Metadata"])
    assert metadata == {"job_id": metadata["job_id"], "pipeline": "whisper-demo", "audio_ms": 3671, "work_units": 4,
                        "content_type": headers["Content-Type"]}  # fmt: skip
    await free_again(demo)


@pytest.mark.parametrize("content_type", ["audio/mpeg", "application/octet-stream"])
async def test_media(demo, fixtures_dir, tmp_path, content_type):
    path = tmp_path / "sound.mp3"
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", fixtures_dir / "demo-numbers.wav", path]
    subprocess.run(command, check=True, env=ffmpeg_environment())
    headers = {"Content-Type": content_type}
    status, body, headers = await post(demo, "/whisper-demo?format=text", path.read_bytes(), headers=headers)
    assert (status, body) == (200, f"{NUMBERS}\n")
    assert headers["X-Livepeer-Work-Units"] == "4"


@pytest.mark.parametrize("content_type", ["audio/pcm", "application/octet-stream"])
async def test_raw_pcm(demo, numbers, content_type):
    data = pcm.encode(read_wav(numbers))
    _, body, _ = await post(demo, "/whisper-demo?format=text", data, headers={"Content-Type": content_type})
    assert body == f"{NUMBERS}\n"


async def test_what_is_cut_off_is_transcribed_with_a_warning_unless_strict(demo, numbers):
    cut = numbers[:-7000]
    status, body, headers = await post(demo, "/whisper-demo", cut)
    warnings = json.loads(body)["warnings"]
    assert (status, len(warnings)) == (200, 1)
    assert "cut off" in warnings[0]
    assert json.loads(headers["X-Metadata"])["warnings"] == warnings
    status, body, _ = await post(demo, "/whisper-demo?strict=1", cut)
    assert (status, "strict" in json.loads(body)["error"]) == (400, True)
    status, body, _ = await post(demo, "/whisper-demo?strict=1", numbers)
    assert (status, "warnings" in json.loads(body)) == (200, False)


CUE = "00:00:00{mark}576 --> 00:00:03{mark}168\nseven three nine zero five one\n\n"
FORMATS = {
    "text": ("text/plain; charset=utf-8", f"{NUMBERS}\n"),
    "srt": ("application/x-subrip; charset=utf-8", f"1\n{CUE.format(mark=',')}"),
    "vtt": ("text/vtt; charset=utf-8", f"WEBVTT\n\n{CUE.format(mark='.')}"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("way", ["format", "response_format", "accept", "field"])
async def test_formats_of_the_answer(demo, numbers, name, way):
    content_type, text = FORMATS[name]
    query = "" if way in ("accept", "field") else f"?{way}={name}"
    headers = {"Accept": f"audio/x-none, {content_type.partition(';')[0]};q=0.9, */*"} if way == "accept" else {}
    data = numbers
    if way == "field":
        data = aiohttp.FormData({"response_format": name})
        data.add_field("file", numbers, filename="a.wav")
    status, body, headers = await post(demo, f"/whisper-demo{query}", data, headers=headers)
    assert (status, headers["Content-Type"], body) == (200, content_type, text)


async def test_lines_of_subtitles_are_as_long_as_is_asked_for(demo, numbers):
    for query, fields in (("?format=srt&max_line_width=12", {}), ("", {"format": "srt", "max_line_width": "12"})):
        data = aiohttp.FormData(fields)
        data.add_field("file", numbers, filename="a.wav")
        _, body, _ = await post(demo, f"/whisper-demo{query}", data)
        assert [line for line in body.splitlines() if line[:1].isalpha()] == ["seven three", "nine zero", "five one"]
    status, body, _ = await post(demo, "/whisper-demo?format=srt&max_line_width=9", numbers)
    assert (status, "from 10 to 200" in body) == (400, True)


async def test_ndjson_and_a_long_recording(demo, fixtures_dir, texts):
    wav = (fixtures_dir / "demo-long-40s.wav").read_bytes()
    status, body, headers = await post(demo, "/whisper-demo", wav, headers={"Accept": "application/x-ndjson"})
    assert (status, headers["Content-Type"]) == (200, "application/x-ndjson")
    *transcripts, end = map(json.loads, body.splitlines())
    assert len(transcripts) == 4
    assert " ".join(each["text"] for each in transcripts) == texts["demo-long-40s.wav"]["text"]
    assert (end["type"], end["audio_ms"], end["errors"]) == ("end", 40000, 0)
    _, whole, _ = await post(demo, "/whisper-demo", wav)
    ends = [each["end"] for each in json.loads(whole)["segments"]]
    assert ends == sorted(ends)
    assert 30 < ends[-1] <= 40


async def test_sse(demo, fixtures_dir, texts):
    wav = (fixtures_dir / "demo-long-40s.wav").read_bytes()
    status, body, headers = await post(demo, "/whisper-demo?format=sse", wav)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    assert headers["X-Livepeer-Work-Units"] == "40"
    assert body.endswith("data: [DONE]\n\n")
    *events, done = [line.removeprefix("data: ") for line in body.splitlines() if line]
    *transcripts, end = map(json.loads, events)
    assert " ".join(each["text"] for each in transcripts) == texts["demo-long-40s.wav"]["text"]
    assert (done, end["type"]) == ("[DONE]", "end")
    await free_again(demo)


async def test_sse_comes_while_the_work_goes_on(serving):
    slow = Says.gated("done")
    api = await serving({"slow": slow})
    async with api.http.post(f"{api.url}/slow?format=sse", data=io.BytesIO(bytes(40 * 32000))) as answer:
        await slow.begun.wait()
        assert answer.status == 200
        slow.go.set()
        assert (await answer.text()).count("data: ") == 4


async def test_model_text_cannot_end_an_event_stream(serving):
    said = 'it said "[DONE]" \\[DONE] [DONE'
    api = await serving(Says(said, "]"))
    _, body, _ = await post(api, "/test?format=sse", bytes(40 * 32000))
    assert body.count("[DONE]") == 1
    found = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    assert [each["text"] for each in found[:2]] == [said, "]"]


async def test_an_event_that_fits_no_line_is_an_error_event(serving):
    api = await serving(Says("x" * 70_000))
    _, body, _ = await post(api, "/test?format=sse", bytes(320))
    error, done = [line for line in body.splitlines() if line]
    assert json.loads(error[6:])["type"] == "error"
    assert "does not fit" in error
    assert done == "data: [DONE]"
    assert max(map(len, body.splitlines())) < 65536


async def test_parameters_by_query_and_by_form(demo, numbers):
    _, body, _ = await post(demo, "/whisper-demo?words=true", numbers)
    words = json.loads(body)["segments"][0]["words"]
    assert [each["word"] for each in words] == NUMBERS.split()
    assert all(0 <= each["start"] <= each["end"] <= 3.672 for each in words)
    form = aiohttp.FormData({"language": "de", "words": "false"})
    form.add_field("audio", numbers, filename="a.wav")
    status, body, _ = await post(demo, "/whisper-demo?words=true&language=en", form)
    assert status == 400
    assert "'de'" in json.loads(body)["error"]  # the form wins
    status, body, _ = await post(demo, "/whisper-demo?task=translate", numbers)
    assert status == 400
    assert "cannot translate" in json.loads(body)["error"]
    await free_again(demo)


async def test_other_pipelines_get_one_frame_and_give_bytes(serving):
    api = await serving({"mirror": Mirror()})
    async with api.http.post(f"{api.url}/mirror", data=b"RIFFabc") as answer:
        assert (answer.status, await answer.read()) == (200, b"cbaFFIR")
        assert answer.content_type == "application/octet-stream"
        assert "X-Livepeer-Work-Units" not in answer.headers
        assert json.loads(answer.headers["X-Metadata"])["pipeline"] == "mirror"
    status, body, _ = await post(api, "/mirror?format=srt", b"abc")
    assert status == 400
    assert "gives bytes" in body


async def test_which_paths_there_are(serving):
    api = await serving({"mirror": Mirror(), "says": Says(*"abcdef")}, config={"capability": "audio-transcription"})
    sound = bytes(320)
    assert (await post(api, "/says?format=text", sound))[:2] == (200, "a\n")
    assert (await post(api, "/transcribe?format=text", sound))[:2] == (200, "b\n")
    assert (await post(api, "/audio-transcription", b"xy"))[:2] == (200, "yx")
    assert (await post(api, "/", b"xy"))[:2] == (200, "yx")
    assert (await post(api, "/?pipeline=says&format=text", sound))[:2] == (200, "c\n")
    for path in ("/nothing", "/?pipeline=nothing", "/whisper-1x", "/live"):
        status, body, _ = await post(api, path, sound)
        assert status == 404, path
        assert "says" in json.loads(body)["error"]
    for path, status in (("/says", 405), ("/nothing", 404)):
        async with api.http.get(f"{api.url}{path}") as answer:
            assert answer.status == status
    async with api.http.get(f"{api.url}/health") as answer:
        assert answer.status == 200


async def test_text_without_times_has_no_subtitles(serving):
    api = await serving(Says("hello"))
    status, body, _ = await post(api, "/test?format=srt", bytes(320))
    assert status == 406
    assert "no times" in json.loads(body)["error"]
    _, body, _ = await post(api, "/test", bytes(320))
    assert json.loads(body) == {"text": "hello", "language": "und", "duration": 0.01, "segments": []}


@pytest.mark.parametrize("name", ["json", "text", "ndjson"])
async def test_a_segment_that_fails_fails_the_request(serving, name):
    api = await serving(Says("fine", ValueError("no such luck"), "fine"))
    status, body, headers = await post(api, f"/test?format={name}", bytes(70 * 32000))
    assert status == 422
    assert "no such luck" in json.loads(body)["error"]
    assert "X-Livepeer-Work-Units" not in headers
    await free_again(api)


async def test_a_segment_that_fails_ends_an_event_stream(serving):
    api = await serving(Says("fine", ValueError("no such luck"), "fine"))
    status, body, _ = await post(api, "/test?format=sse", bytes(70 * 32000))
    assert status == 200
    first, error, done = [line.removeprefix("data: ") for line in body.splitlines() if line]
    assert json.loads(first)["text"] == "fine"
    assert json.loads(error)["type"] == "error"
    assert "no such luck" in json.loads(error)["error"]
    assert done == "[DONE]"
    await free_again(api)


BAD = [
    (b"", {}, 400, "0 bytes"),
    (b"hello", {"Content-Type": "audio/mpeg"}, 400, "not media"),
    (b"{}", {"Content-Type": "application/json"}, 415, "application/json"),
    (b"x" * 200_001, {"Content-Type": "audio/mpeg"}, 413, "200000 bytes"),
    (b"hello", {"Content-Type": "multipart/form-data"}, 400, "multipart"),
    (b"hello", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "multipart"),
]


@pytest.mark.parametrize(("data", "headers", "status", "words"), BAD)
@pytest.mark.parametrize("chunked", [False, True])
async def test_bad_bodies(serving, data, headers, status, words, chunked):
    api = await serving(Says("never"), recording_bytes=200_000)

    async def pieces():
        yield data

    found, body, _ = await post(api, "/test", pieces() if chunked else data, headers=headers)
    assert found == status
    error = json.loads(body)["error"]
    assert words in error
    assert "\n" not in error
    await free_again(api)


async def test_unknown_format(serving):
    api = await serving(Says("never"))
    status, body, _ = await post(api, "/test?format=[DONE]", bytes(320))
    assert status == 400
    assert "json, text, srt, vtt, ndjson, sse" in json.loads(body)["error"]


def form_of(*parts):
    """A multipart body of (headers, content) pairs."""
    return b"".join(b"--x\r\n%b\r\n\r\n%b\r\n" % part for part in parts) + b"--x--\r\n"


FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"'
FIELD = b'Content-Disposition: form-data; name="language"'
BAD_FORMS = [
    (form_of(), 400, "field named file or audio"),
    (form_of((FIELD, b"en")), 400, "field named file or audio"),
    (form_of((FILE, b"")), 400, "0 bytes"),
    (form_of((FILE, b"ab"), (FILE, b"ab")), 400, "more than one recording"),
    (
        form_of((FILE.replace(b"file;", b"media;").replace(b'"file"', b'"media"'), b"ab")),
        400,
        "media is not accepted here",
    ),
    (form_of((b"Content-Type: audio/wav", b"ab")), 400, "no name"),
    (form_of((FIELD, b"e" * 70_000)), 413, "language is longer"),
    (form_of((FIELD, b"\xff\xfe")), 400, "multipart form"),
    (form_of(*[(FIELD, b"en")] * 64), 400, "no recording"),
    (form_of(*[(FIELD, b"en")] * 65), 400, "more than 64 fields"),
    (form_of((FILE + b"\r\nContent-Transfer-Encoding: base64", b"YWI=")), 415, "encoded"),
    (form_of((FILE + b"\r\nContent-Encoding: gzip", b"ab")), 415, "encoded"),
    (form_of((FILE + b"\r\nContent-Type: multipart/mixed; boundary=y", b"ab")), 400, "form itself"),
    (form_of((FILE, b"x" * 100_001)), 413, "100000 bytes"),
    (form_of((FILE, b"abcdef"))[:-12], 400, "multipart form"),
    (b"--x", 400, ""),
    (b"--x\r\n", 400, ""),
]


@pytest.mark.parametrize(("data", "status", "words"), BAD_FORMS)
async def test_bad_forms(serving, data, status, words):
    api = await serving(Says("never"), recording_bytes=100_000)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    found, body, _ = await post(api, "/test", data, headers=headers)
    assert (found, words in json.loads(body)["error"]) == (status, True), body
    await free_again(api)


PIECES = st.sampled_from(
    [b"--x", b"--x--", b"\r\n", b"\n", FILE, FIELD, b"Content-Length: 5", b"ab", b"\xff", b": ", b"--"]
)


@pytest.mark.filterwarnings("ignore::aiohttp.multipart.BadContentDispositionHeader")  # aiohttp warns, and goes on
async def test_no_form_breaks_the_server(serving):
    """Any bytes are a recording or a 4xx, never a 500; drawn in a thread, as hypothesis knows no loops."""
    api = await serving({"says": Mirror()}, segment_bytes=5000)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    loop = asyncio.get_running_loop()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(PIECES | st.binary(max_size=20), max_size=25).map(b"".join))
    def any_bytes(data):
        answer = asyncio.run_coroutine_threadsafe(post(api, "/says", data, headers=headers), loop).result(20)
        assert answer[0] in (200, 400, 413, 415), (data, answer)

    await asyncio.to_thread(any_bytes)
    await free_again(api)


async def test_busy_is_429_and_never_5xx(serving):
    slow = Says.gated("done")
    api = await serving({"slow": slow}, jobs=1)
    first = asyncio.ensure_future(post(api, "/slow?format=text", bytes(320)))
    await slow.begun.wait()
    status, body, headers = await post(api, "/slow", bytes(320))
    assert status == 429
    assert "busy" in json.loads(body)["error"]
    assert int(headers["Retry-After"]) > 0
    slow.go.set()
    assert (await first)[:2] == (200, "done\n")
    await free_again(api)
    # a live job takes the place as well
    await api.put("live", bytes(320))
    status, body, headers = await post(api, "/slow", bytes(320))
    assert (status, "taken" in body, "Retry-After" in headers) == (429, True, True)


async def test_while_draining_what_is_under_way_is_finished_and_the_rest_is_429(serving):
    slow = Says.gated("done")
    api = await serving({"slow": slow})
    first = asyncio.ensure_future(post(api, "/slow?format=text", bytes(70 * 32000)))
    await slow.begun.wait()
    draining = asyncio.ensure_future(api.table.drain())
    await until(lambda: api.table.draining)
    status, body, headers = await post(api, "/slow", bytes(320))
    assert (status, "shutting down" in body, "Retry-After" in headers) == (429, True, True)
    slow.go.set()
    assert (await first)[:2] == (200, "done done done\n")
    await draining


async def test_loading_is_503_after_a_while(serving):
    class Loading(Says):
        initialize = staticmethod(forever)

    api = await serving({"loading": Loading()}, wait=False, admission_seconds=0.05)
    status, body, headers = await post(api, "/loading", bytes(320))
    assert (status, "not ready" in body, "Retry-After" in headers) == (503, True, True)


async def test_two_requests_at_once(demo, fixtures_dir, texts):
    names = ["demo-hello-world.wav", "demo-stereo-48k.wav", "demo-stop.wav", "demo-numbers.wav"]
    bodies = [(fixtures_dir / name).read_bytes() for name in names]
    answers = await asyncio.gather(*(post(demo, "/whisper-demo?format=text", body) for body in bodies))
    assert [answer[1].strip() for answer in answers] == [texts[name]["text"] for name in names]
    await free_again(demo)


@pytest.mark.parametrize("query", ["", "?format=sse"])
async def test_a_client_that_vanishes_frees_its_job(serving, query):
    slow = Says.gated("done")
    api = await serving({"slow": slow})
    _, writer = await raw(api, f"POST /slow{query} HTTP/1.1\nHost: x\nContent-Length: 320", bytes(320))
    await slow.begun.wait()
    assert len(api.table.jobs) == 1
    writer.transport.abort()
    await free_again(api)
    slow.go.set()
    assert (await post(api, "/slow?format=text", bytes(320)))[1] == "done\n"


async def test_a_client_that_vanishes_in_mid_body_frees_its_place(serving):
    api = await serving({"says": Says("fine")}, jobs=1)
    _, writer = await raw(api, "POST /says HTTP/1.1\nHost: x\nContent-Length: 320", b"abc")

    async def busy():
        return (await post(api, "/says?format=yaml", bytes(320)))[0] == 429

    while not await busy():
        pass
    writer.transport.abort()
    while await busy():
        pass
    assert (await post(api, "/says?format=text", bytes(320)))[1] == "fine\n"


async def test_a_body_that_does_not_come_is_408(serving):
    api = await serving({"says": Says("never")}, idle_seconds=0.1)
    reader, writer = await raw(api, "POST /says HTTP/1.1\nHost: x\nContent-Length: 320", b"abc")
    assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await free_again(api)


@pytest.mark.parametrize("path", ["/sound", "/audio-to-text", "/v1/audio/transcriptions"])
async def test_a_decoder_that_fails_is_not_the_clients_fault(serving, monkeypatch, tmp_path, caplog, path):
    api = await serving({"sound": Says("text")})
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text("#!/bin/sh\nkill -9 $$\n")
    ffmpeg.chmod(0o755)

    async def refused(data=b"ID3 of something"):
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(data), filename="a.mp3", content_type="audio/mpeg")
        status, body, headers = await post(api, path, form)
        assert (status, headers["Retry-After"]) == (503, "5")
        return body

    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=":")
        assert "killed by signal 9" in await refused()
        ffmpeg.write_bytes(b"\x7fELF, but not really")
        assert "cannot be run (Exec format error)" in await refused()
    with monkeypatch.context() as patch:
        full = functools.partial(Path("/dev/full").open, "w+b", 0)
        patch.setattr(tempfile, "TemporaryFile", lambda **_: full())
        assert "No space left on device" in await refused()
        assert "No space left on device" in await refused(b"ID3" + bytes(2 << 20))  # before all of it has come
    assert "Traceback" not in caplog.text

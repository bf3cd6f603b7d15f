"""`GET /live/{job}/transcript`: the whole text, in every form; and what else a live feed of speech promises."""

import asyncio
import json
import re

import pytest

from tests.waiting import until
from whisper_byoc.processors.base import Result

HELLO, NUMBERS = "hello world", "seven three nine zero five one"


async def transcript(api, job, query=""):
    async with api.http.get(f"{api.url}/live/{job}/transcript{query}") as answer:
        return answer.status, await answer.text(), answer.headers


async def feed(api, job, data, query="", size=3333):
    return await api.put(job, [data[at : at + size] for at in range(0, len(data), size)], chunked=True, query=query)


async def until_text(api, job, text):
    await until(lambda: text.encode() in b"".join(api.table.get(job).transcript.lines()))


async def test_every_form_while_the_job_goes_on_and_after_its_end(demo, sound, texts):
    await feed(demo, "job", sound("demo-hello-world.wav") + bytes(32_000), "?more=1&words=true")
    await until_text(demo, "job", HELLO)
    status, text, headers = await transcript(demo, "job")
    assert (status, text, "Lp-Trickle-Closed" in headers) == (200, f"{HELLO}\n", False)
    assert headers["Content-Type"] == "text/plain; charset=utf-8"

    await feed(demo, "job", sound("demo-numbers.wav"))
    async with demo.http.get(f"{demo.url}/live/job/transcript?wait=30") as answer:  # at the end
        assert (await answer.text(), answer.headers["Lp-Trickle-Closed"]) == (f"{HELLO}\n{NUMBERS}\n", "terminated")
    _, text, headers = await transcript(demo, "job", "?format=srt")
    assert headers["Content-Type"] == "application/x-subrip; charset=utf-8"
    assert re.fullmatch(
        r"1\n00:00:00,\d{3} --> 00:00:01,\d{3}\nhello world\n\n2\n00:00:03,\d{3} --> 00:00:05,\d{3}\n"
        + f"{NUMBERS}\n\n", text
    )  # fmt: skip
    _, text, headers = await transcript(demo, "job", "?format=vtt")
    assert headers["Content-Type"] == "text/vtt; charset=utf-8"
    assert text.startswith("WEBVTT\n\n00:00:00.")
    _, text, _ = await transcript(demo, "job", "?format=vtt&max_line_width=12")
    assert "\nseven three\nnine zero\n" in text
    _, text, _ = await transcript(demo, "job", "?format=json")
    assert json.loads(text) == {"text": f"{HELLO} {NUMBERS}", "language": "en"}
    _, text, headers = await transcript(demo, "job", "?format=verbose_json")
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    whole = json.loads(text)
    assert [each["text"] for each in whole["segments"]] == [HELLO, NUMBERS]
    assert [each["word"] for each in whole["segments"][1]["words"]] == NUMBERS.split()
    first, second = whole["segments"]
    assert 0.4 < first["start"] < first["end"] < 1.6
    assert 3.2 < second["start"] < second["words"][-1]["end"] <= second["end"] < 6.2
    _, text, headers = await transcript(demo, "job", "?format=ndjson")
    assert headers["Content-Type"] == "application/x-ndjson"
    records = [json.loads(line) for line in text.splitlines()]
    assert records == [each for each in await demo.records("job") if each["type"] == "transcript"]


async def test_readers_of_results_do_not_shorten_the_transcript(demo, sound):
    await feed(demo, "job", sound("demo-hello-world.wav"), "?partials=true")
    records = await demo.records("job")
    assert records[-1]["type"] == "end"
    assert (await transcript(demo, "job"))[1] == f"{HELLO}\n"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("job/transcript?format=pdf", 400, "txt, json, verbose_json, srt, vtt, ndjson"),
        ("job/transcript?wait=soon", 400, "wait"),
        ("job/transcript?wait=301", 400, "wait"),
        ("other/transcript", 404, "no job 'other'"),
        ("a/b/transcript", 400, "bad job id"),
    ],
)
async def test_what_cannot_be(demo, path, status, words):
    await demo.put("job")
    code, body = await demo.json(f"/live/{path}")
    assert (code, words in body["error"]) == (status, True), body


async def test_silence_has_an_empty_transcript_in_every_form(demo):
    await feed(demo, "job", bytes(64_000), size=16_000)
    assert [each["type"] for each in await demo.records("job")] == ["end"]
    for form, expected in (("txt", ""), ("srt", ""), ("vtt", "WEBVTT\n\n"), ("ndjson", "")):
        assert (await transcript(demo, "job", f"?format={form}"))[:2] == (200, expected)
    assert json.loads((await transcript(demo, "job", "?format=json"))[1])["text"] == ""


class PlainText:
    """Makes transcripts of its input, without times."""

    async def process(self, frame):
        raise AssertionError

    def open_session(self, job):
        return self

    async def feed(self, frame):
        return [Result(frame, {"type": "transcript", "text": frame.decode(), "is_final": True})]

    async def finish(self):
        return []

    def summary(self):
        return {}


async def test_text_without_times_has_no_subtitles(serving):
    api = await serving(PlainText())
    await api.put("job", b"plain words")
    await until_text(api, "job", "plain words")
    for form in ("srt", "vtt"):
        status, body = await api.json(f"/live/job/transcript?format={form}")
        assert (status, "no times" in body["error"]) == (406, True)
    assert json.loads((await transcript(api, "job", "?format=verbose_json"))[1])["text"] == "plain words"


async def test_a_mark_stands_behind_the_text_before_in_every_form(serving):
    api = await serving(PlainText())
    for text in (b"so it is", b".", b"and this", b", which goes on"):
        await api.put("job", text)
    await until_text(api, "job", "goes on")
    assert (await transcript(api, "job"))[1] == "so it is.\nand this,\nwhich goes on\n"
    assert json.loads((await transcript(api, "job", "?format=json"))[1])["text"] == "so it is. and this, which goes on"


async def test_the_beginning_of_a_transcript_goes_when_it_is_too_long(serving):
    api = await serving(PlainText(), transcript_bytes=1000)
    for number in range(20):
        await api.put("job", b"text %d" % number)
    await api.end("job")
    _, text, headers = await transcript(api, "job", "?wait=20")
    kept = text.splitlines()
    assert kept == [f"text {seq}" for seq in range(20 - len(kept), 20)]
    assert int(headers["X-Transcript-Dropped"]) == 20 - len(kept) > 0


@pytest.mark.parametrize(
    "query", ["partials=maybe", "pause=9", "pause=x", "longest=1", "pause=3&longest=3", "hotwords=" + "x" * 1001,
              "words=perhaps"]
)  # fmt: skip
async def test_nonsense_in_the_query_is_400_and_opens_no_job(demo, query):
    status, body, _ = await demo.put("job", bytes(320), chunked=True, query=f"?{query}")
    assert status == 400
    assert query.partition("=")[0] in body["error"]
    assert not demo.table.jobs


async def test_parameters_of_live_text_in_the_query(demo, sound):
    query = "?partials=1&pause=0.3&longest=5&hotwords=Livepeer&prompt=numbers"
    status, _, _ = await feed(demo, "job", sound("demo-numbers.wav"), query)
    assert status == 200
    records = await demo.records("job")
    assert [each["text"] for each in records if each.get("is_final") and each["text"]] == [NUMBERS]


async def test_segments_and_a_feed_in_one_job_share_its_clock(demo, sound):
    hello, numbers = sound("demo-hello-world.wav"), sound("demo-numbers.wav")
    await demo.put("job", hello)
    await feed(demo, "job", numbers, "?more=1")
    await demo.put("job", b"odd")  # which has no text, and takes none along
    await demo.put("job", hello)
    await demo.end("job")
    first, live, odd, last, end = await demo.records("job")
    assert [each["text"] for each in (first, live, last)] == [HELLO, NUMBERS, HELLO]
    assert "3 bytes is not whole" in odd["error"]
    assert live["segments"][0]["start_ms"] == pytest.approx(len(hello) // 32 + 500, abs=200)
    assert last["timing"]["media_window_start_ms"] == (len(hello) + len(numbers) + 2) // 32
    assert end["transcripts"] == 3


async def test_shutting_down_in_mid_utterance_delivers_the_last_words(demo, sound):
    data, stop = sound("demo-numbers.wav"), asyncio.Event()

    async def microphone():
        yield data[: 3 * 32_000]  # he is still speaking
        await stop.wait()

    putting = asyncio.ensure_future(demo.http.put(f"{demo.url}/live/job/source", data=microphone()))
    counter = re.compile(rb'byoc_input_bytes_total\{pipeline="whisper-demo"\} (\S+)')
    await until(lambda: (found := counter.search(demo.table.metrics.render())) and float(found[1]) >= 80_000)
    following = asyncio.ensure_future(demo.records("job"))
    await until(lambda: demo.table.get("job").has_reader)
    draining = asyncio.ensure_future(demo.table.drain())
    *found, end = await following
    stop.set()
    await draining
    answer = await putting
    assert answer.status == 503
    answer.close()
    spoken = " ".join(each["text"] for each in found)
    assert spoken.startswith("seven three nine zero five")
    assert (end["type"], end["errors"]) == ("end", 0)

"""What `send` and `transcribe` share: options of speech, formats and files, and what becomes of a bad sound."""

import asyncio
import json

import pytest

from tests.cli.conftest import refused
from tests.waiting import until
from whisper_byoc.cli.main import main


def transcript(text, start_ms, **fields):
    """A record of one second of speech."""
    segment = {"start_ms": start_ms, "end_ms": start_ms + 1000, "text": text}
    return {"type": "transcript", "seq": 0, "is_final": True, "text": text, "segments": [segment], **fields}


def telling(fake, *records, dies=False):
    """A gateway that takes all, and then gives these records, and an end unless it dies."""

    async def handler(request):
        await request.read()
        answer = await fake.begin(request)
        for record in records if dies else (*records, {"type": "end", "seq": 9}):
            await fake.tell(answer, **record)
        return answer

    return handler


@pytest.fixture
def send(capsys, gateway):
    """Return a function that sends through the gateway, and returns exit code, stdout and stderr."""

    async def run(*words):
        line = ["send", "--gateway", gateway.url, "--pipeline", "x", *map(str, words)]
        return await asyncio.to_thread(main, line), *capsys.readouterr()

    return run


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "talk.pcm"
    path.write_bytes(bytes(3200))
    return path


def test_the_ending_of_a_file_is_its_format(run, fixtures_dir, tmp_path):
    target = tmp_path / "yes.json"
    words = ("transcribe", fixtures_dir / "demo-yes.wav", "--model", "demo")
    assert run(*words, "--words", "-o", target)[:2] == (0, f"{target}\n")
    (segment,) = json.loads(target.read_text())["segments"]
    (word,) = segment["words"]
    assert word["word"].strip() == segment["text"] == "yes"
    assert segment["start"] <= word["start"] <= word["end"] <= segment["end"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("-o FOLDER/a.srt --format vtt", "a.srt ends as srt, and --format says vtt"),
        (
            "-o FOLDER/a.docx",
            "a.docx has the ending of no format (.txt, .json, .srt, .vtt); a new folder is written as",
        ),
        ("FOLDER/talk.pcm -o FOLDER/a.srt", "a.srt is one file, and there are 2 sounds: name a folder"),
        ("-o FOLDER/none/a.srt", "is no folder in which files can be made"),
        ("FOLDER/talk.pcm -o FOLDER/out", "would both be written to"),
        ("- -", "- is there twice"),
        ("--format srt,vtt", "several formats need a folder: --output DIR"),
        ("--beam 9", "'9' is not a whole number from 1 to 8"),
        ("--task sing", "invalid choice: 'sing'"),
    ],
)
@pytest.mark.parametrize("command", ["send", "transcribe"])
def test_what_does_not_fit_is_said_before_anything_is_done(run, sound, command, words, part):
    words = words.replace("FOLDER", str(sound.parent)).split()
    refused(run(command, sound, *words), 2, part)
    assert [*sound.parent.iterdir()] == [sound]


def test_a_parameter_that_cannot_be_is_said_before_a_file_is_read(run, sound):
    sound.write_bytes(b"odd")
    refused(run("transcribe", sound, "--model", "demo", "--task", "translate"), 2, "knows English only")


async def test_json_records_and_another_format_do_not_share_stdout(send, gateway, sound):
    await gateway.serve(telling(gateway))
    code, _, err = await send("--json", "--format", "srt", sound)
    assert (code, "--json has stdout for itself" in err) == (2, True)


async def test_the_options_of_speech_are_parameters_of_the_job(send, gateway, sound):
    await gateway.serve(telling(gateway))
    words = ("--language", "de", "--task", "translate", "--prompt", "Hallo!", "--hotwords", "Berlin", "--words")
    assert (await send(*words, "--beam", 2, sound))[0] == 0
    assert dict(gateway.requests[0].query) == {
        "language": "de", "task": "translate", "prompt": "Hallo!", "hotwords": "Berlin", "words": "true", "beam": "2",
    }  # fmt: skip
    assert (await send(sound))[0] == 0
    assert not gateway.requests[1].query


async def test_a_mark_that_comes_later_is_in_the_cue_before(send, gateway, sound, tmp_path):
    await gateway.serve(telling(gateway, transcript("hello", 0, is_open=True), transcript(". world", 2000)))
    target = tmp_path / "talk.srt"
    assert await send(sound, "-o", target) == (0, f"{target}\n", "")
    cues = "1\n00:00:00,000 --> 00:00:01,000\nhello.\n\n2\n00:00:02,000 --> 00:00:03,000\nworld\n\n"
    assert target.read_text() == cues
    assert await send(sound, "--format", "srt") == (0, cues, "")


@pytest.mark.parametrize("kind", ["srt", "vtt", "txt", "json"])
async def test_a_file_grows_while_the_text_comes(send, gateway, sound, tmp_path, kind):
    target = tmp_path / f"talk.{kind}"

    async def handler(request):
        await request.read()
        answer = await gateway.begin(request)
        await gateway.tell(answer, **transcript("first words", 0))
        await until(lambda: target.exists() and "first words" in target.read_text())
        await gateway.tell(answer, **transcript("second words", 2000))
        await gateway.tell(answer, type="end", seq=9)
        return answer

    await gateway.serve(handler)
    assert await send(sound, "-o", target) == (0, f"{target}\n", "")
    text = target.read_text()
    assert (text.count("first words"), text.count("second words")) == ((2, 2) if kind == "json" else (1, 1))
    if kind == "json":
        assert json.loads(text)["text"] == "first words second words"


async def test_each_segment_is_a_line_as_in_a_file(send, gateway, sound, tmp_path):
    record = transcript("One. Two.", 0)
    halves = [{"start_ms": 0, "end_ms": 500, "text": text} for text in ("One.", "Two.")]
    await gateway.serve(telling(gateway, record | {"segments": halves}))
    assert await send(sound) == (0, "One.\nTwo.\n", "")
    assert (await send(sound, "-o", tmp_path / "a.txt"))[0] == 0
    assert (tmp_path / "a.txt").read_text() == "One.\nTwo.\n"


@pytest.mark.parametrize("segments", [None, 3, [None], [{}], [{"text": "other"}]])
async def test_text_with_strange_segments_is_shown_all_the_same(send, gateway, sound, tmp_path, segments):
    await gateway.serve(telling(gateway, transcript("hello", 0) | {"segments": segments}))
    assert await send(sound) == (0, "hello\n", "")
    if segments != [{"text": "other"}]:
        return
    code, _, err = await send(sound, "-o", tmp_path / "a.srt")
    assert (code, "the server's records are no transcript" in err) == (1, True)


async def test_what_came_before_an_error_is_written(send, gateway, sound, tmp_path):
    target = tmp_path / "talk.txt"
    await gateway.serve(telling(gateway, transcript("first words", 0), dies=True))
    code, out, err = await send(sound, "-o", target)
    assert (code, out, target.read_text()) == (1, f"{target}\n", "first words\n")
    assert err.startswith(f"whisper-byoc: {target} is not complete\n")
    await gateway.serve(telling(gateway, transcript("first words", 0), {"type": "error", "seq": 1, "error": "no"}))
    code, out, err = await send(sound, "-o", target)
    assert (code, out, target.read_text()) == (1, f"{target}\n", "first words\n")
    assert err == f"segment 1 failed: no\nwhisper-byoc: {target} is not complete\n"


async def test_a_sound_that_has_only_errors_has_no_file(send, gateway, sound, tmp_path):
    await gateway.serve(telling(gateway, {"type": "error", "seq": 0, "error": "no"}))
    assert await send(sound, "-o", tmp_path / "talk.txt") == (1, "", "segment 0 failed: no\n")
    assert not (tmp_path / "talk.txt").exists()


async def test_a_bad_file_does_not_keep_others_from_being_sent(send, gateway, sound, tmp_path):
    await gateway.serve(telling(gateway, transcript("hello", 0)))
    broken = tmp_path / "broken.mp3"
    broken.write_bytes(bytes(100))
    folder = tmp_path / "out"
    code, out, err = await send(broken, sound, "-o", folder)
    assert (code, out) == (1, f"{folder / 'talk.txt'}\n")
    assert [each.name for each in folder.iterdir()] == ["talk.txt"]
    first, last = err.splitlines()
    assert f"{broken}' is not media that ffmpeg can read" in first
    assert last == f"whisper-byoc: 1 of 2 failed: {broken}"


async def saying(capsys, *words):
    """Run a command, and return the task, and what it has said on stderr as soon as that is something."""
    running = asyncio.ensure_future(asyncio.to_thread(main, [*map(str, words)]))
    said = []

    def something():
        said.append(capsys.readouterr().err)
        return any(said)

    await until(something)
    return running, "".join(said)


async def test_send_waits_for_a_gateway_whose_container_is_not_ready(gateway, sound, capsys):
    known = {"capabilities": [], "orchestrators": [{"reachable": True}]}
    await gateway.serve(telling(gateway, transcript("hello", 0)), known=known)
    running, said = await saying(capsys, "send", "--gateway", gateway.url, sound)
    known["capabilities"] = [{"name": "only"}]
    assert await running == 0
    assert said == f"whisper-byoc: {gateway.url} has no model that is ready; waiting\n"
    assert capsys.readouterr() == ("hello\n", "")


async def test_send_waits_for_a_model_that_is_loaded(serving, sound, capsys):
    class Slow:
        media = "audio"
        content_type = "text/plain; charset=utf-8"

        def __init__(self):
            self.loaded = asyncio.Event()

        async def initialize(self):
            await self.loaded.wait()

        async def process(self, frame):
            return b"%d bytes" % len(frame)

    processor = Slow()
    api = await serving(processor, wait=False)
    running, said = await saying(capsys, "send", "--url", api.url, sound)
    processor.loaded.set()
    assert await running == 0
    assert said == f"whisper-byoc: {api.url} is still loading its model; waiting\n"
    assert capsys.readouterr() == ("3200 bytes\n", "")

"""`whisper-byoc send`: to a container and through a gateway, files, stdin, a microphone, and Ctrl-C."""

import asyncio
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from tqdm import tqdm

from audio import media
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from tests.waiting import forever, until
from tests.wav import write_wav
from whisper_byoc.cli import sources
from whisper_byoc.cli.main import main
from whisper_byoc.cli.send import BAR, counted
from whisper_byoc.cli.sources import paced, streamable, to_seconds

FIVE_SECONDS = 160_000


class Sound:
    media = "audio"
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame):
        if frame[:2] == b"\xff\x7f":
            raise ValueError("too loud")
        return b"heard %d bytes" % len(frame)


@pytest.fixture(autouse=True)
def no_addresses(monkeypatch):
    for variable in ("WHISPER_BYOC_URL", "WHISPER_BYOC_GATEWAY", "AUTH_TOKEN"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def send(capsys):
    """Return a function that runs the command in a thread, and gives its exit code, stdout and stderr."""

    async def run(*words):
        code = await asyncio.to_thread(main, ["send", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def recording(tmp_path):
    """A file with 5 s of silence."""
    path = tmp_path / "silence.pcm"
    path.write_bytes(bytes(FIVE_SECONDS))
    return path


@pytest.fixture
def launch(spawn):
    """Return a function that runs the command, or another one, in a process."""

    async def start(*words, command="send", stdin=asyncio.subprocess.PIPE, env=None, **options):
        line = (sys.executable, "-m", "whisper_byoc.cli.main", command, *map(str, words))
        environment = {"WHISPER_BYOC_DEBUG": "", "TERM": "xterm"} | (env or {})
        return await spawn(*line, stdin=stdin, env=environment, **options)

    return start


def counting(fake):
    """A gateway that tells how many bytes it has, as partial text while they come and as final text at the end."""

    async def handler(request):
        answer, size, seq = await fake.begin(request), 0, 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            await fake.tell(answer, type="transcript", seq=seq, is_final=False, text=f"so far {size}")
            seq += 1
        await fake.tell(answer, type="transcript", seq=seq, is_final=True, text=f"all {size}")
        await fake.tell(answer, type="end", seq=seq + 1)
        return answer

    return handler


async def test_to_a_container(send, serving, recording):
    api = await serving(Sound())
    assert await send("--url", api.url, recording) == (0, f"heard {FIVE_SECONDS} bytes\n", "")


async def test_errors_of_segments_are_told_and_fail_it(send, serving, tmp_path, recording):
    api = await serving(Sound())
    loud = tmp_path / "loud.pcm"
    loud.write_bytes(b"\xff\x7f" * 100)
    code, out, err = await send("--url", api.url, loud, recording)
    assert (code, out) == (1, f"heard {FIVE_SECONDS} bytes\n")
    told = f"whisper-byoc: 1 of 2 failed: {loud}\n"
    assert err == f"segment 0 failed: the processor failed with ValueError: too loud\n{told}"


async def test_through_a_gateway(send, gateway, recording):
    await gateway.serve(counting(gateway))
    words = ("--gateway", gateway.url, "--pipeline", "x", "--language", "de", recording)
    assert await send(*words) == (0, f"all {FIVE_SECONDS}\n", "")
    assert gateway.requests[0].headers["X-Model-Id"] == "x"
    assert gateway.requests[0].query["language"] == "de"


async def test_json_has_partial_records_too(send, gateway, recording):
    await gateway.serve(counting(gateway))
    code, out, err = await send("--gateway", gateway.url, "--pipeline", "x", "--json", recording)
    records = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert records[0]["is_final"] is False
    assert records[-1]["type"] == "end"


async def test_the_only_model_is_chosen(send, gateway, recording, monkeypatch):
    await gateway.serve(counting(gateway), known={"capabilities": [{"name": "only"}]})
    monkeypatch.setenv("WHISPER_BYOC_GATEWAY", gateway.url)
    assert (await send(recording))[0] == 0
    assert gateway.requests[0].headers["X-Model-Id"] == "only"


async def test_several_models_or_none(send, gateway, recording):
    await gateway.serve(known={"capabilities": [{"name": "one"}, {"name": "two\x1b[2J"}]})
    code, out, err = await send("--gateway", gateway.url, recording)
    assert (code, out) == (2, "")
    assert err.startswith(f"whisper-byoc: {gateway.url} has several models: one, two\ufffd[2J; choose one with")
    await gateway.serve(known={"capabilities": []})
    code, out, err = await send("--gateway", gateway.url, recording)
    assert (code, out) == (1, "")
    assert "has no model" in err


async def test_what_cannot_be_is_one_sentence(send, recording, tmp_path, unused_tcp_port):
    for words, code, part in (
        ((), 2, "nothing to send"),
        (("--microphone", recording), 2, "nothing to send"),
        (("--url", "http://a", "--gateway", "http://b", recording), 2, "exclude each other"),
        (("--gateway", "b", recording), 2, "is not the address of a server"),
        ((tmp_path / "none.wav",), 2, "no such file"),
        (("-", "-"), 2, "- is there twice"),
        (("--gateway", f"http://127.0.0.1:{unused_tcp_port}", recording), 1, "is the server running there"),
        (("--url", f"http://127.0.0.1:{unused_tcp_port}", recording), 1, "is the server running there"),
    ):
        got, out, err = await send(*words)
        assert (got, out) == (code, ""), err
        assert part in err
        assert err.startswith("whisper-byoc: ")
        assert err.count("\n") == 1


async def test_the_command_line_wins_over_the_environment(send, serving, gateway, recording, monkeypatch):
    api = await serving(Sound())
    monkeypatch.setenv("WHISPER_BYOC_GATEWAY", "http://127.0.0.1:9")
    assert (await send("--url", api.url, recording))[0] == 0
    await gateway.serve(counting(gateway))
    monkeypatch.setenv("WHISPER_BYOC_URL", "http://127.0.0.1:9")
    assert (await send("--gateway", gateway.url, "--pipeline", "x", recording))[0] == 0


async def test_a_gateway_that_dies_is_one_sentence(send, gateway, recording):
    async def dies(request):
        answer = await gateway.begin(request)
        await gateway.tell(answer, type="transcript", is_final=True, text="first words")
        await request.read()
        request.transport.abort()
        return answer

    await gateway.serve(dies)
    code, out, err = await send("--gateway", gateway.url, "--pipeline", "x", recording)
    assert code == 1
    assert out in ("first words\n", "")  # a reset may overtake what was sent before it
    assert err.count("\n") == 1
    assert "no answer from" in err
    assert "TransferEncodingError" not in err


async def test_stdin_as_a_pipe_and_as_a_file(launch, gateway, recording):
    await gateway.serve(counting(gateway))
    words = ("--gateway", gateway.url, "--pipeline", "x", "-")
    process = await launch(*words)
    out, err = await process.communicate(bytes(FIVE_SECONDS))
    assert (process.returncode, out, err) == (0, b"all %d\n" % FIVE_SECONDS, b"")
    with recording.open("rb") as file:
        process = await launch(*words, stdin=file)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"all %d\n" % FIVE_SECONDS, b"")


async def test_the_progress_bar_does_not_go_beyond_its_end():
    size, shown = 60494, io.StringIO()
    with tqdm(total=to_seconds(size), bar_format=BAR, file=shown, mininterval=0) as bar:
        assert sum([len(chunk) async for chunk in counted(paced(bytes(size), realtime=False), bar)]) == size
        assert bar.n == bar.total
    assert "100%" in shown.getvalue()


@pytest.mark.parametrize("options", [["-c:a", "libmp3lame", "-f", "mp3"], ["-c:a", "aac", "-f", "ipod"]])
async def test_media_on_stdin(launch, serving, demo_processor, fixtures_dir, tmp_path, options):
    media = tmp_path / "media"  # an M4A has its index at its end, so it is decoded here
    command = [ffmpeg_path(), "-loglevel", "error", "-i", fixtures_dir / "demo-hello-world.wav", *options, media]
    subprocess.run(command, check=True, env=ffmpeg_environment())
    api = await serving({"demo": demo_processor})
    process = await launch("--url", api.url, "-")
    out, _ = await process.communicate(media.read_bytes())
    assert (process.returncode, out) == (0, b"hello world\n")


async def test_a_container_is_no_gateway(send, serving, recording):
    api = await serving(Sound())
    told = f"whisper-byoc: {api.url} is not a gateway; for a container, use --url\n"
    assert await send("--gateway", api.url, recording) == (1, "", told)


async def test_stdin_that_is_dev_null_ends_at_once_and_is_told(launch, gateway):
    await gateway.serve(counting(gateway))
    process = await launch("--gateway", gateway.url, "--pipeline", "x", "-", stdin=asyncio.subprocess.DEVNULL)
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"all 0\n")
    assert err == b"whisper-byoc: Nothing came from /dev/stdin; send sound into it.\n"


@pytest.mark.parametrize(
    ("name", "content", "code", "told"),
    [
        ("folder", None, 2, "folder is a directory; name the files in it"),
        ("cut.wav", b"RIFF\x00\x00\x00\x00WAVEfmt ", 1, "cut.wav: The WAV header is not complete"),
        ("odd.pcm", b"abc", 1, "odd.pcm: "),
    ],
)
async def test_what_cannot_be_sent_is_named(send, tmp_path, name, content, code, told):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    got, out, err = await send("--url", "http://127.0.0.1:1", path)
    assert (got, out) == (code, "")
    assert told in err


async def test_ctrl_c_ends_stdin_and_the_last_words_are_printed(launch, gateway):
    await gateway.serve(counting(gateway))
    process = await launch("--gateway", gateway.url, "--pipeline", "x", "-")
    process.stdin.write(bytes(3200))
    await until(lambda: gateway.running)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"all 3200\n", b"")


async def test_what_had_come_when_ctrl_c_gave_up_is_written(launch, gateway, recording, tmp_path):
    async def never_ends(request):
        answer = await gateway.begin(request)
        segment = {"start_ms": 0, "end_ms": 900, "text": "first words"}
        await gateway.tell(answer, type="transcript", is_final=True, text="first words", segments=[segment])
        await forever()
        return answer

    await gateway.serve(never_ends)
    target = tmp_path / "talk.txt"
    process = await launch("--gateway", gateway.url, "--pipeline", "x", recording, "--json", "-o", target)
    assert b"first words" in await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, target.read_text()) == (130, b"", "first words\n")
    assert err == f"whisper-byoc: {target} is not complete\n".encode()


RECORDER = """#!{python}
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"tail"), os._exit(1)))
open({log!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
while True:
    os.write(1, bytes(3200))
    time.sleep(0.02)
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that puts programs, and only these, on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(**texts):
        for name, text in texts.items():
            path = folder / name
            path.write_text(text.format(python=sys.executable, log=str(tmp_path / "log")))
            path.chmod(0o755)
        return {"PATH": str(folder)}

    return put


async def test_microphone_until_ctrl_c(launch, gateway, programs, tmp_path):
    await gateway.serve(counting(gateway))
    environment = programs(parec="#!/bin/sh\necho Connection refused >&2\nexit 1\n", arecord=RECORDER)
    process = await launch("--gateway", gateway.url, "--pipeline", "x", "--microphone", env=environment)
    await until(lambda: gateway.running)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    size = int(out.removeprefix(b"all "))
    assert size % 3200 == 4  # the last bytes of the recorder came along
    assert (tmp_path / "log").read_text() == "-q -t raw -f S16_LE -c 1 -r 16000\n"


async def test_a_second_ctrl_c_gives_up(launch, gateway, programs):
    stuck = asyncio.Event()

    async def never_ends(request):
        answer = await gateway.begin(request)
        await request.content.read(3200)
        while not request.content.at_eof():
            await request.content.readany()
        stuck.set()
        await forever()
        return answer

    await gateway.serve(never_ends)
    process = await launch("--gateway", gateway.url, "--pipeline", "x", "--microphone", env=programs(arecord=RECORDER))
    await until(lambda: gateway.running)
    process.send_signal(signal.SIGINT)
    await stuck.wait()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    await until(lambda: not gateway.running)


async def test_a_microphone_that_is_unplugged(launch, gateway, programs):
    await gateway.serve(counting(gateway))
    environment = programs(arecord="#!/bin/sh\necho 123456\necho device lost >&2\nexit 1\n")
    process = await launch("--gateway", gateway.url, "--pipeline", "x", "--microphone", env=environment)
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"all 7\n")
    assert err == b"whisper-byoc: the recording stopped by itself (arecord: device lost)\n"


async def test_no_microphone(launch, gateway, programs):
    await gateway.serve(counting(gateway))
    environment = programs(ffmpeg="#!/bin/sh\nexit 0\n", arecord="#!/bin/sh\necho no soundcards found... >&2\nexit 1\n")
    process = await launch("--gateway", gateway.url, "--pipeline", "x", "--microphone", env=environment)
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(b"whisper-byoc: cannot record a microphone (arecord: no soundcards found...); connect")
    assert err.count(b"\n") == 1
    assert not gateway.requests  # nothing was opened for nothing


async def test_nothing_to_record_with(launch, programs):
    environment = programs(ffmpeg="#!/bin/sh\nexit 0\n")
    process = await launch("--microphone", env=environment)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"whisper-byoc: no program here can record a microphone; install")


def screen(written):
    """What a terminal shows after it has received all this."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.|\n", written):
        if part == "\x1b[A":
            row = max(0, row - 1)
        elif part == "\x1b[J":
            rows[row:] = [rows[row][:column]]
        elif part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        else:
            assert len(part) == 1, f"{part!r} is not expected"
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + 1 :]
            column += 1
    return [each.rstrip() for each in rows]


async def in_terminal(launch, *words, command="send", **environment):
    """Run the command in a terminal of 40 columns, and give its exit code and all that it wrote."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    process = await launch(*words, command=command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    written = bytearray()

    def read():
        try:
            while data := os.read(master, 4096):
                written.extend(data)
        except OSError:  # everybody has left
            os.close(master)

    await asyncio.gather(asyncio.to_thread(read), process.wait())
    return process.returncode, written.decode().replace("\r\n", "\n")


async def test_live_text_in_a_terminal(launch, gateway, recording):
    async def handler(request):
        await request.read()
        answer = await gateway.begin(request)
        for record in (
            {"type": "transcript", "seq": 0, "is_final": False, "text": "one two three four five six seven eight nine"},
            {"type": "transcript", "seq": 1, "is_final": True, "text": "one \x1b[2Jtwo"},
            {"type": "error", "seq": 2, "error": "no"},
            {"type": "end", "seq": 3},
        ):
            await gateway.tell(answer, **record)
        return answer

    await gateway.serve(handler)
    code, text = await in_terminal(launch, "--gateway", gateway.url, "--pipeline", "x", recording, NO_COLOR="1")
    assert code == 1
    assert "\x1b[2m" not in text
    before, _, after = text.partition("\x1b[A\r\x1b[J")
    assert screen(before)[0] == "…o three four five six seven eight nine"
    assert "nine\n\rsilence.pcm: " in before  # the bar is on the line below
    assert screen(before + "\x1b[A\r\x1b[J" + after) == ["one \ufffd[2Jtwo", "segment 2 failed: no", ""]


async def test_a_model_that_is_loaded_is_said_on_a_terminal(launch, fixtures_dir):
    words = (fixtures_dir / "demo-yes.wav", "--model", "demo")
    code, text = await in_terminal(launch, *words, command="transcribe")
    assert code == 0
    assert text.startswith("whisper-byoc: loading the model demo …\n")
    assert "yes" in screen(text)


async def test_a_keyboard_is_no_sound(launch):
    code, text = await in_terminal(launch, "-")
    assert code == 2
    assert "stdin is a terminal" in text


@pytest.mark.parametrize("command", ["send", "transcribe"])
async def test_ctrl_c_ends_ffmpeg_and_does_not_wait_for_it(launch, programs, tmp_path, command):
    began, path = tmp_path / "began", tmp_path / "long.mp3"
    path.write_bytes(b"ID3" + bytes(1000))
    move, sleep = shutil.which("mv"), shutil.which("sleep")  # PATH has nothing but the program
    slow = f"#!/bin/sh\necho $$ > {began}.new\n{sleep} 1\n{move} {began}.new {began}\nexec {sleep} 45\n"
    process = await launch(path, command=command, env=programs(ffmpeg=slow) | {"WHISPER_BYOC_MODEL": "demo"})
    await until(began.exists)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    pid = began.read_text().strip()

    def state():  # whoever has lost its parent stays a zombie until somebody looks after it
        return subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout

    await until(lambda: not state() or state().startswith("Z"))


@pytest.mark.parametrize("size", [1, 4, 9])
async def test_a_wav_on_stdin_may_come_in_pieces(size):
    wav = write_wav(np.zeros(1600, dtype=np.float32))

    async def pieces():
        yield wav[:size]
        yield wav[size:]

    assert b"".join([piece async for piece in streamable(pieces())]) == wav


async def test_the_token_may_be_in_a_file_as_for_the_server(send, gateway, recording, monkeypatch, tmp_path):
    await gateway.serve(counting(gateway))
    (tmp_path / "token").write_text("secret\r\n")
    for value in (str(tmp_path / "token"), "secret\r\n"):
        monkeypatch.setenv("AUTH_TOKEN", value)
        assert (await send("--gateway", gateway.url, "--pipeline", "x", recording))[0] == 0
        assert gateway.requests[-1].headers["Authorization"] == "Bearer secret"


async def test_a_file_of_ones_own_may_take_longer_than_an_upload(send, programs, tmp_path, monkeypatch):
    path, sleep = tmp_path / "long.mp3", shutil.which("sleep")
    path.write_bytes(b"ID3" + bytes(1000))
    monkeypatch.setenv("PATH", programs(ffmpeg=f"#!/bin/sh\nexec {sleep} 30\n")["PATH"])
    assert sources.DECODE_SECONDS >= 10 * media.TIMEOUT
    monkeypatch.setattr(sources, "DECODE_SECONDS", 0.5)
    code, out, err = await send("--url", "http://127.0.0.1:1", path)
    assert (code, out) == (1, "")
    assert "was not decoded within 0.5 s" in err

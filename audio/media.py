"""Any container or codec to 16 kHz mono, by ffmpeg: whole files and whole uploads.

ffmpeg is a separate process that parses hostile input, so it gets no network, one file, a time limit and an output
limit. Everything here blocks: call it from a worker thread.
"""

import itertools
import logging
import math
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from audio import pcm
from audio.errors import DecoderFailed, MediaError, UnsupportedWav, WavError
from audio.ffmpeg import CONTAINERS, NO_AUDIO, complaints, ffmpeg_environment, wav_from_file
from audio.ogg import spans
from audio.riff import HEAD_BYTES, begins_like_wav
from audio.sniff import foreign, is_media, promised_size
from audio.wav import BLOCK_SECONDS, WavReader, wav_blocks

log = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Default limit for one call, in seconds, that a minute of sound or a slow start may take."""

MAX_SECONDS = 4 * 3600.0
"""Default limit for the sound in one file, in seconds: a small file can claim years of silence."""

MAX_SECONDS_IN_BLOCKS = 7 * 24 * 3600.0
"""The same where no more than a block is held."""

HANG_SECONDS = 20.0
"""An ffmpeg that gives nothing for so long hangs. It reads a gigabyte through within a few."""

SLOWEST = 30.0
"""Seconds of sound that must be decoded in one, beyond `TIMEOUT`: usually some hundred are, on an idle CPU."""

BLOCK_BYTES = 1 << 20
BLOCK_SAMPLES = BLOCK_SECONDS * pcm.SAMPLE_RATE
"""Of what ffmpeg decodes, at least."""

SILENT = 1e-3
"""Peak below which a track is silent, -60 dB: recorders of screens and meetings leave some unused."""

LONGEST_SILENT = 300.0
"""Seconds without sound behind which a track is not given up for another one."""

MISCOUNTED_BYTES = 4096
"""What a header promises and is not there counts as a wrong header below this, and as lost above."""

MAX_TRACKS = 8

KEPT_LINES = 20
"""Lines of ffmpeg's stderr that are kept: a broken file can make it complain without end."""


Source = bytes | str | os.PathLike[str] | IO[bytes]
"""The content of a file, its path, or an open file, which is not closed."""


def load_audio(
    path: str | os.PathLike[str], *, timeout: float = TIMEOUT, max_seconds: float = MAX_SECONDS
) -> NDArray[np.float32]:
    """Read any sound file whole, as `audio_blocks` does: float32, shape (n,), 16 kHz mono."""
    blocks = audio_blocks(path, timeout=timeout, max_seconds=max_seconds)
    return np.concatenate((np.empty(0, np.float32), *blocks))


def audio_blocks(
    source: Source,
    *,
    timeout: float = math.inf,
    max_seconds: float = MAX_SECONDS_IN_BLOCKS,
    strict: bool = False,
    warn: Callable[[str], object] = log.warning,
) -> Iterator[NDArray[np.float32]]:
    """Read any sound file, however long, in blocks, shape (n,), n > 0, 16 kHz mono, as they are asked for.

    What begins as a WAV is read in process, by `wav_blocks`. A WAV of a format that is not read there, and everything
    else, is left to ffmpeg, by `decoded_blocks`. What is cut off is read as far as it goes, and `warn` is told.

    Raises:
        WavError: a WAV file that is broken.
        MediaError: as `decoded_blocks`.
    """
    with _opened(source) as (file, _):
        if begins_like_wav(file.read(HEAD_BYTES)):
            with suppress(UnsupportedWav):  # ADPCM and so on: ffmpeg reads many more
                yield from wav_blocks(file, int(max_seconds * pcm.SAMPLE_RATE), strict=strict, warn=warn)
                return
    yield from decoded_blocks(source, timeout=timeout, max_seconds=max_seconds, strict=strict, warn=warn)


def in_blocks(samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Cut samples, shape (n,), into blocks of `BLOCK_SAMPLES`; the last one has what is left."""
    return (samples[at : at + BLOCK_SAMPLES] for at in range(0, len(samples), BLOCK_SAMPLES))


def decode_sound(data: bytes, *, timeout: float = TIMEOUT) -> NDArray[np.float32]:
    """Decode bytes without a name or a type, such as those of a pipe: media, or else 16 kHz mono PCM16.

    Returns float32, shape (n,), 16 kHz mono. Raises as `load_audio` does, and `PcmError` for half a sample.
    """
    if is_media(data):
        return np.concatenate((np.empty(0, np.float32), *audio_blocks(data, timeout=timeout, max_seconds=MAX_SECONDS)))
    return pcm.decode(data)


def decode_media(
    source: Source,
    *,
    containers: str = CONTAINERS,
    timeout: float = TIMEOUT,
    max_seconds: float = MAX_SECONDS,
    strict: bool = False,
    warn: Callable[[str], object] = log.warning,
) -> NDArray[np.float32]:
    """Decode the sound of a media file whole: float32, shape (n,), n > 0, else as `decoded_blocks` does."""
    blocks = decoded_blocks(
        source, containers=containers, timeout=timeout, max_seconds=max_seconds, strict=strict, warn=warn
    )
    return np.concatenate(list(blocks))


def decoded_blocks(
    source: Source,
    *,
    containers: str = CONTAINERS,
    timeout: float = TIMEOUT,
    max_seconds: float = MAX_SECONDS,
    strict: bool = False,
    warn: Callable[[str], object] = log.warning,
) -> Generator[NDArray[np.float32], None, None]:
    """Decode the sound of a media file with ffmpeg, as blocks are asked for: of a long file, little is held.

    Args:
        source: ffmpeg must seek in some containers, so content is spooled into a nameless temporary file, and so is an
            open file that is in memory.
        containers: the only ones that it may be, by ffmpeg's names; one alone is not looked for in the bytes.
        timeout: seconds after which ffmpeg is killed, also while nobody asks for a block; with each block it gets those
            in which it should have decoded that at `SLOWEST`.
        max_seconds: the most sound that is accepted, in seconds.
        strict: refuse what ffmpeg could not decode whole; that is known behind its last block.
        warn: is called with a sentence when it could not.

    Yields:
        float32, shape (n,), n > 0, 16 kHz mono, in [-1, 1]: the best audio stream, or else the first that is not
        silent, at its place in the file, with silence where it begins late or has a gap, its channels mixed (see
        `audio.downmix`).

    Raises:
        DecoderFailed: no ffmpeg that runs, one that hangs or is killed, or no room for a temporary file.
        MediaError: no such file, not media, no sound in it, too long, not decoded in time, or damaged, if
            `strict`.
    """
    with _opened(source) as (file, name):
        _write_out(file, name)
        head = _check_head(file, name)
        if (promised := promised_size(head)) > (size := os.fstat(file.fileno()).st_size) + MISCOUNTED_BYTES:
            cut_off = f"{name} is cut off: its header promises {promised} bytes and {size} are there"
            if strict:
                raise MediaError(f"{cut_off}; send all of it, or leave out strict.")
            warn(cut_off)
        parts = spans(file) if head.startswith(b"OggS") else []
        left = max_seconds
        for part in parts if len(parts) > 1 else (None,):
            with ExitStack() as stack:

                def decoding(track: str, part: tuple[int, int] | None = part, stack: ExitStack = stack) -> _Decoding:
                    command = wav_from_file("ogg" if part else containers, track, part)
                    return stack.enter_context(closing(_Decoding(file, name, timeout, max_seconds, command)))

                chosen, begun = _first_heard(decoding)
                for block in itertools.chain(begun, chosen):
                    left -= len(block) / pcm.SAMPLE_RATE
                    if left < 0:
                        raise _too_long(name, max_seconds)
                    yield block
            if chosen.complaint and strict:
                raise MediaError(f"{name} is damaged ({chosen.complaint}); send all of it, or leave out strict.")
            if chosen.complaint:
                warn(f"{name} was not decoded whole, ffmpeg says: {chosen.complaint}")


def _first_heard(decoding: Callable[[str], "_Decoding"]) -> tuple["_Decoding", list[NDArray[np.float32]]]:
    """Return the best track, or else the first that is not silent, and the blocks that have been taken of it."""
    chosen = decoding("a")
    begun, heard = _until_heard(chosen)
    for track in range(MAX_TRACKS) if not heard else ():
        other = decoding(f"a:{track}")
        try:
            its, heard = _until_heard(other)
        except DecoderFailed:
            raise
        except MediaError:  # there is no such track, or nothing in it
            break
        if heard:
            return other, its
    return chosen, begun


def _until_heard(blocks: Iterable[NDArray[np.float32]]) -> tuple[list[NDArray[np.float32]], bool]:
    """Take blocks until one is not silent, or for `LONGEST_SILENT`; return them, and whether it was so."""
    taken, left = [], int(LONGEST_SILENT * pcm.SAMPLE_RATE)
    for block in blocks:
        taken.append(block)
        left -= len(block)
        if left < 0 or np.abs(block).max() >= SILENT:
            return taken, True
    return taken, False


@contextmanager
def _opened(source: Source) -> Iterator[tuple[IO[bytes], str]]:
    """Open a source, at its beginning, and yield what to call it as well."""
    if isinstance(source, bytes):
        with tempfile.SpooledTemporaryFile(len(source) + 1) as file:
            file.write(source)
            file.seek(0)
            yield file, f"The upload of {len(source)} bytes"
    elif isinstance(source, (str, os.PathLike)):
        with _open_file(source) as file:
            yield file, f"The file {os.fspath(source)!r}"
    else:
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        yield source, f"The upload of {size} bytes"


def _write_out(file: IO[bytes], name: str) -> None:
    """Write what is in memory of a temporary file to the disk, where ffmpeg finds it."""
    try:
        file.fileno()
        file.flush()
    except OSError as error:
        why = f"it cannot be written to a temporary file: {error.strerror}"
        raise DecoderFailed(f"{name} cannot be decoded here now ({why}); try again later.") from error


def _open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    path = Path(path)
    if not path.exists():
        raise MediaError(f"There is no file {str(path)!r}; check the path.")
    if not path.is_file():  # a FIFO would block, a device would never end
        raise MediaError(f"{str(path)!r} is not a regular file; give the path of a media file.")
    try:
        return path.open("rb")
    except OSError as error:
        raise MediaError(f"The file {str(path)!r} cannot be opened: {error.strerror}.") from error


def _check_head(file: IO[bytes], name: str) -> bytes:
    head = os.pread(file.fileno(), 1024, 0)
    if not head:
        raise MediaError(f"{name} is empty; send a media file.")
    if what := foreign(head):  # ffmpeg would call it a playlist, or find sound in it
        raise MediaError(f"{name} is {what}, not sound; send a sound or video file.")
    return head


class _Decoding:
    """One ffmpeg at one track: an iterator of blocks, shape (n,), n > 0, and its last complaint when all have come."""

    def __init__(self, file: IO[bytes], name: str, timeout: float, max_seconds: float, command: list[str]) -> None:
        self.complaint = ""
        self._blocks = self._run(file, name, timeout, max_seconds, command)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return self._blocks

    def close(self) -> None:
        self._blocks.close()

    def _run(
        self, file: IO[bytes], name: str, timeout: float, max_seconds: float, command: list[str]
    ) -> Generator[NDArray[np.float32], None, None]:
        lines: deque[bytes] = deque(maxlen=KEPT_LINES)
        reader, samples, most = WavReader(), 0, int(max_seconds * pcm.SAMPLE_RATE)
        pieces, held = [], 0  # of the next block
        too_slow = MediaError(f"{name} was not decoded within {timeout:g} s; send less at a time, or allow more time.")
        began = time.monotonic()

        def left() -> float:
            return began + timeout + samples / (SLOWEST * pcm.SAMPLE_RATE) - time.monotonic()

        with _run_ffmpeg(file, command) as process:
            assert process.stderr is not None
            complaining = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
            try:
                complaining.start()
                for data in _blocks(process, left, name, too_slow):
                    pieces.append(reader.feed(data))
                    held += len(pieces[-1])
                    samples += len(pieces[-1])
                    if samples > most:
                        raise _too_long(name, max_seconds)
                    if held >= BLOCK_SAMPLES:
                        yield np.concatenate(pieces)
                        pieces, held = [], 0
                process.wait(max(0.0, left()))  # closing stdout is the last thing ffmpeg does
            except subprocess.TimeoutExpired:
                raise too_slow from None
            finally:
                _kill(process)
                if complaining.is_alive():
                    complaining.join()
        found = complaints(line.decode(errors="replace") for line in lines)
        if process.returncode:
            raise _failure(name, process.returncode, found)
        with suppress(WavError):  # ffmpeg writes no header where there is no sound
            pieces.append(reader.finish())
        rest = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.float32)
        if not samples + len(rest):
            raise MediaError(f"{name} has an audio stream without any sound in it; check how it was recorded.")
        if len(rest):
            yield rest
        self.complaint = found[-1] if found else ""


def _run_ffmpeg(file: IO[bytes], command: list[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            command, stdin=file, stdout=pipe, stderr=pipe, env=ffmpeg_environment(), start_new_session=True
        )
    except OSError as error:
        raise DecoderFailed(f"{command[0]!r} cannot be run ({error.strerror}); install a working ffmpeg.") from error


def _blocks(
    process: subprocess.Popen[bytes], left: Callable[[], float], name: str, too_slow: MediaError
) -> Iterator[bytes]:
    """Yield ffmpeg's output as it comes.

    Raises `too_slow` when no seconds are `left`, and `DecoderFailed` where nothing comes for `HANG_SECONDS`: whatever
    the media are, ffmpeg gives some of it sooner.
    """
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            seconds = left()
            if not selector.select(max(0.0, min(seconds, HANG_SECONDS))):
                if seconds <= HANG_SECONDS:
                    raise too_slow
                raise DecoderFailed(
                    f"{name} was not decoded: ffmpeg gave nothing for {HANG_SECONDS:g} s; try again later."
                )
            block = os.read(process.stdout.fileno(), BLOCK_BYTES)
            if not block:
                return
            yield block


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole session: ffmpeg on PATH may be a script, whose child would keep the pipes open."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _too_long(name: str, seconds: float) -> MediaError:
    return MediaError(f"{name} holds more than {seconds:g} s of sound, the limit; send it in parts.")


def _failure(name: str, returncode: int, found: list[str]) -> MediaError:
    text = " / ".join(found)
    if NO_AUDIO in found:
        return MediaError(f"{name} has no audio stream; send a file with sound.")
    if "not on whitelist" in text:
        return MediaError(
            f"{name} is a playlist, or of a format that is not read here; send a sound or video file, such as WAV."
        )
    if returncode < 0:
        return DecoderFailed(
            f"{name} was not decoded: ffmpeg was killed by signal {-returncode}; see that there is enough memory, "
            "or convert the file to WAV first."
        )
    reason = found[-1] if found else "invalid data"
    return MediaError(
        f"{name} is not media that ffmpeg can read ({reason}); send a sound or video "
        "file, or say what raw sound it is (encoding, rate, channels)."
    )

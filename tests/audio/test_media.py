import logging
import math
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audio import media, pcm
from audio.errors import DecoderFailed, MediaError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from audio.media import decode_media, load_audio
from audio.wav import WavReader, read_wav
from tests.wav import write_wav

HZ = 1000
SECONDS = 2.0
TONE = (0.5 * np.sin(2 * np.pi * HZ * np.arange(int(SECONDS * 16_000)) / 16_000)).astype(np.float32)

MEDIA = {
    "mp3": ["-f", "mp3"],
    "ogg opus": ["-c:a", "libopus", "-f", "ogg"],
    "ogg vorbis": ["-c:a", "libvorbis", "-f", "ogg"],
    "flac": ["-f", "flac"],
    "webm opus": ["-c:a", "libopus", "-f", "webm"],
    "mp4 aac": ["-c:a", "aac", "-f", "mp4"],
    "adts aac": ["-c:a", "aac", "-f", "adts"],
    "mpeg-ts aac": ["-c:a", "aac", "-f", "mpegts"],
    "aiff": ["-f", "aiff"],
    "asf wma": ["-c:a", "wmav2", "-f", "asf"],
    "44.1 kHz stereo mp3": ["-ar", "44100", "-af", "pan=stereo|c0=c0|c1=c0", "-f", "mp3"],
    "rf64": ["-rf64", "always", "-f", "wav"],
}

Make = Callable[..., Path]


def run_ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(
        [ffmpeg_path(), "-nostdin", "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)],
        check=True,
        timeout=30,
        env=ffmpeg_environment(),
    )


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Encode the tone once with the given options of ffmpeg, and return the file."""
    folder = tmp_path_factory.mktemp("media")
    tone = folder / "tone.wav"
    tone.write_bytes(write_wav(TONE))
    made: dict[tuple[str, ...], Path] = {}

    def make(*options: str) -> Path:
        if options not in made:
            made[options] = folder / f"{len(made)}.media"
            run_ffmpeg("-i", tone, *options, made[options])
        return made[options]

    return make


def assert_is_the_tone(samples: np.ndarray) -> None:
    assert samples.dtype == np.float32
    assert len(samples) / 16_000 == pytest.approx(SECONDS, abs=0.15)  # encoders pad
    middle = samples[8000:24_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == HZ  # one second: a bin per Hz
    assert pcm.dbfs(middle) == pytest.approx(-9.03, abs=0.5)  # a sine of 0.5


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a shell script in front of ffmpeg on PATH, for ways to fail that the real one does not show on demand."""

    def write(script: str) -> Path:
        path = tmp_path / "bin" / "ffmpeg"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
        return path

    return write


def children() -> set[str]:
    """Return the ids of this process's child processes, the dead but unawaited too."""
    return {pid for tasks in Path("/proc/self/task").glob("*/children") for pid in tasks.read_text().split()}


class TestDecode:
    @pytest.mark.parametrize("kind", MEDIA)
    def test_a_path_and_bytes(self, make, kind):
        path = make(*MEDIA[kind])
        assert_is_the_tone(decode_media(path))
        assert_is_the_tone(decode_media(path.read_bytes()))

    def test_bytes_of_an_mp4_with_its_index_at_the_end(self, make):
        data = make("-c:a", "aac", "-f", "mp4").read_bytes()
        assert data.index(b"mdat") < data.index(b"moov")
        assert_is_the_tone(decode_media(data))

    def test_flac_is_exact(self, make):
        assert pcm.encode(decode_media(make("-f", "flac"))) == pcm.encode(TONE)

    def test_raw_gsm_is_known_by_its_frames(self):
        assert len(decode_media((b"\xd0" + bytes(32)) * 100)) == 2 * 100 * 160

    def test_the_sound_of_a_video(self, make, tmp_path):
        video = tmp_path / "video.mkv"
        picture = ["-f", "lavfi", "-i", "testsrc=size=64x64:duration=2"]
        run_ffmpeg(*picture, "-i", make("-f", "flac"), "-c:v", "mpeg4", "-c:a", "aac", video)
        assert_is_the_tone(decode_media(video))

    @pytest.mark.parametrize("name", ["-y", "%03d.mp3", "pipe:0", "http:", "a b'\"é.mp3"])
    def test_a_file_name_is_only_a_name(self, make, tmp_path, monkeypatch, name):
        (tmp_path / name).write_bytes(make("-f", "mp3").read_bytes())
        monkeypatch.chdir(tmp_path)
        assert_is_the_tone(decode_media(name))

    def test_nothing_is_left_behind(self, make, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        before = children()
        decode_media(make("-f", "mp3").read_bytes())
        with pytest.raises(MediaError):
            decode_media(b"no media")
        assert list(tmp_path.iterdir()) == []
        assert children() == before


class TestPlaceInTime:
    @pytest.mark.parametrize("container", ["mp4", "matroska"])
    def test_a_track_that_begins_late_keeps_its_place(self, make, tmp_path, container):
        video = tmp_path / "late"
        picture = ["-f", "lavfi", "-i", "color=size=64x64:duration=4"]
        codecs = ["-c:v", "mpeg4", "-c:a", "aac", "-f", container]
        run_ffmpeg(*picture, "-itsoffset", "1.5", "-i", make("-f", "flac"), *codecs, video)
        samples = decode_media(video)
        assert len(samples) / 16_000 == pytest.approx(1.5 + SECONDS, abs=0.15)
        assert np.abs(samples[: int(1.4 * 16_000)]).max() < 0.01
        assert_is_the_tone(samples[24_000:])

    def test_a_gap_is_silence(self, make, tmp_path):
        gap = tmp_path / "gap.mka"
        drop = "aselect='not(between(t,0.5,1.5))'"
        run_ffmpeg("-i", make("-f", "flac"), "-af", drop, "-c:a", "flac", gap)
        samples = decode_media(gap)
        assert len(samples) / 16_000 == pytest.approx(SECONDS, abs=0.15)
        assert not samples[10_000:22_000].any()


class TestTracks:
    @pytest.mark.parametrize("order", [["0", "1"], ["1", "0"]])
    def test_the_one_that_is_not_silent_is_heard(self, make, tmp_path, order):
        two = tmp_path / "two.mkv"
        silence = ["-f", "lavfi", "-i", "anullsrc=r=48000:cl=stereo:d=2"]
        maps = [word for each in order for word in ("-map", each)]
        run_ffmpeg("-i", make("-f", "flac"), *silence, *maps, "-c:a", "aac", two)
        assert_is_the_tone(decode_media(two))

    def test_silence_in_all_of_them_is_silence(self, tmp_path):
        silent = tmp_path / "silent.mkv"
        run_ffmpeg(
            "-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono:d=1", "-map", "0", "-map", "0", "-c:a", "flac", silent
        )
        assert pcm.is_silence(decode_media(silent))


class TestChannels:
    @pytest.mark.parametrize("pan", ["pan=stereo|c0=c0|c1=-1*c0", "pan=stereo|c1=c0", "pan=5.1|FL=c0|FR=c0"])
    @pytest.mark.parametrize("options", [["-f", "flac"], ["-c:a", "libvorbis", "-q", "9", "-f", "ogg"]])
    def test_no_channel_is_lost_to_another(self, make, pan, options):
        samples = load_audio(make("-af", pan, *options))[8000:24_000]
        assert np.abs(np.fft.rfft(samples)).argmax() == HZ
        assert pcm.dbfs(samples) == pytest.approx(-9.03, abs=8 if "5.1" in pan else 0.5)


class TestErrors:
    @pytest.mark.parametrize("data", [b"hello", bytes(range(256)) * 20, b"\0" * 5000, b"ID3\4\0\0\0\0\0\0"])
    def test_what_is_no_media(self, data):
        with pytest.raises(MediaError, match=f"upload of {len(data)} bytes is not media"):
            decode_media(data)

    def test_nothing(self, tmp_path):
        (tmp_path / "empty.mp3").touch()
        for source in (b"", tmp_path / "empty.mp3"):
            with pytest.raises(MediaError, match="is empty"):
                decode_media(source)

    @pytest.mark.parametrize("read", [decode_media, load_audio])
    def test_a_missing_file(self, tmp_path, read):
        with pytest.raises(MediaError, match=r"no file '.*gone\.mp3'"):
            read(tmp_path / "gone.mp3")

    @pytest.mark.parametrize("read", [decode_media, load_audio])
    def test_what_is_no_file(self, tmp_path, read):
        for path in (tmp_path, Path("/dev/zero")):
            with pytest.raises(MediaError, match="not a regular file"):
                read(path)

    def test_a_video_without_sound(self, tmp_path):
        video = tmp_path / "silent.mp4"
        run_ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64:duration=1", "-c:v", "mpeg4", video)
        with pytest.raises(MediaError, match=r"silent\.mp4' has no audio stream"):
            decode_media(video)

    def test_a_file_without_samples(self):
        with pytest.raises(MediaError, match="without any sound"):
            decode_media(write_wav(TONE[:0]))

    def test_a_cut_off_mp4_says_what_is_missing(self, make):
        data = make("-c:a", "aac", "-f", "mp4").read_bytes()
        with pytest.raises(MediaError, match="moov atom not found"):
            decode_media(data[: len(data) // 2])

    @pytest.mark.parametrize("kind", [("aiff",), ("wav", "-rf64", "always"), ("w64",), ("avi", "-c:a", "mp2")])
    def test_a_file_shorter_than_its_header_promises_is_told(self, make, tmp_path, kind):
        whole = make("-f", *kind).read_bytes()
        told = []
        decode_media(whole, warn=told.append, strict=True)
        assert not told
        cut = whole[: len(whole) // 2]
        assert len(decode_media(cut, warn=told.append)) == pytest.approx(len(TONE) / 2, rel=0.2)
        assert told[0].endswith(f"its header promises {len(whole)} bytes and {len(cut)} are there")
        with pytest.raises(MediaError, match="leave out strict"):
            decode_media(cut, strict=True)

    @pytest.mark.parametrize("kind", ["wav", "avi"])
    def test_a_file_written_to_a_pipe_promises_nothing(self, make, kind):
        source = make("-f", "flac")
        command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", source, "-f", kind, "pipe:1"]
        data = subprocess.run(command, check=True, capture_output=True, env=ffmpeg_environment(), timeout=30).stdout
        told = []
        assert_is_the_tone(decode_media(data, warn=told.append))
        assert not [each for each in told if "promises" in each]

    def test_damage_that_ffmpeg_can_skip_is_logged(self, make, caplog):
        data = bytearray(make("-f", "mp3").read_bytes())
        data[len(data) // 2 : len(data) // 2 + 500] = b"\xff" * 500
        with caplog.at_level(logging.WARNING, "audio.media"):
            assert len(decode_media(bytes(data))) > 0
        assert "ffmpeg says" in caplog.text
        with pytest.raises(MediaError, match="is damaged"):
            decode_media(bytes(data), strict=True)


class TestLimits:
    def test_more_sound_than_allowed(self, make):
        flac = make("-f", "flac")
        with pytest.raises(MediaError, match=r"more than 1\.5 s of sound"):
            decode_media(flac, max_seconds=1.5)
        assert_is_the_tone(decode_media(flac, max_seconds=SECONDS))

    def test_a_small_file_cannot_claim_hours(self, tmp_path):
        long = tmp_path / "long.flac"
        run_ffmpeg("-f", "lavfi", "-i", "anullsrc=r=8000:cl=mono", "-t", "3600", long)
        assert long.stat().st_size < 1_000_000
        with pytest.raises(MediaError, match="more than 60 s"):
            decode_media(long, max_seconds=60)

    def test_a_decode_that_takes_too_long_is_killed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(media, "SLOWEST", math.inf)
        large = tmp_path / "large.wav"
        header = bytearray(write_wav(TONE[:0]))
        header[40:44] = (2**31 - 2**20).to_bytes(4, "little")
        with large.open("wb") as file:
            file.write(header)
            file.truncate(2**31 - 2**20)  # a sparse file: no disk, but seconds of work
        before = children()
        with pytest.raises(MediaError, match=r"not decoded within 0\.05 s"):
            decode_media(large, timeout=0.05, max_seconds=1e6)
        assert children() == before

    @pytest.mark.parametrize("script", ["exec sleep 600", "sleep 600; exit 1"])
    def test_one_that_does_not_answer_is_killed(self, stand_in, script):
        stand_in(script)
        before = children()
        with pytest.raises(MediaError, match=r"not decoded within 0\.2 s"):
            decode_media(b"sound", timeout=0.2)
        assert children() == before

    @pytest.mark.parametrize("script", ["exec sleep 600", "head -c 4000; kill -STOP $$"])
    def test_one_that_hangs_is_not_the_media_s_fault(self, stand_in, monkeypatch, script):
        monkeypatch.setattr(media, "HANG_SECONDS", 0.2)
        stand_in(script)
        before = children()
        with pytest.raises(DecoderFailed, match=r"gave nothing for 0\.2 s; try again later"):
            decode_media(write_wav(TONE))
        assert children() == before

    def test_one_that_complains_without_end_is_heard_out(self, stand_in):
        stand_in("yes complaint | head -n 200000 >&2; cat")
        assert np.array_equal(decode_media(write_wav(TONE)), read_wav(write_wav(TONE)))

    def test_one_that_does_not_start_says_so(self, stand_in):
        stand_in("").write_bytes(b"\x7fELF, but not really")
        with pytest.raises(MediaError, match=r"bin/ffmpeg' cannot be run \(Exec format error\)"):
            decode_media(b"sound")

    def test_one_that_is_killed_says_so(self, stand_in):
        stand_in("kill -9 $$")
        with pytest.raises(MediaError, match="killed by signal 9"):
            decode_media(b"sound")


class TestPlaylists:
    """A playlist must not make the decoder read another file, or fetch an address."""

    @staticmethod
    def playlists(target: Path) -> dict[str, str]:
        return {
            "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nfile://{target}\n#EXT-X-ENDLIST\n",
            "net.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
            "list.ffconcat": f"ffconcat version 1.0\nfile '{target.name}'\n",
            "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
        }

    @pytest.mark.parametrize("name", ["list.m3u8", "net.m3u8", "list.ffconcat", "list.sdp"])
    def test_are_refused(self, tmp_path, make, name):
        target = tmp_path / "private.ts"
        target.write_bytes(make("-c:a", "aac", "-f", "mpegts").read_bytes())
        path = tmp_path / name
        path.write_text(self.playlists(target)[name])
        for source in (path, path.read_bytes()):
            with pytest.raises(MediaError, match=r"is text, not sound"):
                decode_media(source)

    @pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat"])
    def test_would_be_followed_by_a_bare_ffmpeg(self, tmp_path, make, name):
        """Hold the test above to its purpose."""
        target = tmp_path / "private.ts"
        target.write_bytes(make("-c:a", "aac", "-f", "mpegts").read_bytes())
        path = tmp_path / name
        path.write_text(self.playlists(target)[name])
        run_ffmpeg("-i", path, tmp_path / "leaked.wav")
        assert_is_the_tone(load_audio(tmp_path / "leaked.wav"))


class TestLoad:
    def test_a_wav_is_read_in_process_whatever_its_name(self, tmp_path, monkeypatch):
        monkeypatch.setattr("audio.media.wav_from_file", lambda: pytest.fail("ffmpeg was asked for"))
        for name in ("a.wav", "b.bin"):
            (tmp_path / name).write_bytes(write_wav(TONE))
            assert np.array_equal(load_audio(str(tmp_path / name)), read_wav(write_wav(TONE)))

    @pytest.mark.parametrize("codec", ["adpcm_ms", "adpcm_ima_wav", "pcm_mulaw", "pcm_alaw"])
    def test_a_wav_of_another_format_is_left_to_ffmpeg(self, make, codec):
        assert_is_the_tone(load_audio(make("-c:a", codec, "-f", "wav")))

    @pytest.mark.parametrize("kind", ["mp3", "rf64", "mp4 aac"])
    def test_other_media(self, make, kind):
        assert_is_the_tone(load_audio(make(*MEDIA[kind])))

    def test_what_ffmpeg_writes_to_a_pipe(self, make):
        command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-i", str(make("-f", "flac")), "-f", "wav", "pipe:"]
        piped = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
        reader = WavReader()
        assert pcm.encode(np.concatenate([reader.feed(piped), reader.finish()])) == pcm.encode(TONE)
        assert pcm.encode(read_wav(piped, strict=True)) == pcm.encode(TONE)

    @pytest.mark.parametrize("codec", ["pcm_mulaw", "pcm_alaw"])
    def test_g711_is_expanded_as_by_ffmpeg(self, make, tmp_path, codec):
        wav, other = make("-c:a", codec, "-f", "wav"), tmp_path / "same.au"
        run_ffmpeg("-i", wav, "-c", "copy", "-f", "au", other)
        assert pcm.encode(load_audio(wav)) == pcm.encode(load_audio(other))

    @pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0xFFFF_FFFF])
    def test_a_wav_that_was_written_to_a_pipe(self, tmp_path, size):
        path = tmp_path / "piped.wav"
        wav = bytearray(write_wav(TONE))
        struct.pack_into("<I", wav, 4, 0xFFFF_FFFF)
        struct.pack_into("<I", wav, 40, size)
        path.write_bytes(wav)
        assert pcm.encode(load_audio(path)) == pcm.encode(TONE)

    def test_limits_are_passed_on(self, make):
        with pytest.raises(MediaError, match="more than 1 s"):
            load_audio(make("-f", "mp3"), max_seconds=1)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_blocks_are_the_whole_sound_and_no_longer_than_they_need_be(tmp_path, ending):
    path = tmp_path / f"talk.{ending}"
    sound = np.random.default_rng(1).uniform(-0.1, 0.1, 45 * 16_000).astype(np.float32)
    (tmp_path / "talk.wav").write_bytes(write_wav(sound))
    if ending != "wav":
        run_ffmpeg("-i", tmp_path / "talk.wav", path)
    blocks = list(media.audio_blocks(path))
    assert len(blocks) > 3
    assert max(map(len, blocks)) < 2 * media.BLOCK_SAMPLES
    assert np.array_equal(np.concatenate(blocks), media.load_audio(path))


def test_blocks_that_nobody_asks_for_leave_no_ffmpeg_behind(tmp_path):
    path = tmp_path / "talk.flac"
    (tmp_path / "talk.wav").write_bytes(write_wav(np.full(60 * 16_000, 0.1, np.float32)))
    run_ffmpeg("-i", tmp_path / "talk.wav", path)
    before, blocks = children(), media.audio_blocks(path)
    next(blocks)
    blocks.close()
    assert children() == before

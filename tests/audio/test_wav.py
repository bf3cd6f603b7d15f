import contextlib
import io
import math
import struct
import tracemalloc
import wave

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audio import pcm
from audio.errors import UnsupportedWav, WavError
from audio.wav import MAX_LIVE_HEADER, WavReader, read_wav

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
SECOND = 32_000  # bytes
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def fmt(tag=PCM, channels=1, rate=16_000, bits=16, *, align=None, subformat=None) -> bytes:
    align = channels * bits // 8 if align is None else align
    body = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align, bits)
    if subformat is not None:
        body += struct.pack("<HHI", 22, bits, 0) + struct.pack("<H", subformat) + GUID_TAIL
    return chunk(b"fmt ", body)


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def wav(frames: bytes, **format_fields) -> bytes:
    return riff(fmt(**format_fields), chunk(b"data", frames))


def encode(samples: np.ndarray, tag: int, bits: int) -> bytes:
    """Float samples in [-1, 1) as the bytes of a WAV format."""
    if tag == FLOAT:
        return samples.astype(f"<f{bits // 8}").tobytes()
    steps = np.rint(samples * 2 ** (bits - 1)).astype(np.int64)
    if bits == 8:
        return (steps + 128).astype(np.uint8).tobytes()
    if bits == 24:
        return steps.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return steps.astype(f"<i{bits // 8}").tobytes()


def stream(data: bytes, sizes: list[int]) -> np.ndarray:
    """Read through WavReader in pieces of `sizes` bytes, over and over."""
    reader, pieces, at, turn = WavReader(), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(reader.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    return np.concatenate([*pieces, reader.finish()])


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, n)


FRAMES = pcm.encode(noise(400).astype(np.float32))
ENCODINGS = [(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)]


class TestFormats:
    def test_16_bit_mono_at_16_khz_is_exactly_its_pcm(self):
        every_step = np.arange(-32768, 32768, dtype="<i2").tobytes()
        assert np.array_equal(read_wav(wav(every_step)), pcm.decode(every_step))

    @pytest.mark.parametrize(("tag", "bits"), ENCODINGS)
    @pytest.mark.parametrize("extensible", [False, True])
    def test_every_width(self, tag, bits, extensible):
        samples = noise(500)
        fields = {"tag": EXTENSIBLE, "subformat": tag} if extensible else {"tag": tag}
        read = read_wav(wav(encode(samples, tag, bits), bits=bits, **fields))
        assert read.dtype == np.float32
        assert read.shape == (500,)
        step = 2.0 ** -(min(bits, 24) - 1)
        assert np.abs(read - samples).max() <= step

    @pytest.mark.parametrize(("tag", "bits"), ENCODINGS[:4])
    def test_the_ends_of_the_integer_range(self, tag, bits):
        top = 1 - 2.0 ** -(bits - 1)
        read = read_wav(wav(encode(np.array([-1, 0, top]), tag, bits), tag=tag, bits=bits))
        assert read[0] == -1
        assert read[1] == 0
        assert read[2] == np.float32(top)

    @pytest.mark.parametrize("channels", [2, 9, 16, 64])
    def test_one_voice_among_many_channels_is_heard_as_it_is(self, channels):
        frames = np.zeros((300, channels), dtype=np.float32)
        frames[:, -1] = noise(300)
        read = read_wav(wav(encode(frames.reshape(-1), FLOAT, 32), tag=FLOAT, bits=32, channels=channels))
        assert read == pytest.approx(frames[:, -1], abs=1e-6)

    @pytest.mark.parametrize("channels", range(1, 9))
    def test_channels_are_averaged(self, channels):
        frames = noise(channels * 300).reshape(-1, channels)
        read = read_wav(wav(encode(frames.reshape(-1), FLOAT, 32), tag=FLOAT, bits=32, channels=channels))
        assert read == pytest.approx(frames.mean(axis=1), abs=1e-6)

    @pytest.mark.parametrize("bits", [32, 64])
    def test_floats_that_are_no_samples_do_not_spoil_the_rest(self, bits):
        samples = np.array([0.5, math.nan, math.inf, -math.inf, 7, -3e38, -0.25])
        read = read_wav(wav(encode(samples, FLOAT, bits), tag=FLOAT, bits=bits))
        assert read.tolist() == [0.5, 0, 1, -1, 1, -1, -0.25]

    def test_unknown_chunks_are_skipped_with_their_padding(self):
        data = riff(
            chunk(b"LIST", b"odd"), fmt(), chunk(b"fact", bytes(4)), chunk(b"id3 ", b"x"), chunk(b"data", FRAMES)
        )
        assert np.array_equal(read_wav(data), pcm.decode(FRAMES))
        assert np.array_equal(stream(data, [7]), pcm.decode(FRAMES))

    def test_chunks_behind_the_sound_are_not_sound(self):
        data = riff(fmt(), chunk(b"data", FRAMES), chunk(b"LIST", b"made by hand"))
        assert np.array_equal(read_wav(data), pcm.decode(FRAMES))
        assert np.array_equal(stream(data, [7]), pcm.decode(FRAMES))

    def test_a_whole_file_may_have_a_large_chunk_before_the_sound(self):
        data = riff(chunk(b"JUNK", bytes(MAX_LIVE_HEADER)), fmt(), chunk(b"data", FRAMES))
        assert np.array_equal(read_wav(data), pcm.decode(FRAMES))

    def test_a_wrong_riff_size_does_not_matter(self):
        for size in (0, 5, 0xFFFF_FFFF):
            data = riff(fmt(), chunk(b"data", FRAMES), size=size)
            assert np.array_equal(read_wav(data), pcm.decode(FRAMES))

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(riff(chunk(b"LIST", b"INFO"), fmt(), chunk(b"data", FRAMES)), id="LIST before fmt"),
            pytest.param(riff(fmt(), b"LIST\5\0\0\0INFOx", chunk(b"data", FRAMES)), id="no padding"),
            pytest.param(riff(fmt(), chunk(b"LIST", b"INFOx"), chunk(b"data", FRAMES)), id="padding"),
            pytest.param(riff(fmt(), chunk(b"data", FRAMES, size=0)), id="size of 0 though that of the file is right"),
            pytest.param(riff(fmt(), chunk(b"id3 ", bytes(300_001)), chunk(b"data", FRAMES)), id="a picture"),
            pytest.param(wav(FRAMES, tag=EXTENSIBLE), id="extensible without an extension"),
            pytest.param(wav(FRAMES, tag=EXTENSIBLE, subformat=1).replace(GUID_TAIL, bytes(14)), id="another GUID"),
            pytest.param(
                b"RIFX\0\0\0\0WAVEfmt "
                + struct.pack(">IHHIIHH4sI", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", 800)
                + np.frombuffer(FRAMES, "<i2").byteswap().tobytes(),
                id="big endian",
            ),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("size", [997, 999_999])
    def test_headers_are_read_forgivingly(self, data, size):
        assert np.array_equal(read_wav(data), pcm.decode(FRAMES))
        assert np.array_equal(stream(data, [size]), pcm.decode(FRAMES))

    def test_mu_law_has_8_bits_whatever_its_header_says(self):
        codes = bytes(range(256)) * 2
        assert np.array_equal(read_wav(wav(codes, tag=7, bits=16)), read_wav(wav(codes, tag=7, bits=8)))

    def test_an_empty_recording_has_no_samples(self):
        assert read_wav(wav(b"")).shape == (0,)
        assert read_wav(riff(fmt(rate=44_100), chunk(b"data", b""), chunk(b"LIST", b"none"))).shape == (0,)


class TestRates:
    @pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 47_999, 48_000, 192_000])
    @pytest.mark.parametrize("n", [1, 2, 777, 48_001])
    def test_length(self, rate, n):
        read = read_wav(wav(encode(noise(n), PCM, 16), rate=rate))
        assert abs(len(read) - n * 16_000 / rate) < 1

    @pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 192_000])
    def test_a_tone_keeps_its_pitch_level_and_phase(self, rate):
        tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
        read = read_wav(wav(encode(tone, PCM, 24), rate=rate, bits=24))
        expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(len(read)) / 16_000)
        middle = slice(2000, 14_000)
        assert read[middle] == pytest.approx(expected[middle], abs=1e-4)

    def test_what_16_khz_cannot_hold_is_filtered_out(self):
        tone = 0.5 * np.sin(2 * np.pi * 11_000 * np.arange(48_000) / 48_000)
        read = read_wav(wav(encode(tone, PCM, 16), rate=48_000))
        assert pcm.dbfs(read[2000:14_000]) < -80

    def test_a_whole_file_and_a_stream_are_alike_beyond_one_block(self):
        data = wav(encode(noise(1_400_000), PCM, 16), rate=48_000, channels=2)
        assert read_wav(data) == pytest.approx(stream(data, [100_001]), abs=1e-6)


class TestBroken:
    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (b"", "0 bytes"),
            (b"RIFF", "4 bytes"),
            (b"RIFF\0\0\0\0WAVE", "12 bytes"),
            (b"not a wave file at all", "begins with 'not a wave f'"),
            (b"RIFF\0\0\0\0AVI LIST", "AVI"),
            (riff(fmt()), "no data chunk"),
            (riff(chunk(b"data", FRAMES), fmt()), "before any format chunk"),
            (riff(chunk(b"fmt ", bytes(12)), chunk(b"data", FRAMES)), "has 12 bytes"),
            (wav(FRAMES, bits=24, align=4), "are 3 bytes a frame, not 4"),
            (wav(FRAMES) + wav(FRAMES), "second WAV"),
            (riff(fmt(), chunk(b"data", FRAMES), chunk(b"LIST", b"INFOx"), chunk(b"data", FRAMES)), "chunk of sound"),
            (wav(FRAMES, rate=0), "says 0 Hz"),
            (wav(FRAMES, rate=1_999), "says 1999 Hz"),
            (riff(fmt(), chunk(b"LIST", b"", size=0xFFFF_FFF0), chunk(b"data", FRAMES)), "no sound within"),
        ],
    )
    def test_a_broken_file_is_an_error_that_says_why(self, data, says):
        with pytest.raises(WavError, match=says) as caught:
            read_wav(data)
        assert not isinstance(caught.value, UnsupportedWav)

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (wav(FRAMES, tag=2, bits=4), "0x0002 .Microsoft ADPCM. with 4 bits"),
            (wav(FRAMES, tag=0x1234), "0x1234 .unknown."),
            (wav(FRAMES, tag=EXTENSIBLE, bits=4, subformat=0x11), "IMA ADPCM"),
            (wav(FRAMES, bits=12), "12 bits"),
            (wav(FRAMES, tag=FLOAT, bits=16), "IEEE float. with 16 bits"),
            (wav(FRAMES, channels=0), "0 channels"),
            (wav(FRAMES, channels=65), "65 channels"),
            (wav(FRAMES, rate=7_999), "7999 Hz"),
            (wav(FRAMES, rate=192_001), "192001 Hz"),
            (b"RF64" + wav(FRAMES)[4:], "RF64"),
            (b"BW64" + wav(FRAMES)[4:], "BW64"),
        ],
    )
    def test_a_format_that_is_not_read_is_named(self, data, says):
        with pytest.raises(UnsupportedWav, match=says):
            read_wav(data)
        with pytest.raises(UnsupportedWav, match=says):
            stream(data, [len(data)])

    @given(st.integers(0, 43))
    def test_a_file_cut_in_its_header_is_an_error(self, at):
        with pytest.raises(WavError):
            read_wav(wav(FRAMES)[:at])

    @given(st.integers(44, 44 + 2 * SECOND))
    def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(self, at):
        warnings = []
        assert len(read_wav(wav(bytes(2 * SECOND))[:at], warn=warnings.append)) == (at - 44) // 2
        missing = 44 + 2 * SECOND - at
        assert [str(2 * SECOND) in each for each in warnings] == [True] * (missing > SECOND // 10)
        if missing:
            with pytest.raises(WavError, match=f"promises {2 * SECOND} bytes of sound and {at - 44} are there"):
                read_wav(wav(bytes(2 * SECOND))[:at], strict=True)

    def test_what_is_lost_is_logged_by_default(self, caplog):
        read_wav(wav(bytes(SECOND))[: SECOND // 2])
        assert "cut off" in caplog.text

    @pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
    @pytest.mark.parametrize("cut", [0, 1])
    def test_a_file_written_to_a_pipe_goes_on_to_its_end(self, size, cut):
        tag = chunk(b"LIST", bytes(2 * MAX_LIVE_HEADER))
        data = riff(fmt(), tag, chunk(b"data", FRAMES, size=size), size=0xFFFF_FFFF) + bytes(cut)
        assert np.array_equal(read_wav(data, len(FRAMES) // 2, strict=True), pcm.decode(FRAMES))
        with pytest.raises(WavError, match="over the limit"):
            read_wav(data, len(FRAMES) // 2 - 1)

    @pytest.mark.parametrize("align", [0, 1, 4, 9999])
    def test_the_frame_size_of_the_header_does_not_matter(self, align):
        assert np.array_equal(read_wav(wav(FRAMES, align=align), strict=True), pcm.decode(FRAMES))
        assert np.array_equal(stream(wav(FRAMES, align=align), [99]), pcm.decode(FRAMES))

    def test_an_incomplete_frame_at_the_end_is_left_out(self):
        assert np.array_equal(read_wav(wav(FRAMES + b"x"), strict=True), pcm.decode(FRAMES))


class TestStream:
    @given(
        encoding=st.sampled_from(ENCODINGS),
        channels=st.integers(1, 8),
        sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
        samples=st.integers(0, 200),
    )
    def test_any_chunking_gives_the_same(self, encoding, channels, sizes, samples):
        tag, bits = encoding
        data = wav(encode(noise(samples * channels), tag, bits), tag=tag, bits=bits, channels=channels)
        assert np.array_equal(stream(data, sizes), read_wav(data))

    @given(
        rate=st.sampled_from([8_000, 22_050, 44_100, 48_000]),
        sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 50),
        frames=st.integers(0, 3000),
    )
    def test_any_chunking_gives_the_same_when_resampled(self, rate, sizes, frames):
        data = wav(encode(noise(frames * 2), PCM, 16), rate=rate, channels=2)
        assert stream(data, sizes) == pytest.approx(read_wav(data), abs=1e-6)

    @pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF])
    def test_sizes_that_mean_until_the_end(self, size):
        data = riff(fmt(), chunk(b"data", FRAMES, size=size), size=0xFFFF_FFFF)
        assert np.array_equal(stream(data, [99]), pcm.decode(FRAMES))

    def test_sound_comes_out_as_it_goes_in(self):
        reader = WavReader()
        data = riff(fmt(), chunk(b"data", FRAMES, size=0))
        assert [reader.feed(data[:40]).size, reader.feed(data[40:45]).size] == [0, 0]
        assert reader.feed(bytearray(data[45:48])).tolist() == pcm.decode(FRAMES[:4]).tolist()

    def test_an_unfinished_frame_is_ignored(self):
        data = riff(fmt(bits=24, channels=2), chunk(b"data", bytes(600 + 4), size=0))
        assert stream(data, [7]).size == 100

    def test_the_resampler_gives_its_tail_at_the_end(self):
        reader = WavReader()
        data = wav(encode(noise(4800), PCM, 16), rate=48_000)
        before = len(reader.feed(data))
        assert before < 1600
        assert before + len(reader.finish()) == 1600

    @given(st.integers(0, 43), st.integers(1, 100))
    def test_a_stream_that_ends_in_its_header_is_an_error(self, at, size):
        with pytest.raises(WavError, match="not complete"):
            stream(wav(FRAMES)[:at], [size])

    @pytest.mark.parametrize(("missing", "says"), [(44, []), (3202, ["64000 bytes of sound and 60798 are there"])])
    def test_a_stream_that_ends_early_says_so(self, missing, says):
        reader = WavReader()
        assert reader.in_header
        heard = reader.feed(wav(bytes(2 * SECOND))[:-missing])
        assert (len(heard) + len(reader.finish()), reader.in_header) == (SECOND - missing // 2, False)
        assert [said in warning for said, warning in zip(says, reader.warnings, strict=True)] == [True] * len(says)

    @pytest.mark.parametrize("behind", [bytes(SECOND), chunk(b"LIST", b"INFOx") + bytes(SECOND)])
    def test_bytes_behind_the_sound_that_are_no_chunks_are_told(self, behind):
        data, told = wav(FRAMES) + behind, []
        assert len(read_wav(data, warn=told.append)) == len(FRAMES) // 2
        for size in (1, 7, len(data)):
            reader = WavReader()
            for at in range(0, len(data), size):
                reader.feed(data[at : at + size])
            reader.finish()
            told += reader.warnings
        assert (
            told
            == [
                f"The WAV header promises {len(FRAMES)} bytes of sound; the {len(behind)} bytes behind them "
                "were not read"
            ]
            * 4
        )

    def test_sound_behind_other_chunks_is_an_error_in_a_stream(self):
        data = riff(fmt(), chunk(b"data", FRAMES), chunk(b"LIST", b"INFOx"), chunk(b"data", FRAMES))
        for sizes in ([len(data)], [1], [99]):
            with pytest.raises(WavError, match="chunk of sound"):
                stream(data, sizes)

    @pytest.mark.parametrize("frames", [b"123", FRAMES])
    def test_a_second_wav_behind_the_first_is_an_error(self, frames):
        first = wav(frames)
        for sizes in ([len(first)], [1], [9999]):
            with pytest.raises(WavError, match="second WAV"):
                stream(first + wav(FRAMES), sizes)

    @pytest.mark.parametrize(
        "metadata",
        [
            chunk(b"LIST", b"", size=0xFFFF_FFF0),
            chunk(b"JUNK", bytes(MAX_LIVE_HEADER)),
            chunk(b"x   ", bytes(999)) * 1100,
        ],
    )
    @pytest.mark.parametrize("size", [1000, 1_000_000])
    def test_a_header_without_end_is_refused(self, metadata, size):
        with pytest.raises(WavError, match="no sound within its first 1048576 bytes"):
            stream(riff(fmt(), metadata, chunk(b"data", FRAMES)), [size])

    def test_a_long_stream_is_not_kept(self):
        block = bytes(64 * 1024)
        reader = WavReader()
        reader.feed(riff(fmt(rate=48_000), chunk(b"data", block, size=0)))
        tracemalloc.start()
        try:
            for _ in range(100):
                reader.feed(block)
            assert tracemalloc.get_traced_memory()[1] < 10 * len(block)
        finally:
            tracemalloc.stop()

    def test_what_is_no_wav_is_refused_at_its_first_bytes(self):
        with pytest.raises(WavError, match="not a WAV file"):
            WavReader().feed(b"RX")


class TestHostile:
    def test_a_large_file_is_not_copied(self):
        data = riff(fmt(channels=8, rate=48_000, bits=32), chunk(b"data", bytes(8 << 20)))
        tracemalloc.start()
        try:
            assert len(read_wav(data)) == (8 << 20) // 32 // 3
            assert tracemalloc.get_traced_memory()[1] < 6 << 20
        finally:
            tracemalloc.stop()

    """Whatever arrives, the outcome is sound that the input can hold, or a WavError."""

    @staticmethod
    def check(data: bytes, size: int) -> None:
        for read in (read_wav, lambda data: stream(data, [size])):
            with contextlib.suppress(WavError):
                samples = read(data)
                assert len(samples) <= 2 * len(data)  # 8-bit mono at 8 kHz is the densest
                assert np.isfinite(samples).all()

    @given(st.binary(max_size=300), st.integers(1, 300))
    def test_random_bytes(self, data, size):
        self.check(data, size)

    @given(st.binary(max_size=100), st.binary(max_size=300), st.integers(1, 300))
    @example(struct.pack("<HHIIHH", FLOAT, 1, 8_000, 0, 8, 64), b"\x01\x00\x00\x00\x00\x00\xf4\x7f" * 9, 50)
    @example(struct.pack("<HHIIHH", FLOAT, 1, 16_000, 0, 4, 32), b"\x01\x00\xa0\x7f" * 9, 50)
    def test_random_chunks(self, format_body, sound, size):
        self.check(riff(chunk(b"fmt ", format_body), chunk(b"data", sound)), size)

    @given(
        encoding=st.sampled_from(ENCODINGS),
        changes=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), min_size=1, max_size=4),
        size=st.integers(1, 300),
    )
    def test_changed_headers(self, encoding, changes, size):
        tag, bits = encoding
        data = bytearray(wav(encode(noise(100), tag, bits), tag=EXTENSIBLE, subformat=tag, bits=bits))
        for at, value in changes:
            data[at] = value
        self.check(bytes(data), size)

    @pytest.mark.parametrize("rate", [8_001, 15_999, 16_001, 191_999])
    def test_odd_rates_cost_no_odd_memory(self, rate):
        self.check(wav(encode(noise(1000), PCM, 16), rate=rate), 333)


class TestStandardLibrary:
    @pytest.mark.parametrize(("bits", "channels"), [(8, 1), (16, 1), (16, 2), (24, 1), (32, 3)])
    def test_we_read_what_the_standard_library_writes(self, bits, channels):
        frames = noise(300 * channels)
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((channels, bits // 8, 16_000, 0, "NONE", ""))
            writer.writeframes(encode(frames, PCM, bits))
        read = read_wav(file.getvalue())
        assert read == pytest.approx(frames.reshape(-1, channels).mean(axis=1), abs=2.0 ** -(min(bits, 22) - 1))

"""Voice activity of many streams: speech is found where it is, and no stream changes what is found in another."""

import asyncio
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio.utterances import CHUNK, SplitterOptions, UtteranceSplitter
from audio.wav import read_wav
from tests.waiting import until
from whisper_byoc.errors import ProcessorError
from whisper_byoc.processors.whisper import load_silero
from whisper_byoc.speech import step_watch
from whisper_byoc.speech import voice_activity as module
from whisper_byoc.speech.voice_activity import CONTEXT, STATE, Memory, VoiceActivity

RATE = 16_000
CLEAN = [
    *("demo-stop.wav", "demo-yes.wav", "demo-hello-world.wav", "demo-start-recording.wav", "demo-numbers.wav"),
    *("demo-directions-slow.wav", "demo-spelling.wav", "demo-pipeline.wav", "demo-colours-fast.wav"),
    *("demo-stereo-48k.wav", "demo-numbers-noise-15db.wav", "demo-long-40s.wav"),
    *("tiny-weather.wav", "tiny-train.wav", "tiny-meeting.wav", "tiny-fox-fast.wav", "tiny-garden.wav"),
]
PATIENT = SplitterOptions(pause=0.6, shortest_pause=0.6, longest=28.0)
"""Breaths within an utterance of the fixtures do not end it."""


@pytest.fixture(scope="module")
def service():
    made = VoiceActivity(load_silero)
    asyncio.run(made.start())
    yield made
    asyncio.run(made.stop())


def chunked(samples):
    """Whole chunks of PCM16, (n, CHUNK)."""
    whole = np.clip(samples * 32768, -32768, 32767).astype(np.int16)
    return whole[: len(whole) // CHUNK * CHUNK].reshape(-1, CHUNK)


async def utterances(service, samples, options=PATIENT):
    splitter, chunks = UtteranceSplitter(options), chunked(samples)
    return [*splitter.feed(chunks.ravel(), await service.stream().rate(chunks)), *splitter.finish()]


@pytest.mark.parametrize("level", [1.0, 0.01])
@pytest.mark.parametrize("name", CLEAN)
async def test_the_speech_of_a_fixture_is_found_where_it_is(service, fixtures_dir, texts, name, level):
    found = await utterances(service, read_wav((fixtures_dir / name).read_bytes()) * level)
    known = texts[name]["utterances"]
    assert len(found) == len(known)
    for utterance, truth in zip(found, known, strict=True):
        assert utterance.speech_start / RATE == pytest.approx(truth["start"], abs=0.15)
        assert utterance.speech_end / RATE == pytest.approx(truth["end"], abs=0.15)
        assert utterance.first / RATE <= truth["start"]
        assert utterance.end / RATE >= truth["end"] - 0.05


def coloured(exponent, seconds=10, seed=0):
    """Noise whose power falls with frequency: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(seconds * RATE))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (exponent / 2)
    sound = np.fft.irfft(spectrum)
    return sound / np.abs(sound).max()


def tones(*frequencies, seconds=10):
    time = np.arange(seconds * RATE) / RATE
    return sum(np.sin(2 * np.pi * each * time) for each in frequencies) / len(frequencies)


NO_SPEECH = {
    "digital silence": lambda: np.zeros(10 * RATE),
    "white noise": lambda: coloured(0),
    "pink noise": lambda: coloured(1),
    "brown noise": lambda: coloured(2),
    "hum of 50 Hz": lambda: tones(50, 100, 150),
    "a tone": lambda: tones(440),
    "a chord": lambda: tones(261.6, 329.6, 392.0),
    "an offset": lambda: np.full(10 * RATE, 0.5),
    "clicks": lambda: (np.arange(10 * RATE) % 8000 == 0).astype(float),
}


@pytest.mark.parametrize("level", [0.9, 0.05, 0.003])
@pytest.mark.parametrize("kind", NO_SPEECH)
async def test_what_is_no_speech_gives_nothing(service, kind, level):
    assert await utterances(service, NO_SPEECH[kind]() * level, SplitterOptions()) == []


@pytest.fixture(scope="module")
def sounds(fixtures_dir):
    """Speech at several levels, and when it is alone in the world: pairs of chunks and probabilities."""
    names = ("demo-numbers.wav", "tiny-weather.wav", "demo-colours-fast.wav", "demo-numbers.wav")
    levels = (1.0, 0.02, 0.3, 0.002)
    return [
        chunked(read_wav((fixtures_dir / name).read_bytes()) * level)[15:75]
        for name, level in zip(names, levels, strict=True)
    ]


cuts = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(cuts)
def test_probabilities_depend_neither_on_cuts_nor_on_other_streams(service, sounds, cuts):
    async def fed(chunks, sizes):
        stream, found, at, sizes = service.stream(), [], 0, itertools.cycle(sizes)
        while at < len(chunks):
            size = next(sizes)
            found.append(await stream.rate(chunks[at : at + size]))
            at += size
        return np.concatenate(found)

    async def together():
        return await asyncio.gather(*map(fed, sounds, cuts))

    async def alone():
        return [await service.stream().rate(chunks) for chunks, _ in zip(sounds, cuts, strict=False)]

    for mixed, expected in zip(asyncio.run(together()), asyncio.run(alone()), strict=True):
        assert expected.max() > 0.9
        assert mixed == pytest.approx(expected, abs=1e-4)


class Model:
    """Counts the chunks of each stream, when it is let; fails in the calls whose numbers are in `failing`."""

    def __init__(self):
        self.calls, self.failing, self.entered, self.free = [], set(), threading.Event(), threading.Event()

    def __call__(self, windows, memory):
        assert windows.shape[2] == CONTEXT + CHUNK
        assert memory.hidden.shape == memory.cell.shape == (len(windows), 1, STATE)
        self.entered.set()
        assert self.free.wait(10)
        self.calls.append(windows.shape[:2])
        if len(self.calls) - 1 in self.failing:
            raise ValueError("no memory")
        counted = np.arange(1, windows.shape[1] + 1, dtype=np.float32) + memory.cell[:, :1, 0]
        return counted, Memory(memory.hidden, memory.cell + np.float32(windows.shape[1]))


@pytest.fixture
def model():
    return Model()


@pytest.fixture
async def held(model):
    """A service whose model is at work, and waits to be let go."""
    made = VoiceActivity(lambda: model)
    await made.start()
    (first,) = await asked(made.stream().rate(silence(1)))
    await asyncio.to_thread(model.entered.wait, 10)
    yield made
    model.free.set()
    await asyncio.wait({first}, timeout=10)
    await made.stop()


def silence(chunks):
    return np.zeros((chunks, CHUNK), np.int16)


async def asked(*ratings):
    """Tasks, all of which have asked for what they wait for."""
    tasks = [asyncio.ensure_future(each) for each in ratings]
    await asyncio.sleep(0)
    return tasks


async def test_streams_that_wait_share_a_call_and_leave_when_they_have_no_more(held, model):
    found = await asked(*(held.stream().rate(silence(chunks)) for chunks in (2, 5, 3, 0, 5)))
    model.free.set()
    assert [list(each) for each in await asyncio.gather(*found)] == [list(range(1, n + 1)) for n in (2, 5, 3, 0, 5)]
    assert model.calls == [(1, 1), (4, 2), (3, 1), (2, 2)]


async def test_pieces_of_a_stream_count_in_their_order_even_if_nobody_waits(held, model):
    stream = held.stream()
    first, second, third = await asked(*(stream.rate(silence(chunks)) for chunks in (2, 1, 2)))
    second.cancel()
    (other,) = await asked(held.stream().rate(silence(2)))
    model.free.set()
    assert list(await first) == list(await other) == [1, 2]
    assert list(await third) == [4, 5]


async def test_live_streams_wait_for_each_other_and_whole_sound_for_nobody(model, monkeypatch):
    monkeypatch.setattr(module, "GATHER_SECONDS", 600.0)
    model.free.set()
    service = VoiceActivity(lambda: model)
    await service.start()
    one, two = service.stream(), service.stream()
    async with asyncio.timeout(20):
        await one.rate(silence(1))
        (early,) = await asked(two.rate(silence(2)))
        await asyncio.sleep(0.1)  # nothing comes meanwhile
        assert len(model.calls) == 1
        await asyncio.gather(early, one.rate(silence(2)))
        (waits,) = await asked(one.rate(silence(3)))
        assert await service.stream().has_speech(silence(3).ravel() + 1)
        assert list(await waits)
        (left,) = await asked(two.rate(silence(1)))
        await service.stop()
    with pytest.raises(ProcessorError, match="has been stopped"):
        await left
    assert model.calls == [(1, 1), (2, 2), (2, 3)]


async def test_speech_is_looked_for_second_by_second_up_to_the_first(model):
    model.free.set()
    service = VoiceActivity(lambda: model)
    await service.start()
    assert not await service.stream().has_speech(silence(100).ravel())
    assert await service.stream().has_speech(silence(100).ravel() + 1)
    assert model.calls == [(1, 32)]
    await service.stop()


async def test_an_error_reaches_all_who_wait_and_the_next_ones_are_served(held, model):
    model.failing = {1}  # the call behind the one that it is at
    streams = [held.stream() for _ in range(3)]
    waiting = await asked(*(each.rate(silence(1)) for each in streams))
    model.free.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [(type(each), str(each)) for each in found] == [(ValueError, "no memory")] * 3
    assert [list(each) for each in await asyncio.gather(*(each.rate(silence(1)) for each in streams))] == [[1]] * 3


async def test_a_stop_is_told_to_all_who_wait_and_to_those_who_come_later(held, model):
    waiting, stopping = await asked(held.stream().rate(silence(1)), held.stop())
    model.free.set()
    await stopping
    for each in (waiting, held.stream().rate(silence(1))):
        with pytest.raises(ProcessorError, match="has been stopped"):
            await each


async def test_a_thread_that_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr(module, "HANG_SECONDS", 0.1)
    monkeypatch.setattr(step_watch, "LOOK_SECONDS", 0.01)
    hanging, other = Model(), Model()
    other.free.set()
    models = iter((hanging, other))
    service = VoiceActivity(lambda: next(models))
    await service.start()
    before = threading.active_count()
    (lost,) = await asked(service.stream().rate(silence(3)))
    await asyncio.to_thread(hanging.entered.wait, 10)
    assert service.trouble() is None
    await until(lambda: "at one piece of sound for" in (service.trouble() or ""))
    assert not lost.done()
    await until(lambda: service.trouble() is None)  # each look at it brings its end nearer
    with pytest.raises(ProcessorError, match="hung, and began again"):
        await lost
    assert list(await service.stream().rate(silence(2))) == [1, 2]
    hanging.free.set()
    await until(lambda: threading.active_count() <= before + 1)  # asyncio's own
    assert list(await service.stream().rate(silence(2))) == [1, 2]
    await service.stop()


async def test_a_model_that_does_not_load_is_told_at_the_start():
    def load():
        raise OSError("no weights")

    service = VoiceActivity(load)
    with pytest.raises(OSError, match="no weights"):
        await service.start()
    await service.stop()


async def test_a_constant_offset_changes_nothing(service, fixtures_dir):
    sound = read_wav((fixtures_dir / "demo-hello-world.wav").read_bytes()) * np.float32(0.05)
    plain, offset = [await service.stream().rate(chunked(each)) for each in (sound, sound + np.float32(0.05))]
    assert np.abs(plain - offset).max() < 0.05
    assert (await service.stream().rate(chunked(np.full(RATE, 0.3)))).max() < 0.1


async def test_a_quiet_speaker_after_a_loud_one_is_heard(service, fixtures_dir):
    loud, quiet = (read_wav((fixtures_dir / f"demo-{name}.wav").read_bytes()) for name in ("yes", "numbers"))
    loud, quiet = loud * (0.6 / np.abs(loud).max()), quiet * (0.006 / np.abs(quiet).max())
    before = chunked(np.concatenate((loud, np.zeros(RATE))))
    alone = await service.stream().rate(chunked(quiet))
    found = await service.stream().rate(np.concatenate((before, chunked(quiet))))
    assert (found[len(before) :] > 0.5).sum() > 0.9 * (alone > 0.5).sum()


async def test_a_voice_in_an_echoing_hall_is_heard(service, fixtures_dir):
    """Probabilities are between 0.2 and 0.5 there."""
    sound = read_wav((fixtures_dir / "tiny-garden.wav").read_bytes())
    length, echo = len(sound) + 2 * RATE, np.random.default_rng(0).normal(size=2 * RATE)
    echo *= np.exp(np.linspace(0, -6.9, 2 * RATE))  # 60 dB in two seconds
    room = np.concatenate(([1.0], 3 * echo / np.linalg.norm(echo)))
    heard = np.fft.irfft(np.fft.rfft(sound, length) * np.fft.rfft(room, length), length)
    chunks = chunked(heard * (0.5 / np.abs(heard).max()))
    splitter = UtteranceSplitter()
    found = [*splitter.feed(chunks.ravel(), await service.stream().rate(chunks)), *splitter.finish()]
    assert sum(each.speech_end - each.speech_start for each in found) > 7 * RATE


async def test_a_piece_of_sound_has_speech_or_has_none(service, fixtures_dir):
    sound = chunked(read_wav((fixtures_dir / "demo-yes.wav").read_bytes())).ravel()
    assert await service.stream().has_speech(sound[: len(sound) - 100])
    assert await service.stream().has_speech(np.concatenate((np.full(3 * RATE, 300), sound)))
    for silent in (np.zeros(0), np.zeros(1), np.full(700, 0.3), coloured(1, seconds=1)):
        assert not await service.stream().has_speech((silent * 32767).astype(np.int16))

"""Utterances, with probabilities that are read from the sound: samples from LOUD up are speech."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audio.utterances import CHUNK, Chunker, SplitterOptions, UtteranceSplitter

RATE = 16_000
LOUD = 1000
SHORT = SplitterOptions(
    pre_roll=0.1,
    pause=0.3,
    shortest_pause=0.1,
    full_pause_until=0.5,
    shortest_pause_from=1.0,
    post_roll=0.05,
    longest=1.5,
)
DIRECT = replace(SHORT, shortest_pause=SHORT.pause)
"""The same pause for utterances of every length."""


def detect(chunk):
    assert chunk.shape == (CHUNK,)
    assert chunk.dtype == np.int16
    return 0.9 if np.abs(chunk.astype(np.int32)).max() >= LOUD else 0.1


class Stream(UtteranceSplitter):
    """A splitter that is fed with bytes, as they come."""

    def __init__(self, options=None, detector=detect):
        super().__init__(options)
        self.detector, self.chunker = detector, Chunker()

    def feed(self, data):
        return self.rate(self.chunker.feed(data))

    def finish(self):
        return [*self.rate(self.chunker.finish()), *super().finish()]

    def rate(self, samples):
        padded = np.pad(samples, (0, -len(samples) % CHUNK)).reshape(-1, CHUNK)
        return super().feed(samples, map(self.detector, padded))


def chunks(number, *, speech, seed=0):
    """Sound of so many whole chunks, every sample another."""
    low, high = (LOUD, 9 * LOUD) if speech else (0, LOUD)
    return np.random.default_rng(seed).integers(low, high, number * CHUNK).astype(np.int16)


def stretches(*lengths):
    """Silence, speech, silence, … of so many chunks."""
    each = [chunks(length, speech=bool(turn % 2), seed=turn) for turn, length in enumerate(lengths)]
    return np.concatenate([*each, np.empty(0, np.int16)])


def split(sound, options=SHORT, sizes=(10**9,), detector=detect):
    splitter, data, found, at = Stream(options, detector), sound.astype("<i2").tobytes(), [], 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            break
        found += splitter.feed(data[at : at + size])
        at += size
    found += splitter.finish()
    assert splitter.chunker.received == len(data) // 2
    return found


def spans(found):
    return [(each.number, each.first, each.end, each.speech_start, each.speech_end, each.ended_by) for each in found]


def spoken_chunks(sound):
    """Positions of the chunks of speech, the last one padded."""
    padded = np.pad(sound, (0, -len(sound) % CHUNK))
    return [at for at in range(0, len(padded), CHUNK) if detect(padded[at : at + CHUNK]) > 0.5]


sounds = st.builds(
    lambda lengths, tail: np.concatenate((stretches(*lengths), chunks(1, speech=True, seed=9)[:tail])),
    st.lists(st.integers(0, 70), max_size=8),
    st.integers(0, CHUNK - 1),
)
odd_sizes = st.lists(st.integers(1, 40_000), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 300)


@settings(max_examples=60)
@given(sounds, odd_sizes)
def test_utterances_do_not_depend_on_how_the_stream_was_cut(sound, sizes):
    whole, cut = split(sound), split(sound, sizes=sizes)
    assert spans(cut) == spans(whole)
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(whole, cut, strict=True))


@settings(max_examples=100)
@example(np.concatenate((stretches(0, 1, 1), chunks(1, speech=True)[:1])), SHORT)  # a click in the pre-roll
@example(np.concatenate((stretches(0, 2, 10, 4), chunks(1, speech=True)[:1])), SHORT)  # a stub that ends in a piece
@given(sounds, st.sampled_from([SHORT, DIRECT, replace(SHORT, min_speech_chunks=1), replace(SHORT, pre_roll=0.0)]))
def test_utterances_are_exact_in_order_and_hold_all_speech(sound, options):
    found = split(sound, options)
    assert [each.number for each in found] == list(range(len(found)))
    for each in found:
        assert np.array_equal(each.samples, sound[each.first : each.end])
        assert each.first <= each.speech_start < each.speech_end <= each.end
        assert len(each.samples) <= options.longest * RATE + CHUNK
        # nothing but silence and clicks before its speech, and nothing but silence behind it
        assert detect(np.resize(sound[each.speech_start :], CHUNK)) > 0.5 or each.first == each.speech_start
        clicks = [at for at in spoken_chunks(sound) if each.first <= at < each.speech_start]
        assert all(len(run) < options.min_speech_chunks for run in in_a_row(clicks))
        assert np.all(sound[each.speech_end : each.end] < LOUD)
        spoken = np.zeros(len(sound) + CHUNK, bool)
        for at in spoken_chunks(sound):
            spoken[at : at + CHUNK] = True
        for begin, end in each.pauses:
            assert each.speech_start < begin < end < each.speech_end
            assert not spoken[begin:end].any()
            spoken[begin:end] = True
        assert spoken[each.speech_start : each.speech_end].all()
    for before, after in itertools.pairwise(found):
        assert before.end <= after.first
    covered = np.zeros(len(sound) + CHUNK, bool)
    for each in found:
        covered[each.first : each.end] = True
    runs = [list(run) for run in in_a_row(spoken_chunks(sound))]
    for run in runs:
        end = min(run[-1] + CHUNK, len(sound))
        at_the_end = end == len(sound)
        stub = at_the_end and found and end - run[0] < 0.15 * RATE
        if (len(run) >= options.min_speech_chunks or at_the_end) and not stub:
            assert covered[run[0] : end].all(), run


def in_a_row(positions):
    """Group positions of chunks that follow each other."""
    run = []
    for at in positions:
        if run and at != run[-1] + CHUNK:
            yield run
            run = []
        run.append(at)
    if run:
        yield run


def test_pre_roll_and_post_roll_are_sample_exact():
    (found,) = split(stretches(20, 10, 20), DIRECT)
    assert found.speech_start == 20 * CHUNK
    assert found.speech_end == 30 * CHUNK
    assert found.first == found.speech_start - int(0.1 * RATE)
    assert found.end == found.speech_end + int(0.05 * RATE)
    assert found.ended_by == "pause"


def test_a_stream_that_begins_with_speech_has_no_pre_roll():
    (found,) = split(stretches(0, 10))
    assert (found.first, found.speech_start, found.end, found.ended_by) == (0, 0, 10 * CHUNK, "end")


def test_the_pre_roll_never_reaches_into_the_utterance_before():
    options = replace(DIRECT, pre_roll=0.3, post_roll=0.25, longest=5)
    first, second = split(stretches(20, 10, 10, 10, 20), options)
    assert first.end == first.speech_end + int(0.25 * RATE)
    assert second.first == first.end > second.speech_start - int(0.3 * RATE)


def test_a_short_silence_does_not_end_an_utterance_and_a_pause_does():
    pause = int(DIRECT.pause * RATE) // CHUNK  # 9 chunks are shorter, 10 are not
    assert len(split(stretches(5, 5, pause, 5, 30), DIRECT)) == 1
    assert len(split(stretches(5, 5, pause + 1, 5, 30), DIRECT)) == 2


def test_the_pause_is_shorter_in_a_long_utterance():
    quiet = int(SHORT.shortest_pause * RATE) // CHUNK + 2
    assert len(split(stretches(5, 8, quiet, 8, 30))) == 1
    assert len(split(stretches(5, 36, quiet, 8, 30))) == 2


def test_the_pauses_of_an_utterance_are_known():
    (found,) = split(stretches(5, 5, 3, 5, 1, 5, 30), DIRECT)
    assert found.pauses == ((10 * CHUNK, 13 * CHUNK), (18 * CHUNK, 19 * CHUNK))


def test_a_cut_within_a_pause_belongs_to_neither_utterance():
    longest = int(DIRECT.longest * RATE) // CHUNK + 1
    first, second = split(stretches(0, longest - 10, 5, 20, 30), replace(DIRECT, pre_roll=0.0))
    assert (first.ended_by, first.speech_end, first.pauses) == ("cut", (longest - 10) * CHUNK, ())
    assert first.end == second.first < second.speech_start == (longest - 5) * CHUNK
    assert second.pauses == ()


def test_a_click_is_no_speech():
    assert split(stretches(10, 1, 30, 1, 30)) == []


def test_speech_goes_on_at_a_lower_probability_than_it_begins_at():
    def half(chunk):
        return {0: 0.1, 1: 0.9, 2: 0.3}[int(chunk[0])]

    sound = np.repeat([0, 2, 1, 2, 0], [10 * CHUNK, 5 * CHUNK, 2 * CHUNK, 5 * CHUNK, 20 * CHUNK]).astype(np.int16)
    (found,) = split(sound, detector=half)
    assert (found.speech_start, found.speech_end) == (15 * CHUNK, 22 * CHUNK)


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 1600])
def test_a_clip_of_a_tenth_of_a_second_is_heard_at_the_end_of_the_stream(length):
    sound = np.concatenate((chunks(20, speech=False), chunks(4, speech=True)[:length]))
    (found,) = split(sound)
    assert found.speech_start == 20 * CHUNK
    assert found.speech_end == found.end == len(sound)
    assert np.array_equal(found.samples, sound[found.first :])


def test_a_clip_that_is_all_there_is():
    (found,) = split(chunks(4, speech=True)[:1600])
    assert (found.first, found.speech_start, found.end) == (0, 0, 1600)


def test_the_end_of_a_stream_gives_the_words_before_it():
    (found,) = split(stretches(10, 10, 2))
    assert found.ended_by == "end"
    assert found.end == 20 * CHUNK + int(0.05 * RATE)  # 0.05 s of the silence
    (found,) = split(stretches(10, 10, 1))
    assert found.end == 21 * CHUNK  # and no more than there is


def test_endless_speech_is_cut_at_its_quietest_points_and_nothing_is_lost_or_doubled():
    sound = stretches(10, 400)
    sound[: 10 * CHUNK] = 0
    dip = 10 * CHUNK + RATE  # in the last third of the first utterance, and not at its end
    sound[dip : dip + 1600] //= 8
    found = split(sound, detector=lambda chunk: 0.9 if chunk.any() else 0.1)
    assert len(found) > 8
    assert [each.ended_by for each in found] == ["cut"] * (len(found) - 1) + ["end"]
    assert dip < found[0].end < dip + 1600
    assert all(before.end == after.first == after.speech_start for before, after in itertools.pairwise(found))
    assert np.array_equal(np.concatenate([each.samples for each in found]), sound[found[0].first :])
    assert all(RATE * 1.5 * 2 / 3 < len(each.samples) <= RATE * 1.5 + CHUNK for each in found[:-1])


def test_a_cut_behind_the_last_word_leaves_no_utterance_of_silence():
    options = replace(DIRECT, pause=0.6, shortest_pause=0.6, longest=1.5)
    speech = int(1.0 * RATE) // CHUNK + 1  # with the pre-roll, the limit comes before the pause is over
    (found,) = split(stretches(20, speech, 40), options)
    assert found.ended_by == "cut"
    assert found.speech_end == (20 + speech) * CHUNK
    assert found.end == found.speech_end + int(0.05 * RATE)


def test_speech_that_resumes_behind_such_a_cut_keeps_its_pre_roll():
    options = replace(DIRECT, pause=0.6, shortest_pause=0.6, longest=1.5)
    speech = int(1.0 * RATE) // CHUNK + 1
    sound = stretches(20, speech, 16, 10, 40)
    first, second = split(sound, options)
    assert second.first == second.speech_start - int(0.1 * RATE) >= first.end
    assert second.speech_start == (20 + speech + 16) * CHUNK


def test_positions_are_exact_after_hours():
    splitter = Stream(SHORT, detect)
    minute = bytes(60 * RATE * 2)
    assert not any(splitter.feed(each) for each in (b"\0" + minute, *[minute] * 59))
    sound = stretches(0, 7, 33, 9)
    found = splitter.feed(b"\0" + sound.tobytes()) + splitter.finish()
    start = 3600 * RATE + 1
    # chunks lie where they lie, so that speech begins within one
    assert [start - CHUNK < each.speech_start <= start for each in found[:1]] == [True]
    assert found[1].end == splitter.chunker.received == start + len(sound)
    for each in found:
        silence = start - each.first
        expected = sound[max(0, -silence) : each.end - start]
        assert np.array_equal(each.samples[max(0, silence) :], expected)


@pytest.mark.parametrize("level", [0, LOUD])
def test_memory_is_bounded(level):
    splitter, minute = Stream(SHORT, detect), np.full(60 * RATE, level, "<i2").tobytes()
    tracemalloc.start()
    try:
        for _ in range(3):
            splitter.feed(minute)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(minute)
        assert tracemalloc.get_traced_memory()[0] < 4 * SHORT.longest * RATE
    finally:
        tracemalloc.stop()


def test_what_is_open_can_be_looked_at():
    splitter = Stream(DIRECT, detect)
    sound = stretches(10, 10, 5, 4)
    splitter.feed(sound[: 10 * CHUNK].tobytes())
    assert splitter.open_utterance() is None
    splitter.feed(sound[10 * CHUNK : 20 * CHUNK].tobytes())
    current = splitter.open_utterance()
    assert (current.number, current.ended_by, current.end, splitter.silence) == (0, "open", 20 * CHUNK, 0)
    splitter.feed(sound[20 * CHUNK : 25 * CHUNK].tobytes())
    now = splitter.open_utterance()
    assert (now.end, now.speech_end, splitter.silence) == (20 * CHUNK + int(0.05 * RATE), 20 * CHUNK, 5 * CHUNK)
    splitter.feed(sound[25 * CHUNK :].tobytes())
    assert splitter.open_utterance().end == 29 * CHUNK
    (last,) = splitter.finish()
    assert np.array_equal(last.samples, sound[current.first : 29 * CHUNK])


def test_a_lull_ends_what_is_open_and_the_stream_goes_on():
    splitter = Stream(DIRECT, detect)
    assert splitter.flush() == []
    sound = stretches(10, 10, 2)
    assert splitter.feed(sound.tobytes() + b"\0") == []
    (first,) = splitter.flush()
    assert (first.ended_by, first.end) == ("end", 20 * CHUNK + int(0.05 * RATE))
    assert splitter.flush() == []
    assert splitter.open_utterance() is None
    more = chunks(10, speech=True)
    splitter.feed(b"\0" + more.tobytes())
    (second,) = splitter.finish()
    assert (second.number, second.first) == (1, first.end)
    assert second.end == len(sound) + 1 + len(more)


def test_options_that_change_count_at_once():
    splitter = Stream(replace(DIRECT, pause=1.0, shortest_pause=1.0, longest=20.0), detect)
    assert splitter.feed(stretches(10, 150, 20).tobytes()) == []
    splitter.options = DIRECT
    ended = splitter.feed(chunks(1, speech=False).tobytes())
    assert [each.ended_by for each in ended] == ["pause"]


def test_half_a_sample_is_told():
    splitter = Stream(detector=detect)
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\1") == []
    assert (splitter.chunker.received, splitter.chunker.pending) == (0, 1)
    splitter.feed(b"\0\1")
    assert (splitter.chunker.received, splitter.chunker.pending) == (1, 1)
    assert splitter.finish() == []


def test_nothing_in_nothing_out():
    assert Stream(detector=detect).finish() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pause": 0.1}, "0 <= shortest_pause <= pause does not hold"),
        ({"pause": float("nan")}, "shortest_pause <= pause"),
        ({"shortest_pause": -0.1}, "0 <= shortest_pause"),
        ({"post_roll": -1.0}, "post_roll >= 0"),
        ({"post_roll": float("nan")}, "post_roll >= 0"),
        ({"pre_roll": -0.1}, "pre_roll >= 0"),
        ({"pre_roll": float("nan")}, "pre_roll >= 0"),
        ({"min_speech_chunks": 0}, "min_speech_chunks >= 1"),
        ({"speech_threshold": 1.5}, "speech_threshold <= 1"),
        ({"speech_threshold": 0.1}, "silence_threshold <= speech_threshold"),
        ({"silence_threshold": 0.0}, "0 < silence_threshold"),
        ({"full_pause_until": 6.0}, "full_pause_until < shortest_pause_from"),
        ({"longest": 0.5}, "longest utterance must be 1.8 to 30 s"),
        ({"longest": 30.5}, "to 30 s"),
        ({"longest": float("nan")}, "to 30 s"),
        ({"pause": 3.0, "longest": 6.0}, "with a pause of 3 s the longest utterance must be 6.8 to 30 s"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        SplitterOptions(**options)


def test_a_cut_leaves_no_stub():
    sound = stretches(10, 45, 30)  # speech ends soon behind the longest utterance of 1.5 s
    sound[10 * CHUNK + int(1.45 * RATE) : 10 * CHUNK + int(1.5 * RATE)] //= 8
    first, second, *_ = split(sound)
    assert first.ended_by == "cut"
    assert second.speech_end - second.speech_start >= 0.4 * RATE


def test_a_sound_too_short_for_a_word_soon_after_speech_is_no_utterance():
    assert len(split(stretches(10, 20, 20, 4))) == 1
    assert len(split(stretches(10, 20, 20, 5))) == 2
    assert len(split(stretches(10, 20, 60, 4))) == 2

"""Utterances, with a judge whose opinion is written in the sound: samples from LOUD up are speech."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audio.utterances import Listener, ListenerOptions
from audio.vad import CHUNK

RATE = 16_000
LOUD = 1000
SHORT = ListenerOptions(
    pre_roll=0.1, pause=0.3, shortest_pause=0.1, patient_for=0.5, hurried_from=1.0, post_roll=0.05, longest=1.5
)
DIRECT = replace(SHORT, shortest_pause=SHORT.pause)
"""The same pause for utterances of every length."""


def judge(chunk):
    assert chunk.shape == (CHUNK,)
    assert chunk.dtype == np.int16
    return 0.9 if np.abs(chunk.astype(np.int32)).max() >= LOUD else 0.1


def chunks(number, *, speech, seed=0):
    """Sound of so many whole chunks, every sample another."""
    low, high = (LOUD, 9 * LOUD) if speech else (0, LOUD)
    return np.random.default_rng(seed).integers(low, high, number * CHUNK).astype(np.int16)


def stretches(*lengths):
    """Silence, speech, silence, … of so many chunks."""
    each = [chunks(length, speech=bool(turn % 2), seed=turn) for turn, length in enumerate(lengths)]
    return np.concatenate([*each, np.empty(0, np.int16)])


def listen(sound, options=SHORT, sizes=(10**9,), judge=judge):
    listener, data, found, at = Listener(options, judge), sound.astype("<i2").tobytes(), [], 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            break
        found += listener.feed(data[at : at + size])
        at += size
        longest = options.longest + options.pre_roll + 1
        assert len(listener._buffer) <= longest * RATE + 2 * CHUNK
    found += listener.finish()
    assert listener.received == len(data) // 2
    return found


def spans(found):
    return [(each.number, each.first, each.end, each.speech_start, each.speech_end, each.ended_by) for each in found]


def spoken_chunks(sound):
    """Positions of the chunks of speech, the last one padded."""
    padded = np.pad(sound, (0, -len(sound) % CHUNK))
    return [at for at in range(0, len(padded), CHUNK) if judge(padded[at : at + CHUNK]) > 0.5]


sounds = st.builds(
    lambda lengths, tail: np.concatenate((stretches(*lengths), chunks(1, speech=True, seed=9)[:tail])),
    st.lists(st.integers(0, 70), max_size=8),
    st.integers(0, CHUNK - 1),
)
odd_sizes = st.lists(st.integers(1, 40_000), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) > 300)


@settings(deadline=None, max_examples=60)
@given(sounds, odd_sizes)
def test_utterances_do_not_depend_on_how_the_stream_was_cut(sound, sizes):
    whole, cut = listen(sound), listen(sound, sizes=sizes)
    assert spans(cut) == spans(whole)
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(whole, cut, strict=True))


@settings(deadline=None, max_examples=100)
@given(sounds, st.sampled_from([SHORT, DIRECT, replace(SHORT, chunks_to_begin=1), replace(SHORT, pre_roll=0.0)]))
def test_utterances_are_exact_in_order_and_hold_all_speech(sound, options):
    found = listen(sound, options)
    assert [each.number for each in found] == list(range(len(found)))
    for each in found:
        assert np.array_equal(each.samples, sound[each.first : each.end])
        assert each.first <= each.speech_start < each.speech_end <= each.end
        assert len(each.samples) <= options.longest * RATE + CHUNK
        # nothing but silence before its speech and behind it
        assert judge(np.resize(sound[each.speech_start :], CHUNK)) > 0.5 or each.first == each.speech_start
        assert np.all(sound[each.first : each.speech_start] < LOUD)
        assert np.all(sound[each.speech_end : each.end] < LOUD)
    for before, after in itertools.pairwise(found):
        assert before.end <= after.first
    covered = np.zeros(len(sound) + CHUNK, bool)
    for each in found:
        covered[each.first : each.end] = True
    runs = [list(run) for run in in_a_row(spoken_chunks(sound))]
    for run in runs:
        at_the_end = run[-1] + CHUNK >= len(sound)
        if len(run) >= options.chunks_to_begin or at_the_end:
            assert covered[run[0] : min(run[-1] + CHUNK, len(sound))].all(), run


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
    (found,) = listen(stretches(20, 10, 20), DIRECT)
    assert found.speech_start == 20 * CHUNK
    assert found.speech_end == 30 * CHUNK
    assert found.first == found.speech_start - int(0.1 * RATE)
    assert found.end == found.speech_end + int(0.05 * RATE)
    assert found.ended_by == "pause"


def test_a_stream_that_begins_with_speech_has_no_pre_roll():
    (found,) = listen(stretches(0, 10))
    assert (found.first, found.speech_start, found.end, found.ended_by) == (0, 0, 10 * CHUNK, "end")


def test_the_pre_roll_never_reaches_into_the_utterance_before():
    options = replace(DIRECT, pre_roll=0.3, post_roll=0.25, longest=5)
    first, second = listen(stretches(20, 10, 10, 10, 20), options)
    assert first.end == first.speech_end + int(0.25 * RATE)
    assert second.first == first.end > second.speech_start - int(0.3 * RATE)


def test_a_short_silence_does_not_end_an_utterance_and_a_pause_does():
    pause = int(DIRECT.pause * RATE) // CHUNK  # 9 chunks are shorter, 10 are not
    assert len(listen(stretches(5, 5, pause, 5, 30), DIRECT)) == 1
    assert len(listen(stretches(5, 5, pause + 1, 5, 30), DIRECT)) == 2


def test_the_pause_is_shorter_in_a_long_utterance():
    quiet = int(SHORT.shortest_pause * RATE) // CHUNK + 2
    assert len(listen(stretches(5, 8, quiet, 8, 30))) == 1
    assert len(listen(stretches(5, 36, quiet, 8, 30))) == 2


def test_a_click_is_no_speech():
    assert listen(stretches(10, 1, 30, 1, 30)) == []


def test_speech_goes_on_at_a_lower_probability_than_it_begins_at():
    def half(chunk):
        return {0: 0.1, 1: 0.9, 2: 0.4}[int(chunk[0])]

    sound = np.repeat([0, 2, 1, 2, 0], [10 * CHUNK, 5 * CHUNK, 2 * CHUNK, 5 * CHUNK, 20 * CHUNK]).astype(np.int16)
    (found,) = listen(sound, judge=half)
    assert (found.speech_start, found.speech_end) == (15 * CHUNK, 22 * CHUNK)


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 1600])
def test_a_clip_of_a_tenth_of_a_second_is_heard_at_the_end_of_the_stream(length):
    sound = np.concatenate((chunks(20, speech=False), chunks(4, speech=True)[:length]))
    (found,) = listen(sound)
    assert found.speech_start == 20 * CHUNK
    assert found.speech_end == found.end == len(sound)
    assert np.array_equal(found.samples, sound[found.first :])


def test_a_clip_that_is_all_there_is():
    (found,) = listen(chunks(4, speech=True)[:1600])
    assert (found.first, found.speech_start, found.end) == (0, 0, 1600)


def test_the_end_of_a_stream_gives_the_words_before_it():
    (found,) = listen(stretches(10, 10, 2))
    assert found.ended_by == "end"
    assert found.end == 20 * CHUNK + int(0.05 * RATE)  # 0.05 s of the silence
    (found,) = listen(stretches(10, 10, 1))
    assert found.end == 21 * CHUNK  # and no more than there is


def test_endless_speech_is_cut_at_its_quietest_points_and_nothing_is_lost_or_doubled():
    sound = stretches(10, 400)
    sound[: 10 * CHUNK] = 0
    dip = 10 * CHUNK + int(1.2 * RATE)  # in the last third of the first utterance
    sound[dip : dip + 1600] //= 8
    found = listen(sound, judge=lambda chunk: 0.9 if chunk.any() else 0.1)
    assert len(found) > 8
    assert [each.ended_by for each in found] == ["cut"] * (len(found) - 1) + ["end"]
    assert dip < found[0].end < dip + 1600
    assert all(before.end == after.first == after.speech_start for before, after in itertools.pairwise(found))
    assert np.array_equal(np.concatenate([each.samples for each in found]), sound[found[0].first :])
    assert all(RATE * 1.5 * 2 / 3 < len(each.samples) <= RATE * 1.5 + CHUNK for each in found[:-1])


def test_a_cut_behind_the_last_word_leaves_no_utterance_of_silence():
    options = replace(DIRECT, pause=0.6, shortest_pause=0.6, longest=1.5)
    speech = int(1.0 * RATE) // CHUNK + 1  # with the pre-roll, the limit comes before the pause is over
    (found,) = listen(stretches(20, speech, 40), options)
    assert found.ended_by == "cut"
    assert found.speech_end == (20 + speech) * CHUNK
    assert found.end == found.speech_end + int(0.05 * RATE)


def test_speech_that_resumes_behind_such_a_cut_keeps_its_pre_roll():
    options = replace(DIRECT, pause=0.6, shortest_pause=0.6, longest=1.5)
    speech = int(1.0 * RATE) // CHUNK + 1
    sound = stretches(20, speech, 16, 10, 40)
    first, second = listen(sound, options)
    assert second.first == second.speech_start - int(0.1 * RATE) >= first.end
    assert second.speech_start == (20 + speech + 16) * CHUNK


def test_positions_are_exact_after_hours():
    listener = Listener(SHORT, judge)
    hour = bytes(3600 * RATE * 2)
    assert listener.feed(b"\0" + hour) == []
    assert len(listener._buffer) <= (SHORT.pre_roll + 1) * RATE + CHUNK
    sound = stretches(0, 7, 33, 9)
    found = listener.feed(b"\0" + sound.tobytes()) + listener.finish()
    start = 3600 * RATE + 1
    # chunks lie where they lie, so that speech begins within one
    assert [start - CHUNK < each.speech_start <= start for each in found[:1]] == [True]
    assert found[1].end == listener.received == start + len(sound)
    for each in found:
        silence = start - each.first
        expected = sound[max(0, -silence) : each.end - start]
        assert np.array_equal(each.samples[max(0, silence) :], expected)


def test_what_is_open_can_be_looked_at():
    listener = Listener(DIRECT, judge)
    sound = stretches(10, 10, 5, 4)
    listener.feed(sound[: 10 * CHUNK].tobytes())
    assert listener.current() is None
    listener.feed(sound[10 * CHUNK : 20 * CHUNK].tobytes())
    current = listener.current()
    assert (current.number, current.ended_by, current.end, listener.quiet) == (0, "open", 20 * CHUNK, 0)
    listener.feed(sound[20 * CHUNK : 25 * CHUNK].tobytes())
    now = listener.current()
    assert (now.end, now.speech_end, listener.quiet) == (20 * CHUNK + int(0.05 * RATE), 20 * CHUNK, 5 * CHUNK)
    listener.feed(sound[25 * CHUNK :].tobytes())
    assert listener.current().end == 29 * CHUNK
    (last,) = listener.finish()
    assert np.array_equal(last.samples, sound[current.first : 29 * CHUNK])


def test_a_lull_ends_what_is_open_and_the_stream_goes_on():
    listener = Listener(DIRECT, judge)
    assert listener.lull() == []
    sound = stretches(10, 10, 2)
    assert listener.feed(sound.tobytes() + b"\0") == []
    (first,) = listener.lull()
    assert (first.ended_by, first.end) == ("end", 20 * CHUNK + int(0.05 * RATE))
    assert listener.lull() == []
    assert listener.current() is None
    more = chunks(10, speech=True)
    listener.feed(b"\0" + more.tobytes())
    (second,) = listener.finish()
    assert (second.number, second.first) == (1, first.end)
    assert second.end == len(sound) + 1 + len(more)


def test_options_that_change_count_at_once():
    listener = Listener(replace(DIRECT, pause=1.0, shortest_pause=1.0, longest=20.0), judge)
    assert listener.feed(stretches(10, 150, 20).tobytes()) == []
    listener.options = DIRECT
    ended = listener.feed(chunks(1, speech=False).tobytes())
    assert [each.ended_by for each in ended] == ["pause"]


def test_half_a_sample_is_told():
    listener = Listener(judge=judge)
    assert listener.feed(b"") == []
    assert listener.feed(b"\1") == []
    assert (listener.received, listener.pending) == (0, 1)
    listener.feed(b"\0\1")
    assert (listener.received, listener.pending) == (1, 1)
    assert listener.finish() == []


def test_nothing_in_nothing_out():
    assert Listener(judge=judge).finish() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pause": 0.1}, "pause of 0.1 s"),
        ({"pause": float("nan")}, "pause"),
        ({"post_roll": -1.0}, "pause"),
        ({"post_roll": float("nan")}, "pause"),
        ({"pre_roll": -0.1}, "pre-roll of -0.1 s"),
        ({"pre_roll": float("nan")}, "pre-roll"),
        ({"chunks_to_begin": 0}, "0 chunks"),
        ({"begins_at": 1.5}, "probability of 1.5"),
        ({"begins_at": 0.3}, "end at 0.35"),
        ({"goes_on_at": 0.0}, "end at 0.0"),
        ({"patient_for": 6.0}, "patience"),
        ({"longest": 0.5}, "longest utterance must be 1.8 to 30 s"),
        ({"longest": 30.5}, "to 30 s"),
        ({"longest": float("nan")}, "to 30 s"),
        ({"pause": 3.0, "longest": 6.0}, "with a pause of 3 s the longest utterance must be 6.8 to 30 s"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        ListenerOptions(**options)

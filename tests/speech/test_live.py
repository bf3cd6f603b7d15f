"""Live text with a model that says what the test wants, when the test wants."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from audio.utterances import CHUNK, SplitterOptions
from tests.waiting import until
from whisper_byoc.aio import Tasks
from whisper_byoc.speech.engine import DecodeOptions, Draft, DraftWord
from whisper_byoc.speech.language import LanguageChoice, labelled
from whisper_byoc.speech.live import LiveOptions, LiveTranscriber
from whisper_byoc.speech.transcript import LanguagePiece, TextSegment, Transcription
from whisper_byoc.speech.workers import Timed

RATE = 16_000
SPLITTING = SplitterOptions(
    pre_roll=0.1,
    pause=0.3,
    shortest_pause=0.3,
    post_roll=0.1,
    full_pause_until=1.0,
    shortest_pause_from=2.0,
    longest=2.0,
)
OPTIONS = LiveOptions(partials=True, first_draft_after=0.1, draft_every=0.1, splitter=SPLITTING)


class Voice:
    """Finds speech in whatever is not zero: at once, or when `held` is let go."""

    def __init__(self):
        self.asked, self.held, self.error, self.answers = 0, None, None, Tasks()

    def submit(self, chunks, tell):
        assert chunks.dtype == np.int16
        assert chunks.shape[1:] == (CHUNK,)
        self.asked += 1
        self.answers.start(self.answer(chunks, tell))

    async def answer(self, chunks, tell):
        if self.held is not None:
            await self.held.wait()
        error, self.error = self.error, None
        tell(error or [0.9 if chunk.any() else 0.1 for chunk in chunks])


def speech(chunks, value=1000):
    return np.full(chunks * CHUNK, value, "<i2").tobytes()


def silence(chunks):
    return bytes(2 * chunks * CHUNK)


class Model:
    """Answers a request at once, or when `held` is off again; its text tells how much it heard."""

    def __init__(self):
        self.transcribed, self.drafted = [], []
        self.may_draft = True
        self.cancelled = 0
        self.error = None
        self.language = "de", 0.9
        self.words = lambda samples: f"{len(samples) // CHUNK} chunks"
        self.free = asyncio.Event()
        self.free.set()
        self.drafting_free = asyncio.Event()
        self.drafting_free.set()
        self.drafts_done = 0
        self.going_on = False

    def continues(self, options):
        return self.going_on

    async def wait(self, event):
        try:
            await event.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def transcribe(self, samples, options, *, live):
        self.transcribed.append((len(samples), options, live))
        await self.wait(self.free)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        text = self.words(samples)
        seconds = len(samples) / RATE
        pieces = () if options.language else self.pieces(seconds, options)
        language = options.language or pieces[0].language
        return Timed(Transcription(text, language, (TextSegment(0.0, seconds, text),), pieces=pieces), 1.0, 2.0)

    async def draft(self, samples, options):
        self.drafted.append((len(samples), options))
        await self.wait(self.drafting_free)
        if self.error is not None:
            raise self.error
        self.drafts_done += 1
        words = tuple(DraftWord(f" {word}", -1.0) for word in self.words(samples).split())
        language = options.language or self.pieces(len(samples) / RATE, options)[0].language
        return Timed(Draft(words, language), 3.0, 4.0)

    def pieces(self, seconds, options):
        language, probability = self.language
        return labelled([LanguagePiece(0.0, seconds, {language: probability})], options.spoken)[0]


@pytest.fixture
def model():
    return Model()


def live_text(model, options=OPTIONS, decoding=None, language=None, voice=None, **more):
    decoding = decoding or DecodeOptions()
    language = language or LanguageChoice(decoding.language)
    return LiveTranscriber(model, decoding, options, language, voice or Voice(), **more)


def text_of(update):
    return update.result.value.text


async def feed(live, *pieces):
    """Feed pieces, with a turn of the loop between them, as on a socket."""
    found = []
    for piece in pieces:
        found += await live.feed(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    return found


async def abandon(work, once):
    """Start work, and cancel it as soon as a condition holds."""
    task = asyncio.ensure_future(work)
    await until(once)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def tasks():
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_partial_text_is_replaced_and_then_final(model):
    live = live_text(model)
    updates = await feed(live, silence(10), *[speech(2)] * 12, *[silence(2)] * 8)
    *partials, final = updates
    assert len(partials) >= 3
    assert all(not each.is_final and each.utterance.number == 0 for each in partials)
    assert [text_of(each) for each in partials] == list(dict.fromkeys(text_of(each) for each in partials))
    assert all(each.utterance.first == final.utterance.first for each in partials)
    first = partials[0].result
    assert (first.queue_ms, first.inference_ms, first.value.language) == (3.0, 4.0, "en")
    assert final.is_final
    assert final.error is None
    assert text_of(final) == model.words(final.utterance.samples)
    assert final.utterance.ended_by == "pause"
    assert await live.finish() == []


async def test_no_partials_unless_wanted(model):
    live = live_text(model, replace(OPTIONS, partials=False))
    updates = await feed(live, *[speech(2)] * 12, silence(20))
    assert [each.is_final for each in updates] == [True]
    assert model.drafted == []


async def test_the_same_partial_text_is_not_told_twice(model):
    model.words = lambda samples: "always this"
    updates = await feed(live_text(model), *[speech(2)] * 20)
    assert [text_of(each) for each in updates] == ["always this"]


async def test_silence_never_reaches_the_model(model):
    live = live_text(model)
    assert await feed(live, *[silence(31)] * 10) == []
    assert await live.finish() == []
    assert model.transcribed == model.drafted == []


async def test_one_draft_at_a_time_so_that_they_come_less_often_under_load(model):
    model.drafting_free.clear()
    live = live_text(model)
    assert await feed(live, *[speech(2)] * 12) == []
    assert len(model.drafted) == 1
    model.drafting_free.set()
    await until(lambda: model.drafts_done)
    (late,) = await feed(live, speech(2))
    assert late.utterance.end < live.received  # it says to which sound it belongs
    live.close()


async def test_a_draft_that_comes_after_the_end_of_its_utterance_is_not_shown(model):
    model.drafting_free.clear()
    live = live_text(model)
    updates = await feed(live, *[speech(2)] * 8, silence(20), *[speech(2)] * 3)
    assert [each.is_final for each in updates] == [True]
    assert model.cancelled == 1
    model.drafting_free.set()
    updates = await feed(live, *[speech(2)] * 6)
    assert updates
    assert {each.utterance.number for each in updates} == {1}


async def test_a_draft_can_be_shown_as_soon_as_it_is_done(model):
    model.drafting_free.clear()
    done = asyncio.Event()
    live = live_text(model, on_draft=done.set)
    assert await feed(live, *[speech(2)] * 8) == []
    assert live.ready() == []
    assert not done.is_set()
    model.drafting_free.set()
    await asyncio.wait_for(done.wait(), 5)
    (update,) = live.ready()
    assert (update.is_final, text_of(update)) == (False, model.words(update.utterance.samples))
    live.close()


async def test_nothing_is_told_of_a_draft_that_is_dropped(model):
    model.drafting_free.clear()
    told = []
    live = live_text(model, on_draft=lambda: told.append(True))
    await feed(live, *[speech(2)] * 8, silence(20))
    assert model.cancelled == 1
    assert told == []
    assert live.ready() == []


async def test_drafts_come_twice_as_often_until_a_word_is_shown(model):
    options = replace(OPTIONS, draft_every=8 * CHUNK / RATE)
    model.words = lambda samples: "" if len(samples) < 20 * CHUNK else "at last"
    await feed(live := live_text(model, options), *[speech(1)] * 60)
    lengths = [length // CHUNK for length, _ in model.drafted]
    steps = [b - a for a, b in pairwise(lengths)]
    first_shown = next(n for n, length in enumerate(lengths) if length >= 20)
    assert set(steps[:first_shown]) == {4}
    assert set(steps[first_shown + 1 :]) == {8}
    live.close()


async def test_the_first_draft_does_not_wait_for_a_pre_roll_that_is_not_there(model):
    options = replace(OPTIONS, first_draft_after=5 * CHUNK / RATE, splitter=replace(SPLITTING, pre_roll=0.4))
    await feed(live := live_text(model, options), *[speech(1)] * 6)  # the stream begins in the middle of a word
    assert [length for length, _ in model.drafted] == [5 * CHUNK]
    live.close()


async def test_a_draft_that_fails_is_passed_over(model, caplog):
    live = live_text(model)
    model.error = ValueError("no draft")
    assert await feed(live, *[speech(2)] * 6) == []
    assert "no draft" in caplog.text
    model.error = None
    updates = await feed(live, *[speech(2)] * 6, silence(20))
    assert updates[-1].is_final
    assert not updates[0].is_final


async def test_what_is_transcribed_early_is_used_when_nothing_more_is_said(model):
    live = live_text(model, replace(OPTIONS, partials=False))
    assert await feed(live, speech(10), silence(5)) == []
    assert len(model.transcribed) == 1  # while the pause is still being waited for
    (final,) = await feed(live, silence(10))
    assert len(model.transcribed) == 1
    assert model.transcribed[0][0] == len(final.utterance.samples)
    assert text_of(final) == model.words(final.utterance.samples)


async def test_what_is_transcribed_early_is_used_at_the_end_of_the_stream(model):
    live = live_text(model)
    await feed(live, speech(10), silence(5))
    (final,) = await live.finish()
    assert (final.is_final, len(model.transcribed)) == (True, 1)


async def test_an_early_transcription_is_cancelled_when_speech_goes_on(model):
    model.free.clear()
    live = live_text(model, replace(OPTIONS, partials=False))
    await feed(live, speech(10), silence(5))
    assert (len(model.transcribed), model.cancelled) == (1, 0)
    await feed(live, speech(3))
    assert model.cancelled == 1
    model.free.set()
    (final,) = await feed(live, silence(20))
    assert model.transcribed[-1][0] == len(final.utterance.samples) > model.transcribed[0][0]
    assert text_of(final) == model.words(final.utterance.samples)


async def test_a_stream_that_is_behind_gets_no_guesses_and_all_its_finals(model):
    live, found = live_text(model), []
    for piece in [*[speech(2)] * 12, *[silence(2)] * 8, *[speech(2)] * 8]:
        found += await live.feed(piece, behind=True)
        await asyncio.sleep(0)
    found += await live.finish()
    assert model.drafted == []
    assert [each.is_final for each in found] == [True, True]
    assert len(model.transcribed) == 2


async def test_every_utterance_has_one_final_text_however_much_comes_at_once(model):
    live = live_text(model)
    sound = (speech(10) + silence(20)) * 5 + speech(10)
    updates = [*await live.feed(sound), *await live.finish()]
    finals = [each for each in updates if each.is_final]
    assert [each.utterance.number for each in finals] == list(range(6))
    assert [each.utterance.ended_by for each in finals] == ["pause"] * 5 + ["end"]
    live.close()


async def test_no_text_is_told_of_an_utterance_after_its_final_one(model):
    live = live_text(model)
    updates = await feed(live, *([speech(2)] * 7 + [silence(2)] * 6) * 4, *[speech(2)] * 80)
    updates += await live.finish()
    last = -1
    for each in updates:
        assert each.utterance.number == last + 1
        last += each.is_final
    assert last == 7


async def test_an_error_in_one_utterance_does_not_lose_the_next(model):
    live = live_text(model, replace(OPTIONS, partials=False))
    model.error = ValueError("broken weights")
    updates = await feed(live, speech(10) + silence(20) + speech(12) + silence(20))
    assert [(each.is_final, each.error is None) for each in updates] == [(True, False), (True, True)]
    assert "broken weights" in str(updates[0].error)
    assert updates[0].result is None
    assert text_of(updates[1]) == model.words(updates[1].utterance.samples)


async def test_an_early_transcription_that_fails_is_one_error(model):
    live = live_text(model, replace(OPTIONS, partials=False))
    model.error = ValueError("broken weights")
    updates = await feed(live, speech(10), silence(5), silence(10), speech(10), silence(20))
    assert [each.error is None for each in updates] == [False, True]


async def test_finish_gives_the_tail(model):
    live = live_text(model)
    await feed(live, silence(5), speech(10))
    (final,) = [each for each in await live.finish() if each.is_final]
    assert final.utterance.end == 15 * CHUNK
    assert final.utterance.ended_by == "end"


async def test_a_flush_gives_the_tail_and_the_stream_goes_on(model):
    live = live_text(model)
    await feed(live, speech(10))
    assert [(each.is_final, each.utterance.number) for each in await live.flush()] == [(True, 0)]
    assert await live.flush() == []
    await feed(live, speech(10))
    assert [(each.is_final, each.utterance.number) for each in await live.finish()] == [(True, 1)]


@pytest.mark.parametrize("quiet", [0, 5])
async def test_close_leaves_no_task(model, quiet):
    before = tasks()
    model.free.clear()
    model.drafting_free.clear()
    live = live_text(model)
    await feed(live, *[speech(2)] * 6, silence(quiet))
    assert len(tasks() - before) >= 1
    live.close()
    live.close()
    await until(lambda: tasks() == before)
    assert model.cancelled >= 1


async def test_a_final_that_is_walked_away_from_is_cancelled_and_the_next_one_comes(model):
    live = live_text(model, replace(OPTIONS, partials=False))
    model.free.clear()
    await abandon(feed(live, speech(10), silence(20)), lambda: model.transcribed)
    assert model.cancelled == 1
    model.free.set()
    updates = await feed(live, speech(12), silence(20))
    assert [each.utterance.number for each in updates] == [1]


async def test_options_count_from_now_on(model):
    live = live_text(model, replace(OPTIONS, partials=False))
    await feed(live, speech(10), silence(20))
    patient = replace(SPLITTING, pause=0.8, shortest_pause=0.8, longest=10.0)
    live.update(DecodeOptions("en", prompt="names"), replace(OPTIONS, splitter=patient), LanguageChoice("en"))
    updates = await feed(live, *[speech(2)] * 8, silence(15), speech(5))
    assert updates
    assert not any(each.is_final for each in updates)
    assert model.drafted[-1][1].prompt == "names"
    assert [each.is_final for each in await feed(live, silence(30))][-1]
    assert model.transcribed[-1][1].prompt == "names"
    live.close()


async def test_auto_follows_the_speaker_from_one_language_to_another(model):
    live = live_text(model, LiveOptions(), DecodeOptions(None))
    for spoken, chunks, expected in [
        (("de", 0.9), 10, "de"), (("cy", 0.9), 10, "de"),  # a third of a second is no proof
        (("fr", 0.9), 60, "fr"), (("de", 0.9), 10, "fr"), (("de", 0.9), 10, "de"),  # twice is one
    ]:  # fmt: skip
        model.language = spoken
        (final,) = await feed(live, speech(chunks) + silence(20))
        assert final.result.value.language == expected
    live.update(DecodeOptions("it"), LiveOptions(), LanguageChoice("it"))
    (final,) = await feed(live, speech(10) + silence(20))
    assert final.result.value.language == "it"


async def test_drafts_are_in_the_language_of_their_own_utterance(model):
    live = live_text(model, OPTIONS, DecodeOptions(None))
    await feed(live, speech(60) + silence(20))
    model.language = "fr", 0.9
    updates = await feed(live, *[speech(10)] * 9)
    assert [each.result.value.language for each in updates if not each.is_final][-1] == "fr"
    live.close()


async def test_a_recordings_doubtful_stretch_is_in_the_language_of_the_one_before(model):
    """It was begun before that was known."""
    live = live_text(model, replace(LiveOptions(), together=3), DecodeOptions(None))
    model.pieces = lambda seconds, options: labelled(
        [LanguagePiece(0.0, seconds, {"de" if seconds > 1 else "cy": 0.9})], options.spoken
    )[0]
    model.free.clear()
    sound = (speech(60) + silence(20)) * 2 + speech(10) + silence(20)
    task = asyncio.ensure_future(live.feed(sound))
    await until(lambda: len(model.transcribed) == 3)
    model.free.set()
    updates = [*await task, *await live.finish()]
    assert [each.result.value.language for each in updates] == ["de"] * 3
    assert len(model.transcribed) == 4
    assert model.transcribed[2][1].spoken == {}
    live.close()


@pytest.mark.parametrize("policy", ["attention", "agreement"])
async def test_both_policies_show_text(model, policy):
    model.words = lambda samples: "the same words"
    updates = await feed(live_text(model, replace(OPTIONS, policy=policy)), *[speech(2)] * 20)
    assert [text_of(each) for each in updates] == ["the same words"]


async def test_what_was_shown_of_an_utterance_that_failed_hides_nothing_of_the_next(model):
    model.words = lambda samples: "always this"
    live = live_text(model)
    assert [text_of(each) for each in await feed(live, *[speech(2)] * 8)] == ["always this"]
    model.free.clear()
    await abandon(feed(live, silence(20)), lambda: model.transcribed)
    model.free.set()
    updates = await feed(live, *[speech(2)] * 8)
    assert [(each.utterance.number, text_of(each)) for each in updates] == [(1, "always this")]
    live.close()


async def test_a_draft_does_not_keep_the_final_text_waiting(model):
    model.drafting_free.clear()
    live = live_text(model)
    await feed(live, *[speech(2)] * 8)
    model.free.clear()
    ending = asyncio.ensure_future(feed(live, silence(20)))
    await until(lambda: model.transcribed)
    assert model.cancelled == 1
    model.free.set()
    assert [each.is_final for each in await ending] == [True]


async def test_text_that_was_ready_when_a_later_utterance_was_walked_away_from_is_not_lost(model):
    live = live_text(model, replace(OPTIONS, partials=False))
    transcribe = model.transcribe

    async def second_never(samples, options, *, live):
        if len(model.transcribed) == 1:
            model.free.clear()
        return await transcribe(samples, options, live=live)

    model.transcribe = second_never
    await abandon(feed(live, (speech(10) + silence(20)) * 3), lambda: len(model.transcribed) == 2)
    model.free.set()
    model.transcribe = transcribe
    updates = await feed(live, silence(1))
    assert [(each.utterance.number, each.is_final, each.error) for each in updates] == [
        (0, True, None),
        (2, True, None),
    ]


async def test_no_partial_text_overtakes_a_final_one(model):
    live = live_text(model)
    model.free.clear()
    await abandon(live.feed((speech(10) + silence(20)) * 2 + speech(20)), lambda: model.transcribed)
    assert live.ready() == []
    model.free.set()
    assert [(each.utterance.number, each.is_final) for each in await live.finish()] == [(1, True), (2, True)]


async def test_a_stream_that_is_behind_gets_no_guesses_between_its_pieces_either(model):
    live = live_text(model)
    model.drafting_free.clear()
    await feed(live, *[speech(2)] * 8)
    await live.feed(speech(12), behind=True)
    model.drafting_free.set()
    await until(lambda: model.drafts_done)
    (update,) = live.ready()
    assert not update.is_final
    await live.feed(silence(6), behind=True)
    assert live.ready() == []
    assert (len(model.drafted), len(model.transcribed)) == (1, 0)
    live.close()


async def test_no_partial_text_comes_once_it_is_not_wanted(model):
    model.drafting_free.clear()
    live = live_text(model)
    await feed(live, *[speech(2)] * 8)
    live.update(DecodeOptions(), replace(OPTIONS, partials=False), LanguageChoice("en"))
    model.drafting_free.set()
    assert await feed(live, *[speech(2)] * 8) == []
    assert len(model.drafted) == 1
    live.close()


@pytest.mark.parametrize("then", ["feed", "flush", "finish"])
async def test_a_piece_that_was_walked_away_from_is_still_heard_and_before_the_next(model, then):
    voice = Voice()
    voice.held = asyncio.Event()
    live = live_text(model, replace(OPTIONS, partials=False), voice=voice)
    await abandon(live.feed(speech(10) + silence(20) + speech(8)), lambda: voice.asked)
    assert live.ready() == []
    rest = asyncio.ensure_future(live.feed(silence(20)) if then == "feed" else getattr(live, then)())
    await asyncio.wait({rest}, timeout=0.05)
    assert not rest.done()
    voice.held.set()
    updates = await rest
    assert [(each.utterance.number, each.error) for each in updates] == [(0, None), (1, None)]
    assert updates[1].utterance.speech_end == 38 * CHUNK


async def test_sound_that_could_not_be_rated_is_an_error_and_the_stream_goes_on(model):
    voice = Voice()
    live = live_text(model, replace(OPTIONS, partials=False), voice=voice)
    await feed(live, speech(10))
    voice.error = ValueError("no speech, no silence")
    with pytest.raises(ValueError, match="no speech, no silence"):
        await live.feed(silence(2))
    (update,) = await feed(live, silence(20), speech(10))
    assert update.utterance.speech_end == 10 * CHUNK
    (update,) = await live.finish()
    assert update.utterance.speech_start == 32 * CHUNK
    assert live.received == 42 * CHUNK


async def test_a_recordings_stretches_of_speech_are_transcribed_at_once_and_come_in_order(model):
    live = live_text(model, replace(OPTIONS, partials=True, together=3))
    model.free.clear()
    assert await live.feed((speech(10) + silence(20)) * 2) == []  # nobody waits for them
    await until(lambda: len(model.transcribed) == 2)
    waiting = asyncio.ensure_future(live.feed((speech(10) + silence(20)) * 3))
    await until(lambda: len(model.transcribed) == 3)
    assert not waiting.done()  # as many as may be are at work
    model.free.set()
    updates = [*await waiting, *await live.finish()]
    assert [each.utterance.number for each in updates] == [0, 1, 2, 3, 4]
    assert all(each.is_final for each in updates)
    assert model.drafted == []
    assert not any(live for *_, live in model.transcribed)


async def test_what_a_recording_has_at_work_is_cancelled_at_its_end(model):
    before = tasks()
    live = live_text(model, replace(OPTIONS, together=3))
    model.free.clear()
    await live.feed((speech(10) + silence(20)) * 2)
    await until(lambda: len(model.transcribed) == 2)
    live.close()
    await until(lambda: model.cancelled == 2)
    await until(lambda: tasks() <= before)


async def read(model, *pieces):
    """Feed pieces of a stream whose text goes on in the sentence before; return the text of finals."""
    model.going_on = True
    live = live_text(model, replace(OPTIONS, partials=False))
    updates = [*await feed(live, *pieces), *await live.finish()]
    live.close()
    return [text_of(each) if each.error is None else None for each in updates]


async def test_a_full_stop_leads_the_next_text(model):
    model.words = lambda samples: "So it is."
    assert await read(model, speech(10), silence(15), speech(12)) == ["So it is", ". So it is."]
    _, (_, options, _) = model.transcribed
    assert options.before.text == "So it is"
    assert len(options.before.samples) == 25 * CHUNK - 1600  # up to the 0.1 s that are kept before speech


async def test_a_full_stop_comes_at_the_end_of_a_long_pause_and_only_once(model):
    model.words = lambda samples: "So it is."
    assert await read(model, speech(10), *[silence(2)] * 20) == ["So it is", "."]
    found = await read(model, speech(10), *[silence(2)] * 20, speech(10), silence(5))
    assert found == ["So it is", ".", "So it is."]


async def test_a_full_stop_comes_before_what_is_said_after_a_long_pause_however_much_comes_at_once(model):
    model.words = lambda samples: "So it is."
    found = await read(model, speech(10) + silence(40) + speech(10) + silence(15) + speech(6))
    assert found == ["So it is", ".", "So it is", ". So it is."]


async def test_a_full_stop_comes_before_an_error(model):
    model.words = lambda samples: "So it is."
    model.going_on = True
    live = live_text(model, replace(OPTIONS, partials=False))
    first = await feed(live, speech(10), silence(12))
    model.error = ValueError("broken weights")
    rest = await feed(live, speech(10), silence(12), speech(10))
    assert [text_of(each) for each in first] == ["So it is"]
    assert [each.error is None for each in rest] == [True, False]
    assert text_of(rest[0]) == "."
    (last,) = await live.finish()
    assert text_of(last) == "So it is."
    assert model.transcribed[-1][1].before is None


async def test_a_full_stop_comes_with_a_flush(model):
    model.words = lambda samples: "So it is."
    model.going_on = True
    live = live_text(model, replace(OPTIONS, partials=False))
    assert [text_of(each) for each in await feed(live, speech(10), silence(12))] == ["So it is"]
    assert [text_of(each) for each in await live.flush()] == ["."]
    assert await live.finish() == []


@pytest.mark.parametrize(("can", "wanted"), [(False, True), (True, False)])
async def test_text_is_told_as_it_is_where_it_cannot_go_on_or_is_not_to(model, can, wanted):
    model.words = lambda samples: "So it is."
    model.going_on = can
    live = live_text(model, replace(OPTIONS, partials=False, sentences=wanted))
    updates = [*await feed(live, speech(10), silence(15), speech(12)), *await live.finish()]
    assert [text_of(each) for each in updates] == ["So it is.", "So it is."]
    assert [options.before for _, options, _ in model.transcribed] == [None, None]

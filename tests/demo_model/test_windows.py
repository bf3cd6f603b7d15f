"""Windows to train on: where words are, what is cut off, and what the decoder is to write."""

import random

import numpy as np
import pytest
import torch
import whisper.audio

from tools.demo_model.batches import collate, spectra
from tools.demo_model.corpus import UNKNOWN, Corpus
from tools.demo_model.generate import log_mel
from tools.demo_model.targets import PROMPT_TOKENS, Writer
from tools.demo_model.tokens import Tokens
from tools.demo_model.vocabulary import WORDS
from tools.demo_model.windows import ONSET_CLASSES, WINDOW_FRAMES, Composer, Window

TOKENS = Tokens()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Utterances whose every word lasts 30 frames, 4 frames of edge around them, its loudness telling the word."""
    path = tmp_path_factory.mktemp("corpus") / "toy-0.pt"
    rng = random.Random(0)
    words = [[rng.choice(WORDS) for _ in range(length)] for length in range(1, 9) for _ in range(5)]
    mels = [torch.full((30 * len(each) + 8, 80), -1.0, dtype=torch.float16) for each in words]
    spans = [[(0.04 + 0.3 * k, 0.34 + 0.3 * k) for k in range(len(each))] for each in words]
    torch.save(
        {
            "mel": torch.cat(mels),
            "words": words,
            "spans": spans,
            "phonemes": [[(a, b, "a") for a, b in each] for each in spans],
            "voices": ["toy"] * len(words),
            "frames": [len(mel) for mel in mels],
        },
        path,
    )
    return Corpus([path], ["a"])


@pytest.fixture(scope="module")
def composer(corpus):
    return Composer(corpus, [np.full((WINDOW_FRAMES, 80), -3.0, np.float32)])


def windows(composer, frames, most, count=200):
    """One after the other: a window has a megabyte."""
    return (composer.compose(frames, most, random.Random(seed)) for seed in range(count))


def test_an_utterance_drawn_fits_and_is_not_too_short(corpus):
    rng = random.Random(1)
    drawn = [corpus.draw(100, rng, 60) for _ in range(50)]
    assert {len(utterance.mel) for utterance in drawn} == {68, 98}
    assert corpus.draw(30, rng) is None
    assert len(corpus.draw(40, rng, 1000).mel) == 38  # none is long enough: the longest that fits


@pytest.mark.parametrize(("frames", "most"), [(300, 2), (1000, 6), (WINDOW_FRAMES, 14)])
def test_words_lie_in_order_within_the_window_and_are_labelled(composer, frames, most):
    for window in windows(composer, frames, most):
        spans = np.array([span for segment in window.segments for span in segment.spans]).reshape(-1, 2)
        assert np.all(spans[:, 0] < spans[:, 1])
        assert np.all(np.diff(spans.flatten()) >= -1e-6)
        assert np.all((spans >= 0) & (spans <= frames / 2))
        for segment in window.segments:
            for word, (start, end) in zip(segment.words, segment.spans, strict=True):
                if end - start >= 3:
                    assert window.words[int((start + end) / 2)] == word + 1
        assert window.end <= window.content <= frames or not window.segments
        assert window.offset + frames // 2 <= WINDOW_FRAMES // 2


def test_a_share_of_windows_holds_nothing_one_word_or_many_utterances(composer):
    counts = [len(window.segments) for window in windows(composer, WINDOW_FRAMES, 14)]
    assert 5 < counts.count(0) < 40
    assert sum(count >= 6 for count in counts) > 30
    assert max(counts) >= 10


def test_only_a_full_window_resumes_and_only_after_a_whole_utterance(composer):
    full = 0
    for window in windows(composer, WINDOW_FRAMES, 14):
        if window.resume is None:
            continue
        full += 1
        assert window.segments
        assert window.segments[-1].spans[-1][1] < window.resume < WINDOW_FRAMES / 2
        assert window.content == WINDOW_FRAMES
    assert full > 10
    for window in windows(composer, 600, 4):
        assert window.resume is None or 2 * window.offset + 600 > WINDOW_FRAMES - 15


def test_onsets_count_down_to_the_next_word():
    window = Window(np.zeros((100, 80), np.float32))
    assert set(window.onsets()) == {ONSET_CLASSES - 1}
    window.resume = 40.0
    onsets = window.onsets()
    assert np.all(np.diff(onsets[:40]) <= 0)
    assert set(onsets[40:]) == {ONSET_CLASSES - 1}
    assert onsets[39] == 1  # 20 ms


@pytest.mark.parametrize("prompts", [0.0, 1.0])
def test_sequences_are_what_transcribe_reads_and_writes(composer, prompts):
    writer = Writer(TOKENS)
    for seed, window in enumerate(windows(composer, WINDOW_FRAMES, 14)):
        sequence = writer.write(window, prompts, PROMPT_TOKENS, random.Random(seed))
        lengths = {len(part) for part in vars(sequence).values()}
        assert len(lengths) == 1
        start = sequence.read.index(TOKENS.sot)
        assert (sequence.read[0] == TOKENS.previous) == (prompts == 1.0)
        assert start <= PROMPT_TOKENS + 1
        assert set(sequence.write[:start]) <= {UNKNOWN}
        assert 0 <= min(sequence.positions) <= max(sequence.positions) < 448
        assert np.all(np.diff(sequence.positions) == 1)
        written = sequence.write[start:]
        assert written[-1] == TOKENS.eot
        said = [piece for piece in written if 0 <= piece < TOKENS.texts]
        assert said == [p for segment in window.segments for word in segment.words for p in TOKENS.words[word]]
        assert (written[0] == TOKENS.no_speech) == (not window.segments)


def test_timestamps_come_in_pairs_and_rise(composer):
    writer = Writer(TOKENS)
    for seed, window in enumerate(windows(composer, WINDOW_FRAMES, 14)):
        sequence = writer.write(window, 0.0, 1, random.Random(seed))
        if TOKENS.no_timestamps in sequence.read or not window.segments:
            continue
        times = [token - TOKENS.first_timestamp for token in sequence.write if token >= TOKENS.first_timestamp]
        assert len(times) == 2 * len(window.segments) + (window.resume is not None)
        assert times == sorted(times)
        assert times[0] <= 10  # 1.0 s


def test_guides_point_to_where_the_token_is_heard(composer):
    window = next(window for window in windows(composer, 1000, 6) if len(window.segments) > 1)
    for seed in range(20):
        sequence = Writer(TOKENS).write(window, 0.0, 1, random.Random(seed))
        spans = [tuple(map(float, span)) for segment in window.segments for span in segment.spans]
        pieces = [len(TOKENS.words[word]) for segment in window.segments for word in segment.words]
        wanted = [span for span, count in zip(spans, pieces, strict=True) for _ in range(count)]
        text = [0 <= token < TOKENS.texts for token in sequence.write]
        ahead = [tuple(span) for span, is_text in zip(sequence.ahead, text, strict=True) if is_text]
        assert ahead == wanted
        assert sequence.behind[-1] == sequence.ahead[-2]


def test_a_mistake_in_what_was_read_is_none_in_what_is_to_be_written(composer):
    window = next(window for window in windows(composer, 1000, 6) if len(window.segments) > 2)
    written = {tuple(Writer(TOKENS).write(window, 0.0, 1, random.Random(seed)).write) for seed in range(60)}
    read = {tuple(Writer(TOKENS).write(window, 0.0, 1, random.Random(seed)).read) for seed in range(60)}
    assert len(written) == 2  # with timestamps and without
    assert len(read) > 10


def test_spectra_are_scaled_as_whisper_scales_them():
    """Without noise, level and timbre, a window is what whisper.audio makes of the sound."""
    samples = np.random.default_rng(0).standard_normal(16_000 * 3).astype(np.float32) * 0.1
    window = Window(log_mel(samples).astype(np.float32), content=300)

    class Plain(random.Random):
        def random(self):
            return 0.99  # no equaliser, no louder part elsewhere, no padding of the scaled spectrum

        def uniform(self, *_):
            return 0.0

    made = spectra([window], Plain(0), augment=False)[0]
    theirs = whisper.audio.log_mel_spectrogram(samples).T
    assert made.numpy() == pytest.approx(theirs.numpy(), abs=0.005)  # the corpus is kept in half precision


def test_a_batch_says_nothing_about_what_is_beyond_the_sound(composer):
    made = list(windows(composer, 600, 4, 12))
    sequences = [Writer(TOKENS).write(window, 0.5, 40, random.Random(1)) for window in made]
    batch = collate(made, sequences, random.Random(2), augment=True)
    assert batch.mel.shape == (12, 80, 600)
    assert torch.isfinite(batch.mel).all()
    assert batch.read.shape == batch.write.shape == batch.positions.shape == batch.ahead.shape[:2]
    assert batch.words.shape == batch.onsets.shape == batch.phonemes.shape == (12, 300)
    for row, window in enumerate(made):
        assert (batch.words[row, window.content // 2 + 5 :] == UNKNOWN).all()
    there = batch.ahead[..., 0] >= 0
    assert (batch.ahead[there][:, 1] - batch.ahead[there][:, 0] >= 2).all()

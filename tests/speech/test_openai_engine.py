"""The reference engine: the demo model on the fixtures, and models that say what the test wants."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import whisper
from whisper.decoding import DecodingResult, DecodingTask
from whisper.model import ModelDimensions, Whisper, disable_sdpa
from whisper.tokenizer import get_tokenizer

from audio.wav import read_wav
from whisper_byoc.speech import hallucination
from whisper_byoc.speech import openai_engine as module
from whisper_byoc.speech.engine import Cancelled, DecodeOptions
from whisper_byoc.speech.hallucination import RETRY_TEMPERATURE, max_tokens
from whisper_byoc.speech.openai_engine import OpenAIEngine

RATE = 16_000
# openai-whisper leaves the file of its tokenizer to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")


@pytest.fixture
def engine(reference_engine):
    return reference_engine


@pytest.fixture
def sound(fixtures_dir):
    return lambda name: read_wav((fixtures_dir / name).read_bytes())


ONE_UTTERANCE = [
    *("demo-stop.wav", "demo-hello-world.wav", "demo-numbers.wav", "demo-colours-fast.wav", "demo-directions-slow.wav"),
    *("demo-spelling.wav", "demo-pipeline.wav", "demo-numbers-noise-15db.wav"),
]


@pytest.mark.parametrize("name", ONE_UTTERANCE)
def test_a_draft_has_the_words_and_about_where_they_were_heard(engine, sound, texts, name):
    (truth,) = texts[name]["utterances"]
    draft = engine.draft(sound(name), DecodeOptions()).result()
    assert (draft.text, draft.language) == (truth["text"], "en")
    ends_of_draft = [word.end for word in draft.words]
    assert len(ends_of_draft) == len(truth["text"].split())
    assert ends_of_draft == sorted(ends_of_draft)
    assert truth["start"] - 0.1 < ends_of_draft[0]
    assert truth["end"] - 0.9 < ends_of_draft[-1] < truth["end"] + 0.1
    heard = engine.transcribe(sound(name), DecodeOptions(words=True)).result()
    ends = [word.end for segment in heard.segments for word in segment.words]
    if len(ends) > 1:  # openai-whisper has no end for a word that is alone
        assert ends_of_draft == pytest.approx(ends, abs=0.6)  # it looks into the word, at the latest at its end


def test_a_draft_of_half_an_utterance_has_its_first_words(engine, sound):
    draft = engine.draft(sound("demo-numbers.wav")[: int(1.75 * RATE)], DecodeOptions()).result()
    assert draft.text.startswith("seven three")
    assert draft.words[-1].end <= 1.75


@pytest.mark.parametrize("samples", [1, 100, 1600, 30 * RATE])
def test_drafts_of_any_length(engine, samples):
    draft = engine.draft(np.zeros(samples, np.float32), DecodeOptions()).result()
    assert all(0 < word.end <= 30 for word in draft.words)


@pytest.mark.parametrize(
    ("way", "options"),
    [("transcribe", DecodeOptions()), ("transcribe", DecodeOptions(words=True)), ("draft", DecodeOptions())],
)
def test_work_is_cancelled_between_any_two_blocks(engine, sound, way, options):
    samples, asked = sound("demo-stop.wav"), 0

    def count():
        nonlocal asked
        asked += 1
        return asked > last

    last = 1_000_000
    whole = getattr(engine, way)(samples, options, count).result()
    assert asked >= 8  # the blocks of the encoder, and those of the decoder for each token
    for last in range(0, asked, 3):
        asked = 0
        with pytest.raises(Cancelled):
            getattr(engine, way)(samples, options, count).result()
        assert asked == last + 1
    asked, last = 0, 1_000_000
    assert getattr(engine, way)(samples, options, count).result() == whole
    asked = 0
    assert getattr(engine, way)(samples, options).result() == whole
    assert asked == 0  # nothing is left on the model


@pytest.mark.parametrize("way", ["a second try", "the times of words"])
def test_a_window_is_encoded_once_whatever_is_done_with_it(engine, sound, monkeypatch, way):
    samples, encoded = sound("demo-stop.wav"), []
    expected = engine.transcribe(samples, DecodeOptions()).result()
    if way == "a second try":
        monkeypatch.setattr(hallucination, "MIN_LOGPROB", 1.0)
    hook = engine.model.encoder.conv1.register_forward_hook(lambda *_: encoded.append(1))
    try:
        heard = engine.transcribe(samples, DecodeOptions(words=way == "the times of words")).result()
    finally:
        hook.remove()
    assert (heard.text, len(encoded)) == (expected.text, 1)
    assert "forward" not in vars(engine.model.encoder)


def test_another_window_is_encoded_anew(engine, sound, texts):
    names = ["demo-stop.wav", "demo-hello-world.wav"]
    far = [np.pad(sound(name), (0, 30 * RATE - len(sound(name)))) for name in names]
    heard = engine.transcribe(np.concatenate(far), DecodeOptions()).result()
    assert heard.text == " ".join(each["text"] for name in names for each in texts[name]["utterances"])


def test_drafts_leave_nothing_on_the_model(engine, sound):
    engine.draft(sound("demo-stop.wav"), DecodeOptions()).result()
    assert not any(each._forward_hooks for each in engine.model.modules())


def test_two_replicas_in_two_threads_find_word_times_at_once(engine, sound, texts):
    names = ["demo-numbers.wav", "demo-spelling.wav"] * 2
    expected = [engine.transcribe(sound(name), DecodeOptions(words=True)).result() for name in names]
    replicas = [engine, engine.replica()]
    found, both = [None] * len(names), threading.Barrier(2, timeout=20)

    def run(worker):
        both.wait()
        for turn in range(worker, len(names), 2):
            found[turn] = replicas[worker].transcribe(sound(names[turn]), DecodeOptions(words=True)).result()
            replicas[worker].draft(sound(names[turn]), DecodeOptions()).result()

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(50)
    assert found == expected
    assert [word.text for word in found[0].segments[0].words] == texts[names[0]]["text"].split()


@pytest.mark.parametrize("words", [False, True])
def test_the_switch_that_other_threads_turn_changes_nothing(engine, sound, words):
    samples, options = sound("demo-numbers.wav"), DecodeOptions(words=words)
    expected, draft = engine.transcribe(samples, options).result(), engine.draft(samples, options).result()
    with disable_sdpa():
        assert engine.transcribe(samples, options).result() == expected
        assert engine.draft(samples, options).result() == draft


def test_a_replica_shares_the_weights_and_nothing_else(engine):
    replica = engine.replica()
    mine, its = engine.model, replica.model
    assert mine is not its
    assert [each.data_ptr() for each in its.parameters()] == [each.data_ptr() for each in mine.parameters()]
    assert its.decoder.blocks[0].cross_attn is not mine.decoder.blocks[0].cross_attn


# A model of whisper-tiny's languages that writes whatever the test wants

SMALL = ModelDimensions(80, 1500, 48, 2, 2, 51865, 448, 48, 2, 2)


class Scripted(Whisper):
    """Multilingual; the decoder is replaced where openai-whisper calls it, the encoder and the attention are real."""

    def __init__(self):
        torch.manual_seed(1)
        super().__init__(SMALL)
        torch.nn.init.normal_(self.decoder.positional_embedding, std=0.01)  # whatever was in memory, without this
        self.eval()
        self.texts = []
        self.asked = []

    def decode(self, mel, options):
        self.asked.append(options)
        text, score = self.texts.pop(0) if self.texts else ("", {})
        tokenizer = get_tokenizer(True, num_languages=self.num_languages, language=options.language or "fr")
        tokens = text if isinstance(text, list) else tokenizer.encode(" " + text)
        tokens = tokens[: options.sample_len]
        result = DecodingResult(
            audio_features=mel, language=options.language or "fr", tokens=tokens, text=tokenizer.decode(tokens).strip(),
            temperature=options.temperature,
            **{"avg_logprob": -0.2, "no_speech_prob": 0.1, "compression_ratio": 1.2} | score,
        )  # fmt: skip
        return result if mel.ndim == 2 else [result]


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(DecodingTask, "run", lambda task, encoded: task.model.decode(encoded, task.options))
    return Scripted()


SECOND = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32) / 50


def scripted(model, *texts):
    model.texts = [text if isinstance(text, tuple) else (text, {}) for text in texts]
    return OpenAIEngine(model)


def tokens_of(text):
    return get_tokenizer(True, num_languages=99, language="ja").encode(text)


def cut_inside(text):
    """Tokens of a text whose last character is cut in half."""
    tokens = tokens_of(text)
    tokenizer = get_tokenizer(True, num_languages=99, language="ja")
    for length in range(len(tokens) - 1, 0, -1):
        if tokenizer.decode(tokens[:length]).endswith("\ufffd"):
            return tokens[:length]
    raise AssertionError("no character of several tokens")


@pytest.mark.parametrize("language", ["ja", "ru", "fr"])
@pytest.mark.parametrize("text", ["日本語🦜", "привет 🦜", "𓂀𓁹"])
def test_a_character_is_never_cut(model, text, language):
    tokens = cut_inside(text)
    engine = scripted(model, tokens, tokens)
    options = DecodeOptions(language)
    draft = engine.draft(SECOND, options).result()
    heard = engine.transcribe(SECOND, options).result()
    for found in (draft.text, heard.text, *(word.text for word in draft.words)):
        assert "\ufffd" not in found
        assert found.strip() in text
    assert text.startswith(draft.text)


@pytest.mark.parametrize("text", ["日本語🦜", "привет 🦜", "𓂀𓁹"])
def test_a_character_is_not_cut_in_word_times_either(model, text):
    heard = scripted(model, *[cut_inside(text)] * 9).transcribe(SECOND, DecodeOptions("ja", words=True)).result()
    assert heard.segments
    for segment in heard.segments:
        assert text.startswith(segment.text)
        assert all("\ufffd" not in word.text for word in segment.words)


def test_drafts_of_scripts_without_blanks_have_none(model):
    text = "今日はとても良い天気です"
    draft = scripted(model, tokens_of(text)).draft(SECOND, DecodeOptions("ja")).result()
    assert draft.text == text
    assert len(draft.words) > 3


def test_punctuation_stays_with_its_word(model):
    draft = scripted(model, "Yes, I do. Don't you?").draft(SECOND, DecodeOptions("en")).result()
    assert draft.text == "Yes, I do. Don't you?"


def test_a_language_nobody_named_is_the_models_choice(model):
    found = scripted(model, "bonjour").transcribe(SECOND, DecodeOptions(None)).result()
    (piece,) = found.pieces
    assert piece.language == max(piece.chances, key=piece.chances.get)
    assert scripted(model, "bonjour").draft(SECOND, DecodeOptions(None)).result().language == piece.language
    sound = np.tile(SECOND, 45)  # two windows
    pieces = scripted(model, *["bonjour"] * 20).transcribe(sound, DecodeOptions(None)).result().pieces
    assert [each.end for each in pieces[:-1]] == [each.start for each in pieces[1:]]
    assert (pieces[0].start, pieces[-1].end) == (0.0, len(sound) / 16_000)


def test_an_english_model_is_not_asked_for_the_language(engine):
    (piece,) = engine.transcribe(SECOND, DecodeOptions(None)).result().pieces
    assert (piece.language, piece.chances) == ("en", {})
    assert tuple(engine.languages) == ("en",)


PROMPTED = DecodeOptions("en", prompt="we met in the garden", hotwords="Livepeer, Arbitrum, Orchestrator")


def test_the_model_is_told_what_to_expect(model):
    scripted(model, "we met", "we met").transcribe(SECOND, PROMPTED).result()
    tokenizer = get_tokenizer(True, num_languages=99)
    told = tokenizer.decode(model.asked[0].prompt)
    assert told.strip() == "Glossary: Livepeer, Arbitrum, Orchestrator. we met in the garden"
    scripted(model, "we met").draft(SECOND, PROMPTED).result()
    assert model.asked[-1].prompt == told.strip()


def test_an_echo_of_the_prompt_is_decoded_again_without_it(model):
    heard = scripted(model, "Livepeer, Arbitrum, Orchestrator.", "hello").transcribe(SECOND, PROMPTED).result()
    assert heard.text == "hello"
    assert [bool(each.prompt) for each in model.asked] == [True, False]


LOOP = "and so on " * 15


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Livepeer, Arbitrum, Orchestrator.", {}),
        ("thank you for watching", {"avg_logprob": -1.2, "no_speech_prob": 0.7}),
        (LOOP, {"compression_ratio": 5.0}),
    ],
)
def test_a_draft_shows_no_echo_nothing_invented_and_no_loop(model, text, score):
    assert scripted(model, (text, score)).draft(SECOND, PROMPTED).result().words == ()


@pytest.mark.parametrize("way", ["transcribe", "draft"])
def test_a_prompt_may_hold_what_whisper_has_a_token_of_its_own_for(engine, sound, way):
    assert getattr(engine, way)(sound("demo-stop.wav"), DecodeOptions(prompt="go <|en|>")).result().text == "stop"


def test_text_that_is_no_echo_is_decoded_once(model):
    assert scripted(model, "Livepeer is live").transcribe(SECOND, PROMPTED).result().text == "Livepeer is live"
    assert len(model.asked) == 1


GUESS = {"avg_logprob": -1.5}


def test_doubtful_text_gets_one_retry_and_the_better_one_is_taken(model):
    engine = scripted(model, ("murmur", GUESS), ("clear words", {"avg_logprob": -0.5}))
    assert engine.transcribe(SECOND, DecodeOptions("en")).result().text == "clear words"
    assert [each.temperature for each in model.asked] == [0.0, RETRY_TEMPERATURE]


def test_of_two_doubtful_texts_the_likelier_one_is_taken(model):
    engine = scripted(model, ("murmur", GUESS), ("worse", {"avg_logprob": -2.0}), ("never asked", {}))
    assert engine.transcribe(SECOND, DecodeOptions("en")).result().text == "murmur"
    assert len(model.asked) == 2


def test_a_second_try_that_is_an_echo_is_not_taken(model):
    engine = scripted(model, ("murmur", GUESS), ("Livepeer, Arbitrum, Orchestrator.", {}))
    assert engine.transcribe(SECOND, PROMPTED).result().text == "murmur"
    assert len(model.asked) == 2


def test_a_text_without_doubt_is_not_tried_again(model):
    scripted(model, "clear words").transcribe(SECOND, DecodeOptions("en")).result()
    assert len(model.asked) == 1


def test_invented_text_is_left_out_and_not_tried_again(model):
    score = {"avg_logprob": -1.2, "no_speech_prob": 0.7}
    heard = scripted(model, ("thank you for watching", score)).transcribe(SECOND, DecodeOptions("en")).result()
    assert (heard.text, heard.segments) == ("", ())
    assert len(model.asked) == 1


def test_a_loop_is_cut_and_loses_its_word_times(model):
    heard = (
        scripted(model, (LOOP, {"compression_ratio": 5.0}), (LOOP, {"compression_ratio": 5.0}))
        .transcribe(SECOND, DecodeOptions("en"))
        .result()
    )
    assert heard.text == "and so on"


def test_the_cap_on_tokens_is_that_of_the_length(model):
    engine = scripted(model, "a", "a")
    engine.transcribe(SECOND, DecodeOptions("en")).result()
    engine.draft(SECOND[:RATE], DecodeOptions("en")).result()
    assert [each.sample_len for each in model.asked] == [max_tokens(4), max_tokens(1)]


def test_nothing_is_carried_from_one_sound_to_the_next(model):
    engine = scripted(model, "first", "second")
    engine.transcribe(SECOND, DecodeOptions("en")).result()
    engine.transcribe(SECOND, DecodeOptions("en")).result()
    assert [each.prompt for each in model.asked] == [[], []]


def test_times_never_leave_the_sound(model):
    heard = scripted(model, "hello").transcribe(SECOND, DecodeOptions("en")).result()
    assert [(each.start, each.end) for each in heard.segments] == [(0.0, 4.0)]


NOISE = np.random.default_rng(5).standard_normal(RATE).astype(np.float32) / 10


@pytest.fixture
def attempts(monkeypatch):
    """Make every text doubtful, and collect the temperature and the text of each attempt."""
    monkeypatch.setattr(hallucination, "MIN_LOGPROB", 1.0)
    monkeypatch.setattr(hallucination, "MAX_NO_SPEECH", 1.0)
    real, found = whisper.transcribe, []

    def transcribe(*arguments, **options):
        result = real(*arguments, **options)
        found.append((options["temperature"], result["text"]))
        return result

    monkeypatch.setattr(module.whisper, "transcribe", transcribe)
    return found


def test_the_retry_of_the_same_sound_gives_the_same_text(engine, attempts):
    for seed in range(3):
        torch.manual_seed(seed)  # other threads use the random generator as well, which is the process's own
        engine.transcribe(NOISE, DecodeOptions()).result()
    assert [temperature for temperature, _ in attempts] == [0.0, RETRY_TEMPERATURE] * 3
    assert len(set(attempts)) == 2


def test_replicas_retry_one_at_a_time(engine, attempts, monkeypatch):
    """The random generator is global to the process."""
    real, retrying, together = module.whisper.transcribe, threading.Lock(), threading.Barrier(2, timeout=20)

    def transcribe(*arguments, **options):
        if not options["temperature"]:
            together.wait()
            return real(*arguments, **options)
        assert retrying.acquire(blocking=False), "two retries at once"
        try:
            return real(*arguments, **options)
        finally:
            retrying.release()

    monkeypatch.setattr(module.whisper, "transcribe", transcribe)
    with ThreadPoolExecutor(2) as pool:
        texts = list(
            pool.map(lambda each: each.transcribe(NOISE, DecodeOptions()).result(), (engine, engine.replica()))
        )
    assert texts[0] == texts[1]
    assert len(attempts) == 4


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_trial_decodes_so_many_tokens_of_silence(engine, tokens):
    passes = []
    hook = engine.model.decoder.register_forward_hook(lambda *_: passes.append(1))
    engine.rehearse(np.zeros(RATE, np.float32), tokens).result()
    hook.remove()
    assert len(passes) == tokens

"""Tokens against openai-whisper's, from every kind of vocabulary file."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.tokenizer import LANGUAGES as WHISPER_LANGUAGES
from whisper.tokenizer import get_encoding, get_tokenizer

from whisper_byoc.errors import ModelError
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.speech.fast import tokenizer as module
from whisper_byoc.speech.fast.tokenizer import Tokenizer, find_vocabulary
from whisper_byoc.speech.fast.weights import Dimensions

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*tiktoken:ResourceWarning")

ENGLISH = Dimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
MULTILINGUAL = Dimensions(80, 1500, 384, 6, 4, 51865, 448, 384, 6, 4)
NEWEST = Dimensions(128, 1500, 384, 6, 4, 51866, 448, 384, 6, 4)
BOTH = pytest.mark.parametrize("dims", [ENGLISH, MULTILINGUAL, NEWEST], ids=["English", "99", "100 languages"])


@functools.cache
def ours(dims):
    return Tokenizer(find_vocabulary(None, dims), dims)


@pytest.fixture(scope="module", autouse=True)
def _forgotten_in_the_end():
    """Each vocabulary takes some 20 MB."""
    yield
    for cached in (ours, get_tokenizer, get_encoding):
        cached.cache_clear()


def pair(dims, language="de"):
    multilingual = dims.multilingual
    theirs = get_tokenizer(
        multilingual, num_languages=dims.num_languages, language=language if multilingual else None, task="transcribe"
    )
    return ours(dims), theirs


def test_languages_are_openai_whispers():
    assert list(WHISPER_LANGUAGES.items()) == list(LANGUAGES.items())


@BOTH
def test_special_tokens(dims):
    mine, theirs = pair(dims)
    for name in ("eot", "sot", "translate", "transcribe", "sot_lm", "sot_prev", "no_speech", "no_timestamps"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert mine.timestamp_begin == theirs.timestamp_begin
    assert tuple(mine.start("de", "transcribe")) == theirs.sot_sequence
    assert mine.languages == dict(zip(theirs.all_language_codes, theirs.all_language_tokens, strict=True))
    assert mine.blank == [*theirs.encode(" "), theirs.eot]
    others = (theirs.transcribe, theirs.translate, theirs.sot, theirs.sot_prev, theirs.sot_lm, theirs.no_speech)
    assert mine.suppressed == sorted({*theirs.non_speech_tokens, *others})


def test_what_a_translation_begins_with():
    mine, _ = pair(MULTILINGUAL)
    theirs = get_tokenizer(True, num_languages=99, language="ja", task="translate")
    assert tuple(mine.start("ja", "translate")) == theirs.sot_sequence


TEXTS = [
    ' Hello, don\'t you?  Twenty-two (22)... "yes"',
    " 今日はとても良い天気です",
    " naïve café — ok",
    "𓂀𓁹 привет 🦜",
    " \ufffd real",
]


@BOTH
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_text_and_words(dims, text, language):
    mine, theirs = pair(dims, language)
    tokens = mine.encode(text)
    assert tokens == theirs.encode(text)
    assert mine.decode([*tokens, mine.timestamp_begin + 3]) == theirs.decode(tokens)
    if dims.multilingual or language == "en":
        ended = [*tokens, mine.eot]
        assert mine.words(ended, language) == theirs.split_to_word_tokens(ended)


@settings(max_examples=100)
@given(tokens=st.lists(st.integers(0, 50_255), max_size=12), language=st.sampled_from(["en", "ja"]))
def test_any_tokens_make_words_that_lose_none(tokens, language):
    mine, _ = pair(MULTILINGUAL)
    texts, groups = mine.words(tokens, language)
    assert [token for group in groups for token in group] == tokens
    assert len(texts) == len(groups)


def test_a_cut_character_belongs_to_the_word_before():
    mine, _ = pair(MULTILINGUAL)
    tokens = mine.encode(" yes🦜")[:-1]
    texts, groups = mine.words(tokens, "en")
    assert [token for group in groups for token in group] == tokens
    assert texts[0].startswith(" yes")


def byte_level(token):
    table = {byte: character for character, byte in module.byte_characters().items()}
    return "".join(table[byte] for byte in token)


@BOTH
def test_every_kind_of_file(dims, tmp_path):
    expected = find_vocabulary(None, dims)
    tokens = [byte_level(token) for token in expected]
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|0.00|>"]
    files = {
        "vocabulary.txt": "\n".join([*tokens, *special]) + "\n",
        "vocabulary.json": json.dumps([*tokens, *special]),
        "tokenizer.json": json.dumps({"model": {"vocab": {token: at for at, token in enumerate([*tokens, *special])}}}),
    }
    for name, contents in files.items():  # each is preferred to those before
        (tmp_path / name).write_text(contents, encoding="utf-8")
        assert find_vocabulary(tmp_path, dims) == expected
    module.write_tiktoken(expected, tmp_path / "kept.tiktoken")
    assert module.read_tiktoken(tmp_path / "kept.tiktoken") == expected


@BOTH
def test_openai_whisper_need_not_be_installed(dims, tmp_path, monkeypatch):
    expected = find_vocabulary(None, dims)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    with pytest.raises(ModelError, match="not installed"):
        find_vocabulary(None, dims)
    module.write_tiktoken(expected, tmp_path / ("multilingual.tiktoken" if dims.multilingual else "gpt2.tiktoken"))
    assert find_vocabulary(None, dims) == expected


@pytest.mark.parametrize(
    ("name", "contents", "reason"),
    [
        ("tokenizer.json", "{", "not JSON"),
        ("tokenizer.json", "[" * 9999, "not JSON"),
        ("tokenizer.json", "[]", "no `model.vocab`"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "1"}}}', "no `model.vocab`"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 1}}}', "leaves out"),
        ("tokenizer.json", '{"model": {"vocab": {"日": 0}}}', "byte-level"),
        ("vocabulary.json", '{"a": 1}', "not a list"),
        ("vocabulary.txt", b"\xff", "not UTF-8"),
        ("other.txt", "", "no tokenizer.json"),
    ],
)
def test_files_that_are_no_vocabulary_are_refused(tmp_path, name, contents, reason):
    (tmp_path / name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(ModelError, match=reason):
        find_vocabulary(tmp_path, ENGLISH)


def test_a_file_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1 << 20)
    (tmp_path / "vocabulary.txt").write_bytes(b"a\n" * (1 << 20))
    with pytest.raises(ModelError, match="more than 1 MB"):
        find_vocabulary(tmp_path, ENGLISH)


@pytest.mark.parametrize("tokens", [[b"a"], [b"a"] * 50_256])
def test_a_vocabulary_of_another_model_is_refused(tokens):
    with pytest.raises(ModelError, match="vocabulary"):
        Tokenizer(tokens, ENGLISH)


def test_a_long_prompt_loses_its_beginning_and_no_hotword():
    tokenizer, text = ours(ENGLISH), " ".join(map(str, range(400)))
    tokens = tokenizer.prompt(text, "Glossary: Livepeer.")
    assert len(tokens) == 223
    assert tokenizer.decode(tokens).startswith(" Glossary: Livepeer.")
    assert tokenizer.decode(tokens).endswith(" 397 398 399")
    assert tokenizer.prompt(text)[-100:] == tokens[-100:]
    assert len(tokenizer.prompt("", text)) == 223
    assert tokenizer.prompt(" ", "") == []

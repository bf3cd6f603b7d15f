"""Whisper's tokens: converting text to and from numbers, special tokens, and which tokens make a word.

The vocabulary comes from a file: openai-whisper's (`gpt2.tiktoken`, `multilingual.tiktoken`) or that of a CTranslate2
folder (`tokenizer.json`, `vocabulary.json`, `vocabulary.txt`). Numbers of special tokens follow from its size.
"""

import base64
import binascii
import functools
import importlib.util
import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_byoc.errors import ModelError
from whisper_byoc.languages import LANGUAGES
from whisper_byoc.speech.fast.weights import Dimensions

if TYPE_CHECKING:
    import tiktoken

ASSETS = Path(__file__).resolve().parent.parent / "assets"
"""Where an image without openai-whisper keeps its vocabularies."""
MAX_FILE_BYTES = 32 << 20
LONGEST_PROMPT = 223
"""Tokens (openai-whisper, `n_text_ctx // 2 - 1`)."""
TIMESTAMPS = 1501
"""0.00 to 30.00 s in steps of 0.02 s."""
UNSPACED = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages without spaces between words (openai-whisper, `split_to_word_tokens`)."""
SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""GPT-2's rule for splitting text before its bytes are merged (openai-whisper, `get_encoding`)."""
NOTES = "♩♪♫♬♭♮♯"
_GROUPS = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪"
SYMBOLS = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *_GROUPS.split(),
    *NOTES,
)
"""Symbols for things that are not spoken (openai-whisper, `non_speech_tokens`)."""
NEEDED = (b" ", b" -", b" '", b"\xe2\x99", b" \xe2\x99")
"""Tokens that the decoding rules name; the last two begin the notes."""
CUT_CHARACTER = "\ufffd"
"""Marks where a text begins or ends in the middle of a character."""


class Tokenizer:
    """The tokens of one model."""

    def __init__(self, text_tokens: Sequence[bytes], dims: Dimensions) -> None:
        """`text_tokens[number]` holds the bytes of a token. Raises `ModelError` when they do not fit the model."""
        if len(text_tokens) + len(_special_names(dims.num_languages)) != dims.n_vocab:
            raise ModelError(
                f"The vocabulary has {len(text_tokens)} tokens of text, which does not fit a model of {dims.n_vocab}."
            )
        self.multilingual = dims.multilingual
        self.text_tokens = tuple(text_tokens)
        self._special = special = {
            name: len(text_tokens) + at for at, name in enumerate(_special_names(dims.num_languages))
        }
        self._bytes = (*text_tokens, *map(str.encode, special))
        self.eot = special["<|endoftext|>"]
        self.sot = special["<|startoftranscript|>"]
        self.translate = special["<|translate|>"]
        self.transcribe = special["<|transcribe|>"]
        self.sot_lm = special["<|startoflm|>"]
        self.sot_prev = special["<|startofprev|>"]
        self.no_speech = special["<|nospeech|>"]
        self.no_timestamps = special["<|notimestamps|>"]
        self.timestamp_begin = special["<|0.00|>"]
        self.languages = {code: special[f"<|{code}|>"] for code in list(LANGUAGES)[: dims.num_languages]}
        """Language code -> token."""
        self._numbers = {token: number for number, token in enumerate(text_tokens)}
        if len(self._numbers) != len(text_tokens):
            raise ModelError("The vocabulary has a token of text twice.")
        if missing := [token for token in NEEDED if token not in self._numbers]:
            raise ModelError(f"The vocabulary has no token {missing[0]!r}, which every Whisper's has.")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of text. Raises `ValueError` for text that contains the name of a special token."""
        return self._encoding.encode(text)

    def prompt(self, text: str, glossary: str = "") -> list[int]:
        """Return the tokens of what precedes a transcript: a glossary, and as much of the end of a text as fits."""
        first, last = (self.encode(f" {each.strip()}") if each.strip() else [] for each in (glossary, text))
        first = first[:LONGEST_PROMPT]
        return first + last[max(0, len(first) + len(last) - LONGEST_PROMPT) :]

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, without timestamps."""
        return self._text(token for token in tokens if token < self.timestamp_begin)

    def start(self, language: str | None, task: str) -> list[int]:
        """Return the tokens that a transcript begins with; an English-only model has one."""
        if not self.multilingual:
            return [self.sot]
        return [self.sot, self.languages[language or "en"], self.translate if task == "translate" else self.transcribe]

    @functools.cached_property
    def suppressed(self) -> list[int]:
        """Tokens that never occur in a transcript (openai-whisper, `DecodingTask._get_suppress_tokens`), sorted."""
        found = {self.transcribe, self.translate, self.sot, self.sot_prev, self.sot_lm, self.no_speech}
        found |= {self._numbers[b" -"], self._numbers[b" '"]}
        for symbol in SYMBOLS:
            for text in (symbol.encode(), f" {symbol}".encode()):
                if text in self._numbers:
                    found.add(self._numbers[text])
                elif symbol in NOTES:  # of one that takes two tokens, the first has all of its bytes but the last
                    found.add(self._numbers[text[:-1]])
        return sorted(found)

    @functools.cached_property
    def blank(self) -> list[int]:
        """Tokens that a transcript does not begin with (openai-whisper, `SuppressBlank`)."""
        return [self._numbers[b" "], self.eot]

    def words(self, tokens: Sequence[int], language: str | None) -> tuple[list[str], list[list[int]]]:
        """Split tokens into words, and return their texts and tokens (openai-whisper, `split_to_word_tokens`).

        A word begins with a space or is punctuation; in a language without spaces, every character is a word.
        """
        pieces = self._characters(tokens)
        if language in UNSPACED:
            return [text for text, _ in pieces], [group for _, group in pieces]
        words: list[str] = []
        groups: list[list[int]] = []
        for text, group in pieces:
            apart = group[0] >= self.eot or text.startswith(" ") or text.strip() in string.punctuation
            if apart or not words:
                words.append(text)
                groups.append(list(group))
            else:
                words[-1] += text
                groups[-1] += group
        return words, groups

    def _characters(self, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Split tokens where a character ends; a last character that is cut off counts by itself."""
        pieces: list[tuple[str, list[int]]] = []
        whole = self._text(tokens)
        at, group = 0, list[int]()
        for token in tokens:
            group.append(token)
            text = self._text(group)
            cut = text.find(CUT_CHARACTER)
            if cut < 0 or whole[at + cut : at + cut + 1] == CUT_CHARACTER:  # the text itself may have this character
                pieces.append((text, group))
                at, group = at + len(text), []
        if group and pieces:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + group)
        elif group:
            pieces.append((self._text(group), group))
        return pieces

    def _text(self, tokens: Iterable[int]) -> str:
        return b"".join(self._bytes[token] for token in tokens).decode(errors="replace")

    @functools.cached_property
    def _encoding(self) -> "tiktoken.Encoding":
        """Byte-pair encoding, needed only for prompts: it takes 20 MB and a tenth of a second to make."""
        import tiktoken

        return tiktoken.Encoding(
            name="whisper", pat_str=SPLIT, mergeable_ranks=self._numbers, special_tokens=self._special
        )


def find_vocabulary(folder: Path | None, dims: Dimensions) -> list[bytes]:
    """Return the text tokens of a model, from its folder if it has one, else from openai-whisper's files.

    The latter are in `ASSETS`, or in openai-whisper, which is not imported. Raises `ModelError` if there are none.
    """
    if folder is not None:
        for name, read in (
            ("tokenizer.json", read_tokenizer_json),
            ("vocabulary.json", read_vocabulary_json),
            ("vocabulary.txt", read_vocabulary_text),
        ):
            if (folder / name).is_file():
                return read(folder / name)
        raise ModelError(f"{folder} has no tokenizer.json, vocabulary.json or vocabulary.txt.")
    name = "multilingual.tiktoken" if dims.multilingual else "gpt2.tiktoken"
    if (ASSETS / name).is_file():
        return read_tiktoken(ASSETS / name)
    package = importlib.util.find_spec("whisper")
    if package is None or package.origin is None:
        raise ModelError("The vocabulary of a .pt file is that of the package openai-whisper, which is not installed.")
    return read_tiktoken(Path(package.origin).parent / "assets" / name)


def read_tiktoken(path: Path) -> list[bytes]:
    """Read a vocabulary in tiktoken's format: a base64 token and its number on each line."""
    try:
        words = _read(path).split()
        tokens = map(binascii.a2b_base64, words[::2])  # one is empty: "="
        numbers = dict(zip(map(int, words[1::2]), tokens, strict=True))
    except (ValueError, binascii.Error) as error:
        raise ModelError(f"{path} is not a vocabulary in tiktoken's form.") from error
    return _in_order(path, numbers)


def write_tiktoken(tokens: Iterable[bytes], path: Path) -> None:
    """Write a vocabulary in tiktoken's format."""
    lines = ((base64.b64encode(token) or b"=") + f" {number}\n".encode() for number, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))


def read_tokenizer_json(path: Path) -> list[bytes]:
    """Read the vocabulary of a `tokenizer.json` (Hugging Face tokenizers, a byte-level BPE)."""
    found = _json(path)
    model = found.get("model") if isinstance(found, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise ModelError(f"{path} has no `model.vocab` with numbers.")
    return _in_order(path, {number: _as_bytes(path, token) for token, number in _text_only(vocabulary.items())})


def read_vocabulary_json(path: Path) -> list[bytes]:
    """Read a `vocabulary.json`: a list of all tokens, text tokens first, then special ones."""
    found = _json(path)
    if not isinstance(found, list) or not all(isinstance(token, str) for token in found):
        raise ModelError(f"{path} is not a list of tokens.")
    return _listed(path, found)


def read_vocabulary_text(path: Path) -> list[bytes]:
    """Read a `vocabulary.txt`: a token on each line, text tokens first, then special ones."""
    try:
        return _listed(path, _read(path).decode().removesuffix("\n").split("\n"))
    except UnicodeDecodeError:
        raise ModelError(f"{path} is not UTF-8.") from None


def _listed(path: Path, tokens: list[str]) -> list[bytes]:
    numbered = ((token, number) for number, token in enumerate(tokens))
    return _in_order(path, {number: _as_bytes(path, token) for token, number in _text_only(numbered)})


def _text_only(tokens: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    return ((token, number) for token, number in tokens if not (token.startswith("<|") and token.endswith("|>")))


def _in_order(path: Path, tokens: dict[int, bytes]) -> list[bytes]:
    if sorted(tokens) != list(range(len(tokens))):
        raise ModelError(f"{path} leaves out numbers of tokens.")
    return [tokens[number] for number in range(len(tokens))]


def _as_bytes(path: Path, token: str) -> bytes:
    table = byte_characters()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        raise ModelError(f"{path} has a token {token[:40]!r} that is not of a byte-level vocabulary.") from None


@functools.cache
def byte_characters() -> dict[str, int]:
    """Return GPT-2's character for each byte (`bytes_to_unicode`): itself if printable, else the next after 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _special_names(languages: int) -> list[str]:
    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in list(LANGUAGES)[:languages]),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *(f"<|{number * 0.02:.2f}|>" for number in range(TIMESTAMPS)),
    ]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ModelError(f"{path} has more than {MAX_FILE_BYTES >> 20} MB.")
    return data


def _json(path: Path) -> object:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON.") from error

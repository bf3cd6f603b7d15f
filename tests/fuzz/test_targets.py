"""What the fuzzers run holds for some hundred inputs of hypothesis' too, where atheris is not installed."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.errors import AudioError
from tests.fuzz.targets import TARGETS
from whisper_byoc.errors import ByocError
from whisper_byoc.server.ingest.declared import declared_format


@pytest.mark.parametrize("name", TARGETS)
@given(st.binary(max_size=600))
def test_any_bytes_are_refused_in_a_sentence_or_read(name, data):
    TARGETS[name](data)


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "found").iterdir()), ids=lambda path: path.name)
def test_what_was_found_stays_mended(path):
    TARGETS[path.name.partition("-")[0]](path.read_bytes())


@given(st.text())
def test_a_content_type_may_have_any_characters(text):
    with suppress(ByocError, AudioError):
        declared_format(text, {})

"""Tags of languages, as users have them."""

import pytest
from whisper.tokenizer import TO_LANGUAGE_CODE

from whisper_byoc.languages import LANGUAGES, language_code


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        ("EN", "en"), ("en-US", "en"), ("en_US", "en"), ("pt_BR", "pt"), ("zh-Hant-TW", "zh"), ("haw-US", "haw"),
        ("english", "en"), (" Haitian  Creole ", "ht"), ("nb-NO", "no"), ("jv", "jw"), ("xx-YY", None), ("", None),
        ("-", None), ("english-US", "en"), ("klingon", None), ("e", None), ("\u0130", None),
    ],
)  # fmt: skip
def test_tags(tag, code):
    assert language_code(tag) == code


def test_every_name_that_openai_whisper_takes():
    assert {name: language_code(name.title()) for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE
    assert {code: language_code(code) for code in LANGUAGES} == {code: code for code in LANGUAGES}

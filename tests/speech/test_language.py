"""The language of a stream: decided once."""

from whisper_byoc.speech.language import SURE_PROBABILITY, SURE_SECONDS, LanguageChoice


async def choose(choice, number, language, probability, seconds=5.0):
    asked = []

    async def detect():
        asked.append(True)
        return language, probability

    return await choice.choose(detect, number, seconds), bool(asked)


async def test_what_the_client_says_is_never_asked():
    choice = LanguageChoice("de")
    assert choice.likely == "de"
    assert await choose(choice, 0, "fr", 1.0) == ("de", False)


async def test_a_sure_guess_decides():
    choice = LanguageChoice(None)
    assert choice.likely is None
    assert await choose(choice, 0, "de", SURE_PROBABILITY) == ("de", True)
    assert choice.likely == choice.decided == "de"
    assert await choose(choice, 1, "fr", 1.0) == ("de", False)


async def test_a_short_sound_is_no_proof_however_sure():
    choice = LanguageChoice(None)
    assert await choose(choice, 0, "cy", 0.99, SURE_SECONDS - 0.1) == ("cy", True)
    assert (choice.decided, choice.likely) == (None, "cy")


async def test_two_utterances_in_a_row_decide():
    choice = LanguageChoice(None)
    said = [("de", 0.5), ("en", 0.5), ("de", 0.5), ("de", 0.5)]
    assert [await choose(choice, n, *each) for n, each in enumerate(said)] == [
        ("de", True), ("en", True), ("de", True), ("de", True),
    ]  # fmt: skip
    assert choice.decided == "de"


async def test_an_utterance_does_not_agree_with_itself():
    """An utterance comes again when somebody falls silent in it, and goes on."""
    choice = LanguageChoice(None)
    for _ in range(3):
        assert await choose(choice, 0, "de", 0.5) == ("de", True)
    assert choice.decided is None
    await choose(choice, 1, "fr", 0.5)
    await choose(choice, 1, "de", 0.5)  # as the one before it, now that more of it is known
    assert choice.decided == "de"

"""Texts that are decoded together are what each of them is alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_byoc.speech import models
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.fast import batch as module
from whisper_byoc.speech.fast import model as fast
from whisper_byoc.speech.fast.batch import Pass
from whisper_byoc.speech.fast.engine import FastEngine
from whisper_byoc.speech.fast.mel import log_mel


@pytest.fixture(scope="module")
def model(small_weights):
    return fast.build(small_weights, models.DEMO_FILE, exact=True)


@pytest.fixture(scope="module")
def sounds(model, noise):
    """Three of different lengths."""
    network = model.network(1)
    return [network.encode(log_mel(noise[: int(seconds * 16_000)], 80), seconds) for seconds in (3, 3.5, 4)]


# What a text does next: how many of its tokens it keeps, at most; which ones follow; and which sequences go on.
moves = st.lists(
    st.tuples(
        st.integers(0, 99),
        st.lists(st.integers(0, 50_000), min_size=1, max_size=4),
        st.lists(st.integers(0, 1), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=5,
)
texts = st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(0, 3), moves)


def passes_of(sounds, text):
    sound, width, _, script = text
    length = 0
    for first, (kept, tokens, parents) in enumerate(script):
        kept = min(kept, length) if first else 0
        yield Pass(sounds[sound], [[*tokens[:-1], tokens[-1] + row] for row in range(width)], [len(tokens) - 1], kept,
                   [min(parent, width - 1) for parent in parents[:width]] if kept else [0] * width)  # fmt: skip
        length = kept + len(tokens)


@settings(max_examples=30, deadline=None)
@given(st.lists(texts, min_size=2, max_size=4))
def test_texts_that_begin_go_back_and_end_at_any_time(model, sounds, together):
    scripts = [list(passes_of(sounds, text)) for text in together]
    alone = []
    for script in scripts:
        network = model.network(1)
        alone.append([step(network, 0, each) for each in script])
    network, found = model.network(1), [[] for _ in scripts]
    lateness = [late for _, _, late, _ in together]
    for turn in itertools.count():
        asked = {
            at: script[turn - lateness[at]]
            for at, script in enumerate(scripts)
            if 0 <= turn - lateness[at] < len(script)
        }
        if not asked and turn > max(lateness):
            break
        for at, each in network.decode(asked).items():
            found[at].append((each.logits.copy(), each.queries))
    for mine, expected in zip(found, alone, strict=True):
        for (logits, queries), (other_logits, other_queries) in zip(mine, expected, strict=True):
            np.testing.assert_allclose(logits, other_logits, atol=2e-3, rtol=1e-3)
            for layer, query in queries.items():
                np.testing.assert_allclose(query, other_queries[layer], atol=2e-3, rtol=1e-3)


def step(network, key, asked):
    found = network.decode({key: asked})[key]
    return found.logits.copy(), found.queries


def test_a_batch_that_has_gone_on_for_long_takes_no_new_text(model, sounds, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 4)
    network, alone = model.network(1), model.network(1)
    for kept in range(6):
        found = network.decode({"old": Pass(sounds[0], [[kept]], [0], kept)})["old"].logits.copy()
        np.testing.assert_allclose(step(alone, 0, Pass(sounds[0], [[kept]], [0], kept))[0], found, atol=2e-3)
    both = network.decode({"old": Pass(sounds[0], [[7]], [0], 6), "new": Pass(sounds[1], [[9]], [0])})
    assert set(both) == {"old", "new"}
    np.testing.assert_allclose(both["new"].logits, step(model.network(1), 0, Pass(sounds[1], [[9]], [0]))[0], atol=2e-3)
    np.testing.assert_allclose(both["old"].logits, step(alone, 0, Pass(sounds[0], [[7]], [0], 6))[0], atol=2e-3)


def test_inferences_of_all_kinds_share_their_passes(sound, texts):
    """Greedy and searching, with times of words and without, finals and drafts: the same as one after the other."""
    engine = FastEngine(fast.build(fast.read_weights(models.DEMO_FILE), models.DEMO_FILE, exact=True))
    engine.use_threads(1)
    names = ["demo-numbers.wav", "demo-stop.wav", "demo-spelling.wav", "demo-hello-world.wav"]
    wanted = [DecodeOptions(), DecodeOptions(beam=5), DecodeOptions(words=True), DecodeOptions(prompt="go on", beam=2)]

    def begin():
        finals = [engine.transcribe(sound(name), each) for name, each in itertools.product(names[:2], wanted)]
        return [*finals, *(engine.draft(sound(name), DecodeOptions()) for name in names)]

    together, steps = begin(), 0
    while going := [each for each in together if not each.done]:
        engine.advance(going)
        steps += 1
    assert [each.result().text for each in together] == [each.result().text for each in begin()]
    assert together[0].result().text == texts[names[0]]["text"]
    assert steps < 30

"""Word errors and segment edges, and the records that an evaluation writes."""

import numpy as np
import pytest

from tools.demo_model import evaluate
from tools.demo_model.scenes import Recording, Said
from tools.demo_model.scoring import edge_errors, word_errors, words
from tools.demo_model.sets import sets


@pytest.mark.parametrize(
    ("heard", "errors"), [("a b c", 0), ("a c", 1), ("a x c", 1), ("a b c d", 1), ("", 3), ("b c a", 2)]
)
def test_word_errors(heard, errors):
    assert word_errors(["a", "b", "c"], heard.split()) == errors


def test_words_have_no_case_and_no_punctuation():
    assert words(" Hello, World! It's 9.") == ["hello", "world", "it's", "9"]


def segment(text, start, end, seek=0):
    return {"text": text, "start": start, "end": end, "seek": seek}


def two_said():
    return Recording(np.zeros(16_000, np.float32), [Said(["yes"], 0.5, 1.0), Said(["no", "left"], 3.0, 4.0)])


def test_edges_are_compared_with_the_utterance_that_was_heard():
    starts, ends = edge_errors(two_said(), [segment(" yes", 0.4, 1.1), segment(" no left", 3.2, 4.0)])
    assert starts == pytest.approx([0.1, 0.2])
    assert ends == pytest.approx([0.1, 0.0])


def test_a_misheard_or_misplaced_segment_has_no_edges():
    assert edge_errors(two_said(), [segment(" no", 0.4, 1.1), segment(" no left", 13.2, 14.0)]) == ([], [])


def test_a_start_that_openai_whisper_sets_itself_does_not_count():
    starts, ends = edge_errors(two_said(), [segment(" yes", 0.0, 1.1)])
    assert (starts, len(ends)) == ([], 1)
    late = Recording(np.zeros(16_000, np.float32), [Said(["yes"], 3.0, 4.0)])
    assert edge_errors(late, [segment(" yes", 1.0, 4.0)])[0] == []


def test_a_result_counts_words_and_recordings():
    result = evaluate.Result()
    result.add(two_said(), [segment(" yes", 0.4, 1.1), segment(" no right", 3.2, 4.0)], 0.2)
    result.add(Recording(np.zeros(1, np.float32), []), [], 0.4)
    record = result.record()
    assert (record["recordings"], record["words"], record["exact"]) == (2, 3, 1)
    assert record["word_error_rate"] == pytest.approx(33.33)
    assert record["wrong"] == [("yes no left", "yes no right")]
    assert record["seconds_each"] == pytest.approx(0.3)
    assert result.cell() == "33.3 %"


def test_every_target_has_a_set_and_names_are_unique():
    names = [each.name for each in sets(1.0)]
    assert len(names) == len(set(names))
    for part in ("15 dB", "30 s", "75 s", "12 words", "0.4 s", "anywhere", "context of 10 s", "nothing said"):
        assert any(part in name for name in names), part

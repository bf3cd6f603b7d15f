"""The benchmarks run and say what they measured; how fast anything is, no test asks."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scoring import compare
from benchmarks.search import Search

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
QUICK = (
    ("tint", "--quick"),
    ("overhead", "--quick"),
    ("network", "--quick"),
    ("footprint", "--quick --model demo"),
    ("speech", "--quick --ways live transcribe"),
    ("engines", "--quick --model demo --engines fast"),
    ("windows", "--quick --model demo"),
    ("streams", "--quick --model demo"),
    ("soak", "--quick"),
    ("streams", "--quick --model demo --overload 2"),
)
"""Benchmarks, and options for little work."""


@pytest.mark.parametrize(("name", "options"), QUICK)
def test_quick_run_prints_one_json_object(name, options, tmp_path):
    if name in ("engines", "windows") and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO, which the fast engine runs on, is not installed")
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--json", *options.split()]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr.decode()
    printed = json.loads(done.stdout)
    assert printed["benchmark"] == name
    assert printed["machine"]["cpu"]
    assert printed["machine"]["cores"] >= 1
    for rows in printed["tables"].values():
        assert rows
        for row in rows:
            numbers = [cell for cell in row.values() if isinstance(cell, float)]
            assert numbers
            assert all(abs(number) < float("inf") for number in numbers)


@pytest.mark.parametrize("capacity", [0, 1, 5, 11, 19, 20])
def test_search_finds_the_largest_number_that_passes(capacity):
    search = Search(most=20)
    while (number := search.next) is not None:
        search.tell(number, passed=number <= capacity)
    assert search.passed == capacity


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("a b c", "a b c", (0, 0, 0)),
        ("a b c", "a c", (0, 1, 0)),
        ("a b c", "a x c d", (1, 0, 1)),
        ("a b c", "b c a", (0, 1, 1)),
        ("", "a b", (0, 0, 2)),
        ("a b", "", (0, 2, 0)),
    ],
)
def test_words_are_counted_as_wrong_lost_or_extra(said, heard, expected):
    score = compare(said.split(), heard.split())
    assert (score.wrong, score.lost, score.extra) == expected
    assert score.error_rate == 100 * sum(expected) / max(1, len(said.split()))


@pytest.mark.parametrize(
    ("said", "heard", "longest"),
    [("a b c d e", "a b c d e", 0), ("a b c d e", "c", 2), ("a b c d e", "a x e", 2), ("a b", "", 2), ("", "a", 0)],
)
def test_words_lost_in_a_row_are_counted(said, heard, longest):
    assert compare(said.split(), heard.split()).longest_lost == longest

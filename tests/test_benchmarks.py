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
    ("archive", "--quick"),
    ("soak", "--quick"),
    ("streams", "--quick --model demo --overload 2"),
    ("fleet", "--quick --model demo"),
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


def test_the_model_of_a_fleet_runs_on_what_fleet_prints(tmp_path):
    pytest.importorskip("simpy")
    ran = {"containers": 1, "fit": 20, "final p50 s": 0.5, "final p95 s": 0.8, "hops ms/s": 5.0}
    rows = [{**ran, "streams": 5, "containers ms/s": 40.0}, {**ran, "streams": 20, "containers ms/s": 30.0}]
    path = tmp_path / "fleet.json"
    path.write_text(json.dumps({"machine": {"cores": 2}, "tables": {"fleet": rows}}))
    command = [sys.executable, str(FOLDER / "fleet_model.py"), str(path), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr.decode()
    checked, sizes, lost, grown = json.loads(done.stdout)["tables"].values()
    for row, measured in zip(checked, rows, strict=True):
        busy = measured["streams"] * measured["containers ms/s"] / 1000
        assert 0.5 < row["model p50 s"] < row["model p95 s"] < 1 / (1 - busy)
    assert (sizes[0]["streams"], sizes[0]["refused %"]) == (100, 0)
    assert all(row["moved: p95 s"] > row["p95 s before"] for row in lost)
    refused = [row["refused %, 0 s ahead"] for row in grown]
    assert refused == sorted(refused)


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

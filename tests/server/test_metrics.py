"""Names of metrics: the dashboard and the docs have those that there are."""

import json
import re
from pathlib import Path

import pytest

from whisper_byoc.errors import RequestRefused
from whisper_byoc.processors.base import Result

ROOT = Path(__file__).resolve().parent.parent.parent
PLACES = {"instance", "le"}
"""Labels that Prometheus adds, or that each histogram has."""


@pytest.fixture
def series(demo):
    """Name -> labels of every series that a server with speech can have."""
    metrics = demo.table.metrics
    metrics.answered("GET", "/health", 200, 0.1)
    metrics.refused(RequestRefused(404, "not here"))
    metrics.segment("speech", 1, 0.1)
    metrics.failed("speech", "input")
    stats = {"audio_duration_ms": 1000, "inference_ms": 100}
    metrics.result("speech", Result(b"", {"stats": stats}, lag_ms=1.0))
    found = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", metrics.render().decode(), re.MULTILINE):
        found[name] = found.get(name, set()) | set(re.findall(r"(\w+)=", labels))
    return found


async def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(series):
    dashboard = json.loads((ROOT / "deploy/grafana/whisper-byoc.json").read_text())
    queries = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 15
    for query in queries:
        named = re.findall(r"\b((?:byoc|process)_\w+)", query["expr"])
        assert named
        labels = set().union(*(series[name] for name in named)) | PLACES
        wanted = {label for group in re.findall(r"by \(([^)]*)\)", query["expr"]) for label in group.split(", ")}
        assert wanted | set(re.findall(r"{{(\w+)}}", query["legendFormat"])) <= labels, query["expr"]


async def test_the_docs_name_every_metric_and_no_other(series):
    table = (ROOT / "docs/operating.md").read_text()
    named = set(re.findall(r"`(byoc_\w+)`", table))
    there = [name for name in series if name.startswith("byoc_") and not name.endswith("_created")]
    bases = {re.sub(r"_(bucket|count|sum)$", "", name) for name in there}
    assert named == bases

"""The chart, rendered by a real helm: that of `HELM` or on PATH. `make chart` brings one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML, which reads manifests, is not installed (pip install .[dev])")

CHART = Path(__file__).resolve().parent.parent.parent / "deploy/helm/whisper-byoc"


@pytest.fixture(scope="session")
def helm(tmp_path_factory):
    """Return a function that runs helm with values for the chart: `(*words, **values) -> CompletedProcess`."""
    program = os.environ.get("HELM") or shutil.which("helm")
    if not program:
        pytest.skip("there is no helm here; `make chart` brings one")
    file = tmp_path_factory.mktemp("values") / "values.yaml"

    def run(*words, **values):
        file.write_text(yaml.safe_dump(values))
        return subprocess.run(
            [program, *words, "--values", str(file)], capture_output=True, text=True, timeout=30, check=False
        )

    return run


@pytest.fixture(scope="session")
def rendered(helm):
    """Return a function that renders the chart with values, as a dictionary of kinds to objects."""

    def render(**values):
        done = helm("template", "live", str(CHART), "--namespace", "speech", **values)
        assert done.returncode == 0, done.stderr
        objects = list(yaml.safe_load_all(done.stdout))
        kinds = {each["kind"]: each for each in objects}
        assert len(kinds) == len(objects), "one object of each kind"
        return kinds

    return render

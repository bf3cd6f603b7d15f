"""Who may import whom, as docs/architecture.md says; and that a plain import stays cheap."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SHARED = {
    f"whisper_byoc.{name}"
    for name in (
        "aio",
        "aiohttp_internals",
        "errors",
        "http",
        "languages",
        "livepeer",
        "connections",
        "logs",
        "origins",
        "page",
        "params",
        "process",
        "shadowing",
        "tokens",
    )
}
"""Modules that every part but `audio` may import."""

ALLOWED = {
    "audio": set(),
    "whisper_byoc.shared": {"audio"},
    "whisper_byoc.client": set(),
    "whisper_byoc.trickle": set(),
    "whisper_byoc.speech": {"audio", "whisper_byoc.speech.transcript"},
    # not a model's business: whoever writes records or subtitles may know them
    "whisper_byoc.speech.transcript": {"audio"},
    "whisper_byoc.processors": {"audio", "whisper_byoc.speech", "whisper_byoc.speech.transcript"},
    "whisper_byoc.server": {
        "audio",
        "whisper_byoc",
        "whisper_byoc.processors",
        "whisper_byoc.trickle",
        "whisper_byoc.speech.transcript",
    },
    "whisper_byoc.archive": {
        "audio",
        "whisper_byoc",
        "whisper_byoc.processors",
        "whisper_byoc.speech.transcript",
    },
    "whisper_byoc.network": {"whisper_byoc.trickle"},
    "whisper_byoc.compat": {"whisper_byoc.client", "whisper_byoc.processors"},
}
"""Part -> the parts of ours that it may import, beside `SHARED`. `cli` may import all; only programs import `cli`."""


def part(module: str) -> str:
    """`whisper_byoc.server.core.job` belongs to `whisper_byoc.server`, and so on."""
    if module in ("whisper_byoc.speech.formats", "whisper_byoc.speech.transcript"):
        return "whisper_byoc.speech.transcript"
    if module == "whisper_byoc.__main__":
        return "whisper_byoc.cli"
    names = module.split(".")
    if module in SHARED:
        return "whisper_byoc.shared"
    return names[0] if names[0] == "audio" else ".".join(names[:2])


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= full if node.module in ("audio", "whisper_byoc") else {node.module}
    return {each for each in found if each.split(".")[0] in ("audio", "whisper_byoc")}


def modules():
    for folder in ("audio", "whisper_byoc"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            names = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(names[:-1] if names[-1] == "__init__" else names), path


@pytest.mark.parametrize(("module", "path"), [pytest.param(*each, id=each[0]) for each in modules()])
def test_imports_follow_the_house_rules(module, path):
    mine = part(module)
    if mine in ("whisper_byoc", "whisper_byoc.cli") or module.endswith(".__main__"):
        return
    for other in {part(each) for each in imports(path)} - {mine}:
        if other == "whisper_byoc.__version__":
            continue
        allowed = ALLOWED[mine] | (set() if mine == "audio" else {"whisper_byoc.shared"})
        assert other in allowed, f"{module} must not import {other}"


def test_there_are_no_import_circles():
    known = dict(modules())
    graph = {
        module: {each if each in known else each.rpartition(".")[0] for each in imports(path)}
        - {module, "whisper_byoc"}
        for module, path in known.items()
        if module != "whisper_byoc"  # imports its public names when they are first used
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_docs_name_modules_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = set(re.findall(r"[a-z_/]+\.py\b", text))
    assert len(names) > 40
    folders = [ROOT, ROOT / "whisper_byoc", ROOT / "whisper_byoc" / "server", ROOT / "whisper_byoc" / "network"]
    folders += [ROOT / "whisper_byoc" / "processors", ROOT / "whisper_byoc" / "archive"]
    missing = {name for name in names if not any((folder / name).is_file() for folder in folders)}
    assert not missing


def test_every_part_is_known():
    assert {part(module) for module, _ in modules()} - {"whisper_byoc", "whisper_byoc.cli"} <= set(ALLOWED)


LIGHT = (
    *("whisper_byoc", "whisper_byoc.client", "whisper_byoc.cli.main", "whisper_byoc.cli.send"),
    *("whisper_byoc.cli.doctor", "whisper_byoc.server.hosted"),
)


def test_a_plain_import_does_not_bring_the_model():
    heavy = {"torch", "whisper", "numba", "openvino"}
    code = f"""
import sys
from importlib import import_module
for name in {LIGHT}:
    import_module(name)
    print(name, *{heavy} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*LIGHT]

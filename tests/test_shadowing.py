"""A user's own `audio` beside a script that imports whisper_byoc: one sentence says which file it is."""

import subprocess
import sys

import pytest

USES = {
    "the package": "import whisper_byoc\n",
    "a part of it": "from whisper_byoc.errors import UsageError\n",
    "after its own": "import audio\nimport whisper_byoc\n",
    "after one made by hand": (
        "import sys, types\n"
        "sys.modules['audio'] = types.ModuleType('audio')\n"
        "sys.modules['audio'].__file__ = sys.argv[1]\n"
        "import whisper_byoc\n"
    ),
}


def run(folder, *words):
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture(params=["audio.py", "audio/__init__.py"])
def hiding(tmp_path, request):
    """A module of a user's that hides ours; return what has to be renamed."""
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine = 1\n")
    return path if path.name == "audio.py" else path.parent


def sentence(path):
    return f"{path} hides the package 'audio' of whisper_byoc; give it another name\n"


@pytest.mark.parametrize(
    ("way", "use"), [*(("script", use) for use in USES), ("-m", "the package"), ("-c", "the package")]
)
def test_the_file_that_hides_ours_is_named(hiding, tmp_path, way, use):
    """`-c` has the current folder on its path, as a notebook has."""
    (tmp_path / "program.py").write_text(USES[use])
    words = {"script": ["program.py"], "-m": ["-m", "program"], "-c": ["-c", USES[use]]}[way]
    file = hiding if hiding.suffix else hiding / "__init__.py"
    ended = run(tmp_path, *words, str(file))
    assert ended.returncode == 1
    assert ended.stderr.endswith(f"ImportError: {sentence(hiding)}")


def test_a_script_that_is_itself_called_audio(tmp_path):
    (tmp_path / "audio.py").write_text("import whisper_byoc\n")
    assert run(tmp_path, "audio.py").stderr.endswith(sentence(tmp_path / "audio.py"))


@pytest.mark.parametrize("source", ["import audio\n", "class A:\n    async def process(self, frame): return frame\n"])
def test_the_command_line_prints_nothing_but_the_sentence(hiding, tmp_path, source):
    (tmp_path / "script.py").write_text(source)
    ended = run("/", "-m", "whisper_byoc.cli.main", "run", str(tmp_path / "script.py"))
    assert (ended.returncode, ended.stderr) == (2, f"whisper-byoc: {sentence(hiding)}")


def test_a_folder_of_recordings_hides_nothing(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "program.py").write_text("import whisper_byoc\nfrom audio.errors import AudioError\n")
    assert run(tmp_path, "program.py").stderr == ""


def test_the_check_brings_nothing_heavy():
    code = "import sys, whisper_byoc; sys.exit(any(name in sys.modules for name in ('audio', 'numpy', 'asyncio')))"
    assert run("/", "-c", code).returncode == 0

"""`whisper-byoc completion`, as bash uses it."""

import shutil
import subprocess
import sys

import pytest

from tests.cli.conftest import refused

ASK = """
source "$1"; shift
function=$(complete -p whisper-byoc | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
$function whisper-byoc "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" || true
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def proposed(tmp_path_factory):
    """Return a function that tells what bash proposes for the last of these words."""
    folder = tmp_path_factory.mktemp("completion")
    command = (sys.executable, "-m", "whisper_byoc", "completion", "bash")
    script = folder / "script"
    script.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    (folder / "talk.wav").touch()
    bash = shutil.which("bash")

    def ask(*words):
        line = (bash, "--norc", "-c", ASK, "ask", script, "whisper-byoc", *words)
        done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=folder, timeout=20)
        assert done.stderr == ""
        return done.stdout.split()

    return ask


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["se"], {"serve", "send"}),
        (["help", "ru"], {"run"}),
        (["serve", "--max-s"], {"--max-segment"}),
        (["serve", "--pipeline", "whisper-de"], {"whisper-demo"}),
        (["transcribe", "--language", "haw"], {"haw"}),
        (["transcribe", "--engine", "f"], {"fast"}),
        (["transcribe", "ta"], {"talk.wav"}),
        (["send", "-o", "ta"], {"talk.wav"}),
        (["trickle", "s"], {"sub", "serve"}),
        (["completion", "z"], {"zsh"}),
    ],
)
def test_bash_proposes_what_there_is(proposed, words, wanted):
    assert set(proposed(*words)) == wanted


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_scripts_with_every_command(run, shell):
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    for part in ("transcribe", "max-line-width", "whisper-tiny"):
        assert part in out


def test_what_writes_them_need_not_be_installed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    refused(run("completion", "bash"), 2, "pip install 'whisper-byoc[completion]'")


def test_a_shell_that_is_unknown(run):
    refused(run("completion", "tcsh"), 2, "tcsh", "bash")

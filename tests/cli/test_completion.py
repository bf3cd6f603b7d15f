"""`whisper-byoc completion`, as the shells use it."""

import asyncio
import os
import shutil
import subprocess
import sys

import pytest

from tests.cli.conftest import refused
from tests.waiting import until

ASK_BASH = """
source "$1"; shift
function=$(complete -p whisper-byoc | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
$function whisper-byoc "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}" || true
printf '%s\\n' "${COMPREPLY[@]}"
"""
ASK_FISH = 'source $argv[1]; complete -C "$argv[2]"'
ZSH = """
PROMPT=
fpath=($PWD $fpath)
autoload -U compinit
compinit -u -D
compadd () {
  if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]]; then builtin compadd "$@"; return $?; fi
  typeset -a found
  builtin compadd -A found "$@"
  (( $#found )) && print -l -- $found >> proposed
}
is_done () { : > done }
comppostfuncs=(is_done)
"""
SHELLS = ("bash", "zsh", "fish")


def bash(program, folder):
    def ask(*words):
        return run(folder, program, "--norc", "-c", ASK_BASH, "ask", "./script", *words)

    return ask


def fish(program, folder):
    def ask(*words):
        return "\n".join(
            line.partition("\t")[0]
            for line in run(folder, program, "--no-config", "-c", ASK_FISH, "script", " ".join(words)).splitlines()
        )

    return ask


def zsh(program, folder):
    """Zsh completes at a terminal only; what it would show goes into a file, and another says that it is done."""
    (folder / "script").rename(folder / "_whisper-byoc")

    def ask(*words):
        (folder / "proposed").write_text("")
        (folder / "done").unlink(missing_ok=True)
        terminal, end = os.openpty()
        with subprocess.Popen(
            [program, "-f", "-i"], stdin=end, stdout=end, stderr=end, cwd=folder,
            env=os.environ | {"TERM": "dumb"}, start_new_session=True,
        ) as shell:  # fmt: skip
            os.close(end)
            try:
                shown = ""
                os.write(terminal, f"{ZSH}print rea''dy\n".encode())
                while "ready" not in shown:
                    shown += os.read(terminal, 4096).decode(errors="replace")
                os.write(terminal, f"{' '.join(words)}\t".encode())  # nothing behind it, which would end completion
                asyncio.run(until((folder / "done").exists))
            finally:
                shell.kill()
                os.close(terminal)
        return (folder / "proposed").read_text()

    return ask


def run(folder, *line):
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=folder, timeout=20)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module", params=SHELLS)
def proposed(request, tmp_path_factory):
    """Return a function that tells what a shell proposes for the last of these words."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"there is no {request.param} here")
    folder = tmp_path_factory.mktemp("completion")
    command = (sys.executable, "-m", "whisper_byoc", "completion", request.param)
    (folder / "script").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    (folder / "talk.wav").touch()
    ask = {"bash": bash, "zsh": zsh, "fish": fish}[request.param](program, folder)
    return lambda *words: ask("whisper-byoc", *words).split()


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
def test_a_shell_proposes_what_there_is(proposed, words, wanted):
    assert set(proposed(*words)) == wanted


@pytest.mark.parametrize("shell", SHELLS)
def test_each_script_has_every_command(run, shell):
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    for part in ("transcribe", "max-line-width", "whisper-tiny"):
        assert part in out


def test_what_writes_them_need_not_be_installed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    refused(run("completion", "bash"), 2, "pip install 'whisper-byoc[completion]'")


def test_a_shell_that_is_unknown(run):
    refused(run("completion", "tcsh"), 2, "tcsh", "bash")

"""Builds the image with the bundled demo model, and has its entry point transcribe a fixture as a user would.

Docker or Podman is used where an engine answers; else the command that IMAGE_BUILDER names, for machines without one:

    COMMAND DOCKERFILE TAG [--build-arg NAME=VALUE ...]    builds an image, which `buildah inspect` then shows
    COMMAND --run TAG PROGRAM [ARGUMENT ...]               runs a program in it, in the host's network

ENGINE=openai builds the larger image, and has the reference engine transcribe as well. Needs nothing but Python.
Exit code: 0 all is well, 1 something is wrong, 2 there is nothing to build with.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

ROOT = Path(__file__).resolve().parent.parent
TAG = "whisper-byoc:image-test"
FIXTURE = "demo-start-recording.wav"
COMMANDS: tuple[tuple[str, ...], ...] = ((), ("-byocModelID", "whisper-demo"))
REFERENCE = ("serve", "--engine", "openai")
REFERENCE_PACKAGES = ("torch", "whisper", "numba", "llvmlite")
OPENVINO_LIBRARIES = r"libopenvino(_\w+_cpu_plugin|_ir_frontend)?\.so|libtbb\.so"
"""All that the engine needs of OpenVINO; the transcriptions below show that it does."""
CONTENTS = f"""
import importlib.util, json, pathlib
libraries = pathlib.Path(importlib.util.find_spec("openvino").origin).parent / "libs"
print(json.dumps({{
    "packages": [name for name in {(*REFERENCE_PACKAGES, "openvino_telemetry")} if importlib.util.find_spec(name)],
    "libraries": sorted(each.name for each in libraries.iterdir()),
    "models": sorted(each.name for each in pathlib.Path("/models").iterdir()),
}}))
"""
READ_ONLY = """
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount -t tmpfs tmpfs "$1/tmp"
for each in proc dev; do mount --rbind "/$each" "$1/$each"; done
shift
exec "$@"
"""
"""Runs a program in whose namespace the root of an image cannot be written to, but for /tmp."""
NO_RIGHTS = ("--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
SHOW_RIGHTS = """
show() { grep "^$1:" /proc/self/status | tr -s '\\t ' ' '; }
for each in / /app /models /venv; do touch "$each/written" 2>/dev/null && echo "$each was written to"; done
root="root is $(grep -q ' / / ro' /proc/self/mountinfo && echo read-only || echo 'not read-only')"
echo "pid $$ user $(id -u):$(id -g) $(show NoNewPrivs) $(show CapEff) $(show CapBnd) $root"
exec "$@"
"""
"""Tells what the program that it runs may do."""
BUILD_SECONDS, START_SECONDS, ANSWER_SECONDS, EXIT_SECONDS = 3600, 120, 60, 45

T = TypeVar("T")


class ImageTestError(Exception):
    """One sentence that says what is wrong with the image, or with this machine."""


class Engine:
    """Docker or Podman. The container gets no more rights than it needs: a read-only root, no capabilities."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._name = f"whisper-byoc-image-test-{os.getpid()}"

    def build(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that builds TAG in the current folder."""
        return [self._program, "build", "--file", "Dockerfile.whisper", "--tag", TAG, *arguments, "."]

    def run(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs the image's entry point in the foreground."""
        rights = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        published = ["--publish", "127.0.0.1::8000"]  # the host's port is chosen by the engine
        return [self._program, "run", "--rm", "--name", self._name, *rights, *published, TAG, *arguments]

    def execute(self, program: str, *arguments: str) -> list[str]:
        """Return the command that runs a program in a container of its own."""
        return [self._program, "run", "--rm", "--entrypoint", program, TAG, *arguments]

    def address(self, log: str) -> str | None:
        """Find out where the server listens, once its log says that it does."""
        return output(self._program, "port", self._name, "8000/tcp").split()[0] if listening_port(log) else None

    def check_health(self, address: str) -> list[str]:
        """Return the command that is the image's health check."""
        (image,) = json.loads(output(self._program, "inspect", TAG))
        kind, *command = (image["Config"].get("Healthcheck") or image["Healthcheck"])["Test"]
        assert kind == "CMD", "the health check needs no shell"
        return [self._program, "exec", self._name, *command]

    def terminate(self, process: subprocess.Popen[bytes], log: str) -> None:
        process.terminate()  # `run` hands signals on, and takes over the exit code


class BuilderCommand:
    """The command in IMAGE_BUILDER, and buildah, with which it works.

    It knows no entry points, which are read from the image, and no rights: the entry point runs as in `Engine` by what
    Linux has for that, as root.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    @functools.cached_property
    def _root(self) -> str:
        """Where the image's files are; with nothing but them, until this process ends."""
        container = output("buildah", "from", f"localhost/{TAG}").strip()
        atexit.register(output, "buildah", "rm", container)
        return output("buildah", "mount", container).strip()

    def build(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that builds TAG in the current folder."""
        return [*self._command, "Dockerfile.whisper", TAG, *arguments]

    def run(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs the image's entry point in the foreground."""
        config = self._config()
        program = [*config["Entrypoint"], *(arguments or config["Cmd"])]
        user, _, group = config["User"].partition(":")
        clean = ["env", "-i", f"--chdir={config['WorkingDir']}", *config["Env"], "WHISPER_BYOC_PORT=0"]
        rights = ["setpriv", f"--reuid={user}", f"--regid={group}", *NO_RIGHTS]
        inside = ["chroot", self._root, *clean, *rights, "sh", "-c", SHOW_RIGHTS, "sh", *program]
        return ["unshare", "--mount", "sh", "-ec", READ_ONLY, "sh", self._root, *inside]

    def execute(self, program: str, *arguments: str) -> list[str]:
        """Return the command that runs a program in a container of its own."""
        return [*self._command, "--run", TAG, program, *arguments]

    def address(self, log: str) -> str | None:
        """Find out where the server listens, once its log says that it does."""
        port = listening_port(log)
        return f"127.0.0.1:{port}" if port else None

    def check_health(self, address: str) -> list[str]:
        """Return the command that is the image's health check."""
        kind, *command = self._config()["Healthcheck"]["Test"]
        assert kind == "CMD", "the health check needs no shell"
        return [*self._command, "--run", TAG, "env", f"WHISPER_BYOC_PORT={address.rpartition(':')[2]}", *command]

    def terminate(self, process: subprocess.Popen[bytes], log: str) -> None:
        pid, rights = re.findall(r"^pid (\d+) (.*)$", log, re.MULTILINE)[0]
        least = f"user {self._config()['User']} NoNewPrivs: 1 CapEff: {0:016x} CapBnd: {0:016x} root is read-only"
        expect(rights == least and "user 0" not in rights, f"the server runs with {rights!r} instead of {least!r}")
        expect("was written to" not in log, "its root file system can be written to, though it is read-only")
        os.kill(int(pid), signal.SIGTERM)

    def _config(self) -> dict[str, Any]:
        image = json.loads(output("buildah", "inspect", "--type", "image", f"localhost/{TAG}"))
        return dict(image["Docker"]["config"])


Builder: TypeAlias = Engine | BuilderCommand


def main() -> int:
    """Build, and check each way of starting."""
    try:
        builder = find_builder()
    except ImageTestError as error:
        print(f"image-test: {error}", file=sys.stderr)
        return 2
    try:
        os.chdir(ROOT)
        os.environ["BUILDAH_FORMAT"] = "docker"  # OCI's own format, Podman's default, has no place for a health check
        engine = os.environ.get("ENGINE") or "fast"
        build(builder, engine)
        check_contents(builder, engine)
        for arguments in (*COMMANDS, REFERENCE) if engine == "openai" else COMMANDS:
            began = time.monotonic()
            check(builder, arguments)
            print(f"image-test: entry point with {list(arguments)}: {time.monotonic() - began:.1f} s, all is well")
    except (ImageTestError, subprocess.SubprocessError) as error:
        print(f"image-test: {error}", file=sys.stderr)
        return 1
    return 0


def find_builder() -> Builder:
    """Choose what to build with."""
    for program in ("docker", "podman"):
        if shutil.which(program) and subprocess.run([program, "info"], capture_output=True, timeout=60).returncode == 0:
            return Engine(program)
    command = shlex.split(os.environ.get("IMAGE_BUILDER", ""))
    if command and (found := shutil.which(command[0])):
        return BuilderCommand([str(Path(found).resolve()), *command[1:]])
    problem = f"IMAGE_BUILDER={command[0]} is not a command" if command else "IMAGE_BUILDER is not set"
    raise ImageTestError(f"neither Docker nor Podman answers, and {problem}: start an engine, or name a build command")


def build(builder: Builder, engine: str) -> None:
    """Build the image with the model that needs no download."""
    torch_index = os.environ.get("TORCH_INDEX")
    arguments = ["--build-arg", "MODEL=demo", "--build-arg", f"ENGINE={engine}"]
    arguments += ["--build-arg", f"TORCH_INDEX={torch_index}"] if torch_index else []
    began = time.monotonic()
    done = subprocess.run(builder.build(arguments), timeout=BUILD_SECONDS)
    expect(done.returncode == 0, "the build failed, see above")
    print(f"image-test: built in {time.monotonic() - began:.0f} s")


def check_contents(builder: Builder, engine: str) -> None:
    """Look at what the image has and, without the reference engine, at what it says when that is asked for."""
    contents = json.loads(output(*builder.execute("python", "-c", CONTENTS)))
    packages = list(REFERENCE_PACKAGES) if engine == "openai" else []
    expect(contents["packages"] == packages, f"it has the packages {contents['packages']} instead of {packages}")
    expect(contents["models"] == ["demo.pt.fast"], f"/models has {contents['models']}")
    others = [name for name in contents["libraries"] if not re.match(OPENVINO_LIBRARIES, name)]
    expect(not others, f"it has libraries of OpenVINO that nothing needs: {others}")
    if engine == "fast":
        command = builder.execute("whisper-byoc", "transcribe", "--engine", "openai", "--model", "demo", "/etc/passwd")
        refused = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        says = [line for line in refused.stderr.splitlines() if line.startswith("whisper-byoc: ")]
        sentence = refused.returncode == 2 and len(says) == 1 and "ENGINE=openai" in says[0]
        expect(sentence, f"--engine openai ends with {refused.returncode} and says {refused.stderr!r}")


def check(builder: Builder, arguments: Sequence[str]) -> None:
    """Start, transcribe, send SIGTERM while text is unread, read it, and expect a clean exit."""
    words = json.loads((ROOT / "fixtures/texts.json").read_text())[FIXTURE]["text"].split()
    with running(builder.run(arguments)) as (process, read_log):
        address = wait_for("a listening server", lambda: builder.address(read_log()), process)
        wait_for("readiness", lambda: request("GET", address, "/readyz")[0] == 200, process)
        health = subprocess.run(builder.check_health(address), timeout=ANSWER_SECONDS)
        expect(health.returncode == 0, "the health check of a ready server fails")
        transcribe(address, "first")
        expect_words(read(address, "first"), words)
        transcribe(address, "second")
        builder.terminate(process, read_log())
        expect_words(read(address, "second"), words)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        expect(process.returncode == 0, f"exit code {process.returncode} after SIGTERM instead of 0")


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a command; yield it, and a function that reads what it has written so far. Shows that after a failure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log")
        with path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process, lambda: path.read_text(errors="replace")
        except BaseException:
            print(path.read_text(errors="replace"), file=sys.stderr)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # whatever is left of it
            process.wait(EXIT_SECONDS)


def transcribe(address: str, job: str) -> None:
    """Send the fixture as one segment, and end the input."""
    sound = (ROOT / "fixtures" / FIXTURE).read_bytes()
    status, answer = request("PUT", address, f"/live/{job}/source", sound, {"Content-Type": "audio/wav"})
    expect(status == 200, f"PUT was answered {status} {answer}")
    status, answer = request("DELETE", address, f"/live/{job}/source")
    expect(status < 300, f"DELETE was answered {status} {answer}")


def read(address: str, job: str) -> str:
    """Read the text of the first segment."""
    status, answer = request("GET", address, f"/live/{job}/output?wait={ANSWER_SECONDS // 2}")
    expect(status == 200, f"GET was answered {status} {answer}")
    return answer


def request(
    method: str, address: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Make one request, past any proxy; return the status, and the body as text."""
    asked = urllib.request.Request(f"http://{address}{path}", body, headers or {}, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(asked, timeout=ANSWER_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        raise ImageTestError(f"{method} {path}: {error}") from error


def wait_for(what: str, ask: Callable[[], T | None], process: subprocess.Popen[bytes]) -> T:
    """Ask again and again, until there is an answer."""
    deadline = time.monotonic() + START_SECONDS
    while not (answer := ask()):
        expect(process.poll() is None, f"exit code {process.returncode} instead of {what}")
        expect(time.monotonic() < deadline, f"{START_SECONDS} s have brought no {what}")
        time.sleep(0.2)
    return answer


def expect_words(text: str, words: list[str]) -> None:
    """Compare without case and punctuation."""
    found = re.findall(r"\w+", text.lower())
    expect(found == words, f"{FIXTURE} was transcribed as {text!r}, but says {' '.join(words)!r}")


def listening_port(log: str) -> str | None:
    found = re.search(r"Trickle server listening on port (\d+)", log)
    return found and found[1]


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS).stdout


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ImageTestError(otherwise)


if __name__ == "__main__":
    sys.exit(main())

"""What `whisper-byoc doctor` looks at: what this machine has, and the services at their addresses."""

import errno
import os
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from audio.errors import MediaError
from audio.ffmpeg import ffmpeg_environment, ffmpeg_path
from whisper_byoc.cli.microphone import find_recorders
from whisper_byoc.errors import ModelError
from whisper_byoc.http import CONNECTION_ERRORS, json_value, read_body, reason_of
from whisper_byoc.process import output_of

RUN_SECONDS = 10.0
ANSWER_SECONDS = 5.0
ANSWER_BYTES = 1 << 20

DEFAULTS = {
    "container": "http://localhost:8000",
    "orchestrator": "http://localhost:8936",
    "gateway": "http://localhost:8935",
}
STARTS = {
    "container": "whisper-byoc serve --pipeline whisper-tiny",
    "orchestrator": (
        "whisper-byoc orchestrator -orchestrator -network offchain -serviceAddr 127.0.0.1:8936 "
        "-byoc -byocContainerURL http://127.0.0.1:8000 -byocModelID whisper-tiny"
    ),
    "gateway": "whisper-byoc gateway -gateway -orchAddr 127.0.0.1:8936 -httpAddr 127.0.0.1:8935 -httpIngest",
}
NONSENSE = (ValueError, TypeError, KeyError, AttributeError)
"""What reading the answer of something else raises."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    state: Literal["ok", "--", "FAIL"]
    """Fine; not there, and not asked for either; or broken."""
    detail: str
    advice: str = ""
    """What to do, in one sentence."""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def absent(check: str, detail: str, advice: str) -> Finding:
    return Finding(check, "--", detail, advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    return Finding(check, "FAIL", detail, advice)


async def check_ffmpeg() -> Finding:
    """Find ffmpeg, and run it."""
    install = "install ffmpeg on PATH, or `pip install imageio-ffmpeg`"
    try:
        path = ffmpeg_path()
    except MediaError:
        return fail("ffmpeg", "there is none: only WAV and raw PCM16 can be read", f"{install}.")
    try:
        code, text = await output_of((path, "-version"), RUN_SECONDS, ffmpeg_environment())
    except (TimeoutError, OSError) as error:
        return fail("ffmpeg", f"{path} does not run: {str(error) or 'no answer'}", f"Remove it, then {install}.")
    version = re.match(r"ffmpeg version (\S+)", text)
    if code or version is None:
        return fail("ffmpeg", f"{path} does not run: it ends with {code}", f"Remove it, then {install}.")
    return ok("ffmpeg", f"{version[1]} ({path})")


def check_model(directory: Path | None) -> Finding:
    """Look for whisper-tiny, then for the bundled model, and check their hashes. Blocks."""
    try:
        from whisper_byoc.speech.models import default_model_dir, find_model  # here, as it imports torch

        tiny, folder = find_model("tiny", directory), directory or default_model_dir()
        if tiny is not None:
            return ok("model", f"whisper-tiny ({tiny})")
        find_model("demo")
    except ModelError as error:
        problem, _, advice = str(error).rstrip(".").partition("; ")
        return fail("model", problem, f"{advice or 'make the file readable, or set MODEL_DIR to another folder'}.")
    except ImportError as error:
        return fail("model", f"openai-whisper is not installed: {error}", "Run `pip install whisper-byoc` anew.")
    return absent(
        "model",
        f"whisper-tiny is not in {folder}; the bundled whisper-demo is there",
        "Run `whisper-byoc preload --model tiny`, or serve 321 words with `--pipeline whisper-demo`.",
    )


async def check_port(number: int, role: str, identify: Callable[[str], Awaitable[str]]) -> Finding:
    """See whether a port is free for the `role` that listens there by default, or who has it."""
    check = f"port {number}"
    try:
        with socket.socket() as listener:
            if os.name == "posix":  # as servers do; elsewhere it would let two have the same port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", number))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return fail(check, f"it cannot be bound: {error.strerror}", f"Let the {role} listen on another port.")
    else:
        return ok(check, f"free for the {role}")
    found = await identify(f"http://127.0.0.1:{number}")
    if found == role:
        return ok(check, f"the {role} listens there")
    owner = f"another whisper-byoc, the {found}" if found else "another program"
    return fail(check, f"taken by {owner}", f"Stop it, or let the {role} listen on another port.")


async def check_microphone() -> Finding:
    """List what could record."""
    found = await find_recorders()
    if found:
        return ok("microphone", f"can be recorded with {', '.join(each.name for each in found)}")
    advice = "For `send --microphone`, install alsa-utils, sox, or an ffmpeg that knows this machine's sound system."
    return absent("microphone", "nothing here can record one", advice)


class Services:
    """Asks the services at their addresses: those in `named`, by role, must be there, others may be."""

    def __init__(self, http: aiohttp.ClientSession, named: dict[str, str]) -> None:
        self._http = http
        self._named = named
        self._urls = DEFAULTS | named

    async def container(self) -> Finding:
        """See whether it is there and ready, and what it serves."""
        url = self._urls["container"]
        try:
            status, ready = await self._get(f"{url}/readyz")
            _, version = await self._get(f"{url}/version")
            detail = f"{url}: version {version['version']}, serves {version['model_id']}"
            reasons = [str(each) for each in ready["reasons"]]
        except CONNECTION_ERRORS as error:
            return self._silent("container", error)
        except NONSENSE:
            return self._stranger("container")
        if status == 200:
            return ok("container", detail)
        advice = "Wait until its model is loaded, or read its log; `/readyz` turns 200 when work can be taken."
        return fail("container", f"{detail}; not ready: {', '.join(reasons)}", advice)

    async def orchestrator(self) -> Finding:
        """See whether it is there, and which of its containers are ready."""
        advice = "Start a container, and see that -byocContainerURL and -byocModelID name it."
        return await self._node("orchestrator", "containers", "ready", advice)

    async def gateway(self) -> Finding:
        """See whether it is there, and reaches an orchestrator with something to offer."""
        advice = "Start an orchestrator and a container, and see that -orchAddr names the orchestrator."
        return await self._node("gateway", "orchestrators", "reachable", advice)

    async def identify(self, url: str) -> str:
        """Return the role that answers at an address; empty for a stranger."""
        for path, key in (("/status", "role"), ("/version", "model_id")):
            try:
                _, known = await self._get(url + path)
                return str(known[key]) if key == "role" else "container"
            except (*CONNECTION_ERRORS, *NONSENSE):
                continue
        return ""

    async def _node(self, role: str, peers: str, good: str, advice: str) -> Finding:
        """See what an orchestrator or gateway offers, and what is wrong with its peers."""
        url = self._urls[role]
        try:
            _, known = await self._get(f"{url}/capabilities")
            offers = known["capabilities"]
            named = [f"{each['name']} ({each['available']} free)" for each in offers]
            behind = known[peers] if peers in known else [part for each in offers for part in each[peers]]
            faults = [f"{each['url']}: {each.get('trouble') or f'not {good}'}" for each in behind if not each[good]]
        except CONNECTION_ERRORS as error:
            return self._silent(role, error)
        except NONSENSE:
            return self._stranger(role)
        broken = f"; in trouble: {', '.join(dict.fromkeys(faults))}" if faults else ""
        if behind and len(faults) < len(behind) and named:
            return ok(role, f"{url}: offers {', '.join(named)}{broken}")
        return fail(role, f"{url}: has nothing ready to offer{broken}", advice)

    async def _get(self, url: str) -> tuple[int, Any]:
        async with self._http.get(url, allow_redirects=False) as answer:
            body = await read_body(answer.content, ANSWER_BYTES, ValueError("too large"))
            return answer.status, json_value(body)

    def _silent(self, role: str, error: Exception) -> Finding:
        """Describe an address where nothing answers, or nothing that speaks HTTP."""
        url = self._urls[role]
        if isinstance(error, aiohttp.ClientConnectorError) and role not in self._named:
            return absent(role, f"not running at {url}", f"Start it with `{STARTS[role]}`.")
        advice = f"Check the address, or start the {role} there."
        return fail(role, f"{url} does not answer: {reason_of(error)}", advice)

    def _stranger(self, role: str) -> Finding:
        """Describe an address where something else answers."""
        advice = f"Give the right one with --{role} URL, or stop what is there."
        return fail(role, f"{self._urls[role]} does not answer as {role}s do", advice)

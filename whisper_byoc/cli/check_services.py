"""What `doctor` finds of our services: who has their ports, whether they answer and can work, what would be faster."""

import asyncio
import errno
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp

from whisper_byoc.cli.check_machine import Finding
from whisper_byoc.cli.options import CONTAINER_PORT, GATEWAY_PORT, ORCHESTRATOR_PORT
from whisper_byoc.http import CONNECTION_ERRORS, json_value, read_body, reason_of
from whisper_byoc.processors.machine import available_cpus
from whisper_byoc.processors.whisper import WhisperSettings
from whisper_byoc.speech import catalogue, models

SERVICE_SECONDS = 5.0
LARGEST_REPORT = 1 << 20
SPOKEN = Path(models.__file__).parent / "assets" / "hello-world.wav"
"""`hello world`: 1.9 s of mu-law, which servers read without ffmpeg."""
SPOKEN_SECONDS = 1.9
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SMALL_MODELS = ("demo", "tiny", "tiny.en", "base", "base.en")
NOT_OURS = (ValueError, TypeError, KeyError, AttributeError)
"""What reading the answer of another program raises."""


@dataclass(frozen=True)
class Service:
    """One of our programs that listens on a port."""

    role: str
    port: int
    flags: tuple[str, ...]
    """Options with its address."""
    start: str
    """Command line that starts it."""


SERVICES = (
    Service("container", CONTAINER_PORT, ("--url", "--container"), "whisper-byoc serve --pipeline whisper-tiny"),
    Service(
        "orchestrator",
        ORCHESTRATOR_PORT,
        ("--orchestrator",),
        "whisper-byoc orchestrator -orchestrator -network offchain -serviceAddr 127.0.0.1:8936 "
        "-byoc -byocContainerURL http://127.0.0.1:8000 -byocModelID whisper-tiny",
    ),
    Service(
        "gateway",
        GATEWAY_PORT,
        ("--gateway",),
        "whisper-byoc gateway -gateway -orchAddr 127.0.0.1:8936 -httpAddr 127.0.0.1:8935 -httpIngest",
    ),
)


async def check_port(http: aiohttp.ClientSession, service: Service) -> Finding:
    """See whether the default port of a service is free, or who has it."""
    check, role = f"port {service.port}", service.role
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            listener.bind(("", service.port))
        return Finding(check, "ok", f"free for the {role}")
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            advice = f"Let the {role} listen on another port."
            return Finding(check, "FAIL", f"cannot be bound: {error.strerror}", advice)
    found = await role_at(http, f"http://127.0.0.1:{service.port}")
    if found == role:
        return Finding(check, "ok", f"the {role} listens there")
    owner = f"another whisper-byoc, the {found}" if found else "another program"
    return Finding(check, "FAIL", f"taken by {owner}", f"Stop it, or let the {role} listen on another port.")


async def role_at(http: aiohttp.ClientSession, url: str) -> str:
    """Return the role of the service at an address; empty for another program."""
    with suppress(*CONNECTION_ERRORS, *NOT_OURS):
        _, status = await fetch(http, f"{url}/status")
        return str(status["role"])
    with suppress(*CONNECTION_ERRORS, *NOT_OURS):
        _, version = await fetch(http, f"{url}/version")
        return "container" if version["model_id"] else ""
    return ""


async def check_service(http: aiohttp.ClientSession, service: Service, given_url: str | None) -> Finding:
    """See whether a service answers, and can take jobs."""
    role, url = service.role, given_url or f"http://localhost:{service.port}"
    try:
        if role == "container":
            return await check_container(http, url)
        return await check_node(http, role, url)
    except CONNECTION_ERRORS as error:
        if isinstance(error, aiohttp.ClientConnectorError) and given_url is None:
            return Finding(role, "--", f"not running at {url}", f"Start it with `{service.start}`.")
        advice = f"Check the address, or start the {role} there."
        return Finding(role, "FAIL", f"{url} does not answer: {reason_of(error)}", advice)
    except NOT_OURS:
        advice = f"Give its address with --{role} URL, or stop the program there."
        return Finding(role, "FAIL", f"{url} does not answer as {role}s do", advice)


async def check_container(http: aiohttp.ClientSession, url: str) -> Finding:
    status, ready = await fetch(http, f"{url}/readyz")
    _, version = await fetch(http, f"{url}/version")
    detail = f"{url}: version {version['version']}, serves {version['model_id']}"
    reasons = ", ".join(map(str, ready["reasons"]))
    if status == 200:
        with suppress(*NOT_OURS):  # an older one does not tell
            _, health = await fetch(http, f"{url}/health")
            detail = "; ".join([detail, *map(capacity_line, health["capacity"].items())])
        return Finding("container", "ok", detail)
    advice = "Wait until its model is loaded, or read its log; `/readyz` turns 200 when work can be taken."
    return Finding("container", "FAIL", f"{detail}; not ready: {reasons}", advice)


def capacity_line(item: tuple[str, Mapping[str, Any]]) -> str:
    """Say what a pipeline measured, of an entry of `capacity` in `/health`."""
    name, found = item
    return (
        f"{name}: {found['workers']} workers of {found['threads']} threads, {found['live_jobs']} live jobs of "
        f"{found['live']} that fit, late by {found['lag']:.1f} s"
    )


async def check_node(http: aiohttp.ClientSession, role: str, url: str) -> Finding:
    """See what an orchestrator or gateway offers, and what is wrong with those behind it."""
    _, known = await fetch(http, f"{url}/capabilities")
    offers = known["capabilities"]
    if role == "gateway":
        good, peers = "reachable", known["orchestrators"]
        advice = "Start an orchestrator and a container, and see that -orchAddr names the orchestrator."
    else:
        good, peers = "ready", [peer for offer in offers for peer in offer["containers"]]
        advice = "Start a container, and see that -byocContainerURL and -byocModelID name it."
    names = [f"{offer['name']} ({offer['available']} free)" for offer in offers]
    faults = [f"{peer['url']}: {peer.get('trouble') or f'not {good}'}" for peer in peers if not peer[good]]
    broken = f"; problems: {', '.join(dict.fromkeys(faults))}" if faults else ""
    if names and len(faults) < len(peers):
        return Finding(role, "ok", f"{url}: offers {', '.join(names)}{broken}")
    return Finding(role, "FAIL", f"{url}: nothing is ready{broken}", advice)


async def fetch(http: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    async with http.get(url, allow_redirects=False) as answer:
        body = await read_body(answer.content, LARGEST_REPORT, ValueError("too large"))
        return answer.status, json_value(body)


async def check_transcription(http: aiohttp.ClientSession, url: str, token: str) -> Finding:
    """Have the container transcribe something that is said, and take the time."""
    check = "transcription"
    headers = {"Content-Type": "audio/wav"} | ({"Authorization": f"Bearer {token}"} if token else {})
    limit = aiohttp.ClientTimeout(connect=SERVICE_SECONDS)  # the check itself has one
    try:
        status, ready = await fetch(http, f"{url}/readyz")
        if ready["reasons"] and status != 200:
            return Finding(check, "--", f"{url} is not ready yet", "Wait until it is, and run this again.")
        began = time.monotonic()
        async with http.post(f"{url}/transcribe", data=SPOKEN.read_bytes(), headers=headers, timeout=limit) as answer:
            found = json_value(await read_body(answer.content, LARGEST_REPORT, ValueError("too large")))
            text = str(found["text"] if answer.status == 200 else found["error"])
    except CONNECTION_ERRORS:
        return Finding(check, "--", "no container to ask", "Start one.")
    except NOT_OURS:
        return Finding(
            check, "--", f"{url} does not answer as containers do", "Give the right one with --container URL."
        )
    if answer.status == 401:
        return Finding(check, "--", f"{url} asks for a token", "Pass it with --token or AUTH_TOKEN.")
    if answer.status == 404:
        return Finding(check, "--", f"{url} serves no speech", "Serve a pipeline such as whisper-tiny.")
    if answer.status != 200:
        state: Literal["--", "FAIL"] = "--" if answer.status in (429, 503) else "FAIL"
        return Finding(check, state, f"{url} answers {answer.status}: {text}", "Read its log, or wait and ask again.")
    seconds_taken = f"{time.monotonic() - began:.2f} s for {SPOKEN_SECONDS} s of `hello world`"
    if not text.strip():
        return Finding(check, "FAIL", f"no text, in {seconds_taken}", "Read its log, or serve another model.")
    return Finding(check, "ok", f"`{text.strip()}`, in {seconds_taken}")


async def check_speed(http: aiohttp.ClientSession, url: str) -> Finding:
    """Say what would make speech to text faster, here and in the container."""
    advice = []
    if not models.fast_engine_installed():
        advice.append("install openvino, the fast engine")
    elif not await asyncio.to_thread(_computes_in_bfloat16):
        advice.append("use a CPU with bfloat16 (AVX512-BF16 or AMX)")
    cpus, all_cpus = available_cpus(), os.cpu_count() or 1
    if cpus < all_cpus:
        advice.append(f"give it more than {cpus} of the {all_cpus} CPUs (`docker run --cpus`)")
    elif cpus == 1:
        advice.append("use a machine with more than one CPU")
    with suppress(*CONNECTION_ERRORS, *NOT_OURS):
        _, version = await fetch(http, f"{url}/version")
        large = [name for name in str(version["model_id"]).split(",") if _is_large(name)]
        if large:
            advice.append(f"serve whisper-base or whisper-tiny instead of {', '.join(large)}, which makes more errors")
        _, health = await fetch(http, f"{url}/health")
        if urlsplit(url).hostname in LOOPBACK and _are_idle(cpus, health["capacity"]):
            advice.append(f"drop --workers and --threads, so that the container uses all {cpus} CPUs")
    if not advice:
        return Finding("speed", "ok", "no known way to make it faster here")
    sentence = "; ".join(advice)
    return Finding("speed", "--", "it could be faster", f"{sentence[0].upper()}{sentence[1:]}.")


def _computes_in_bfloat16() -> bool:
    try:
        from whisper_byoc.speech.runtime import has_bfloat16  # here, as it takes a tenth of a second

        return has_bfloat16()
    except (ImportError, RuntimeError):  # the check of the engine says so
        return True


def _are_idle(cpus: int, capacity: Mapping[str, Any]) -> bool:
    """Whether the container has been told to use fewer CPUs than there are."""
    settings = WhisperSettings()
    chosen = [settings.sizes(), *settings.other_sizes()]
    sizes = [(int(each["workers"]), int(each["threads"])) for each in capacity.values()]
    return any(size not in chosen and size[0] * size[1] < cpus for size in sizes)


def _is_large(pipeline: str) -> bool:
    name = pipeline.removeprefix("whisper-")
    return name in catalogue.MODELS and name not in SMALL_MODELS

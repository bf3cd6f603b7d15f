"""Check this machine and what runs on it: ffmpeg, engine, CPUs, model, ports, our services, microphone.

The container is given a second of speech, and the microphone is recorded for half a second.

Each line of the report begins with `ok`, `--` (absent, and not required) or `FAIL`; the advice is below it. A service
whose address is given must answer, one at its default address need not. The exit code is 1 when something fails.
"""

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from whisper_byoc.cli.check_machine import (
    Finding,
    check_cpus,
    check_engine,
    check_ffmpeg,
    check_microphone,
    check_model,
)
from whisper_byoc.cli.check_services import (
    SERVICE_SECONDS,
    SERVICES,
    check_port,
    check_service,
    check_speed,
    check_transcription,
)
from whisper_byoc.cli.options import Parser, add_auth_token, add_model_dir, seconds
from whisper_byoc.cli.terminal import printable
from whisper_byoc.http import base_url, open_session


def configure(parser: Parser) -> None:
    for service in SERVICES:
        text = f"address of the {service.role} (default: http://localhost:{service.port}, which need not answer)"
        address = partial(base_url, credentials=True)
        parser.option(*service.flags, dest=service.role, help=text, metavar="URL", convert=address)
    add_auth_token(parser, "--token", help="bearer token of the container")
    add_model_dir(parser)
    parser.option("--timeout", help="longest time for one check, in seconds", convert=seconds, default=30.0)
    parser.switch("--json", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    given = {service.role: getattr(args, service.role) for service in SERVICES}
    findings = asyncio.run(
        examine({role: url for role, url in given.items() if url}, args.model_dir, args.auth_token, args.timeout)
    )
    failed = any(each.state == "FAIL" for each in findings)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [dataclasses.asdict(each) for each in findings]}))
    else:
        print("\n".join(map(line, findings)))
    return 1 if failed else 0


def line(finding: Finding) -> str:
    text = f"{finding.state:<5}{finding.check:<14}{printable(finding.detail)}"
    return text + (f"\n{'':<19}-> {printable(finding.advice)}" if finding.advice else "")


async def examine(urls: Mapping[str, str], model_dir: Path | None, token: str, timeout: float) -> list[Finding]:
    """Run all checks at once, each under its time limit; `urls` are the given addresses by role."""
    container = urls.get("container") or f"http://localhost:{SERVICES[0].port}"
    async with open_session(total_seconds=SERVICE_SECONDS) as http:
        return await asyncio.gather(
            limited("ffmpeg", check_ffmpeg(), timeout),
            limited("engine", asyncio.to_thread(check_engine), timeout),
            limited("cpus", check_cpus(), timeout),
            limited("model", asyncio.to_thread(check_model, model_dir), timeout),
            *(limited(f"port {each.port}", check_port(http, each), timeout) for each in SERVICES),
            *(limited(each.role, check_service(http, each, urls.get(each.role)), timeout) for each in SERVICES),
            limited("transcription", check_transcription(http, container, token), timeout),
            limited("speed", check_speed(http, container), timeout),
            limited("microphone", check_microphone(), timeout),
        )


async def limited(name: str, check: Coroutine[Any, Any, Finding], timeout: float) -> Finding:
    """Run one check; whatever goes wrong with it is a finding too."""
    try:
        async with asyncio.timeout(timeout):
            return await check
    except TimeoutError:
        advice = "Look at what is there, or allow more with --timeout."
        return Finding(name, "FAIL", f"no answer within {timeout:g} s", advice)
    except Exception as error:
        detail = f"the check itself failed: {type(error).__name__}: {error}"
        return Finding(name, "FAIL", detail, "This is a bug; report it.")

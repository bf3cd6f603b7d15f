"""Check this machine and what runs on it: ffmpeg, model, ports, container, orchestrator, gateway, microphone.

A line is `ok`, `--` (not there, and it need not be) or `FAIL`, with what to do below it. An address that is given
must answer; the default ones may be silent. The exit code is 1 when something fails.
"""

import argparse
import asyncio
import dataclasses
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from whisper_byoc.cli import checks
from whisper_byoc.cli.checks import Finding, fail
from whisper_byoc.cli.options import Parser, seconds
from whisper_byoc.cli.terminal import printable
from whisper_byoc.http import base_url, open_session

ADDRESSES = (("container", "BYOC_URL"), ("orchestrator", "BYOC_ORCHESTRATOR"), ("gateway", "BYOC_GATEWAY"))
PORTS = ((8000, "container"), (8936, "orchestrator"), (8935, "gateway"))


def configure(parser: Parser) -> None:
    for role, variable in ADDRESSES:
        text = f"the {role}, which must answer (default: {checks.DEFAULTS[role]}, which may)"
        parser.option(f"--{role}", help=text, metavar="URL", env=(variable,))
    parser.option("--model-dir", help="folder of the models", env=("MODEL_DIR",), convert=Path)
    parser.option("--timeout", help="longest time for one check, in seconds", convert=seconds, default=30.0)
    parser.switch("--json", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    urls = {role: base_url(url, credentials=True) for role, _ in ADDRESSES if (url := getattr(args, role))}
    findings = asyncio.run(examine(urls, args.model_dir, args.timeout))
    failed = any(each.state == "FAIL" for each in findings)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [dataclasses.asdict(each) for each in findings]}))
    else:
        print("\n".join(map(line, findings)))
    return 1 if failed else 0


async def examine(urls: dict[str, str], model_dir: Path | None, timeout: float) -> list[Finding]:
    """Run all checks at once, each under its time limit."""
    async with open_session(total_seconds=checks.ANSWER_SECONDS) as http:
        services = checks.Services(http, urls)
        work: dict[str, Coroutine[Any, Any, Finding]] = {
            "ffmpeg": checks.check_ffmpeg(),
            "model": asyncio.to_thread(checks.check_model, model_dir),
            **{f"port {number}": checks.check_port(number, role, services.identify) for number, role in PORTS},
            "container": services.container(),
            "orchestrator": services.orchestrator(),
            "gateway": services.gateway(),
            "microphone": checks.check_microphone(),
        }
        return await asyncio.gather(*(limited(name, check, timeout) for name, check in work.items()))


async def limited(name: str, check: Coroutine[Any, Any, Finding], timeout: float) -> Finding:
    """Run one check; whatever goes wrong with it is a finding too."""
    try:
        async with asyncio.timeout(timeout):
            return await check
    except TimeoutError:
        return fail(name, f"no answer within {timeout:g} s", "Look at what is there, or allow more with --timeout.")
    except Exception as error:
        return fail(name, f"the check itself failed: {type(error).__name__}: {error}", "This is a bug; report it.")


def line(finding: Finding) -> str:
    """Write a finding as a line, and the advice as a second one."""
    text = f"{finding.state:<5}{finding.check:<14}{printable(finding.detail)}"
    return text + (f"\n{'':<19}-> {printable(finding.advice)}" if finding.advice else "")

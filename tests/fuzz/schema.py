"""Ask a container what its OpenAPI document allows and what not, and expect answers as that says: schemathesis.

usage: python tests/fuzz/schema.py [--seconds N]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from whisper_byoc.cli.processes import Processes

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "ignored_auth",
)  # fmt: skip
"""Not whether valid requests are accepted, as no schema says which bytes are sound; nor whether other methods are 405:
`/{name}` answers 404 for a pipeline that is not there."""
PIPELINES = ("--pipeline=passthrough", "--pipeline=whisper-demo")
GIVEN = """
[parameters]
"path.job_id" = "a"
"query.pipeline" = "passthrough"
"query.wait" = 0
"query.alone" = 300
"query.follow" = "0"
"query.encoding" = "s16le"
"query.rate" = 16000
"query.channels" = 1
"""
"""Of every request: else no two are about the same job, and some take half a minute. No segment of `passthrough` fails,
and no job ends by itself, which is answered 500."""


async def ask(seconds: float) -> int:
    """Return the exit code of schemathesis; 1 when the server ended, or has a traceback in its log."""
    log = []
    async with Processes(lambda _, line: log.append(line), 10) as processes:
        limits = ("--max-jobs=1000", "--linger=1", "--segment-timeout=5")
        port = await processes.start("container", "serve", *PIPELINES, "--port=0", *limits)
        url = f"http://127.0.0.1:{port}"
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "schemathesis.toml").write_text(GIVEN)
            options = ("--request-timeout=10", "--continue-on-failure", "--no-color", "--warnings=off", "--seed=1")
            bounds = (f"--max-time={seconds:g}", "--phases=coverage,fuzzing", f"--checks={','.join(CHECKS)}")
            words = ("-m", "schemathesis.cli", "run", f"{url}/openapi.json", *bounds, *options)
            program = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=folder)
            code = await program.wait()
        ended = processes.children[0].ended.done()
    traces = [line for line in log if "Traceback" in line]
    if ended or traces:
        print(*log[-100:], sep="\n")
    return code or int(ended or bool(traces))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    sys.exit(asyncio.run(ask(parser.parse_args().seconds)))

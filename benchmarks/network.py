"""What a gateway and an orchestrator add to a segment: `python benchmarks/network.py [--quick] [--json]`.

A is `TrickleClient.process_frame`, straight to the container: a PUT and a GET. B is one POST to the gateway, which
brings it to the orchestrator, which makes the same PUT and GET of it. All three are real processes, as
`whisper-byoc up` runs them, and so is the client; A and B never run at the same time, and take turns as A B B A. The
median of the differences comes with its 95 % interval. Each hop alone is measured in the same way: a POST straight to
the orchestrator next to A, and a POST to the gateway next to one to the orchestrator.

The segment is 5 s of PCM16, 160 kB. Speech goes through the model, whose own time varies by more than the hops take;
silence goes the same way but never reaches the model; `passthrough` gives all bytes back, so that both directions are
full. In `passthrough, cold` a segment of speech is transcribed before each call: the model drives everything else out
of the processor's caches, as it does between the segments of a real stream, but its own time is not in the figure.
Every result is checked.
"""

from __future__ import annotations

import argparse
import asyncio

from overhead import FIXTURE, LONGEST_SECONDS, SEGMENT_BYTES, five_seconds
from pairs import in_turns, paired_row, timed
from report import Row, emit, machine

from whisper_byoc import GatewayClient, TrickleClient
from whisper_byoc.cli.up import Addresses, Plan, running_nodes

TARGET_MS = 6.0
SPEECH, BYTES = "whisper-demo", "passthrough"


async def measure(
    path: Addresses, pipeline: str, name: str, segment: bytes, pairs: int, *, cold: bool = False
) -> list[Row]:
    """Measure both hops, and each alone, with one segment."""
    async with (
        TrickleClient(path.container, pipeline=SPEECH) as model,
        TrickleClient(path.container, pipeline=pipeline) as container,
        GatewayClient(path.orchestrator, pipeline) as orchestrator,
        GatewayClient(path.gateway, pipeline) as gateway,
    ):
        expected = await container.process_frame(segment)
        for client in (container, orchestrator, gateway):  # connections are made, and code is warm
            await timed(client.process_frame, segment, expected)
        rows: list[Row] = []
        for hops, first, second, target in (
            ("both", container, gateway, TARGET_MS),
            ("orchestrator", container, orchestrator, None),
            ("gateway", orchestrator, gateway, None),
        ):
            before = model.process_frame if cold else None
            times = await in_turns(first.process_frame, second.process_frame, segment, expected, pairs, before)
            rows.append({"hops": hops, "segment": name, **paired_row(("without", "with"), *times, target)})
    return rows


async def run(speech_pairs: int, other_pairs: int) -> list[Row]:
    """Start the path, and measure it."""
    async with running_nodes(Plan((SPEECH, BYTES)), lambda *_: None) as path:
        speech = five_seconds(FIXTURE)
        return [
            *await measure(path, SPEECH, "speech", speech, speech_pairs),
            *await measure(path, SPEECH, "silence", bytes(SEGMENT_BYTES), other_pairs),
            *await measure(path, BYTES, "passthrough", speech, other_pairs),
            *await measure(path, BYTES, "passthrough, cold", speech, speech_pairs, cold=True),
        ]


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description="What a gateway and an orchestrator add to a segment.")
    parser.add_argument("--pairs", type=int, default=200, help="of calls with speech; a busy machine needs more")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    about = machine()
    pairs = (2, 5) if options.quick else (options.pairs, 5 * options.pairs)
    rows = asyncio.run(asyncio.wait_for(run(*pairs), LONGEST_SECONDS))
    emit("network", {"5 s of PCM16, in ms": rows}, as_json=options.json, about=about)


if __name__ == "__main__":
    main()

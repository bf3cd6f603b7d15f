"""What a trickle relay costs over a bare copy: `python benchmarks/trickle_relay.py [--quick] [--json]`.

One publisher sends segments through a server to 1, 10 or 100 subscribers; the next segment is sent when all of them
have the last one. Publisher and subscribers share this process, the servers have one each. Three set-ups take turns
(1 2 3 3 2 1 …), so that whatever else the machine does meets all alike:

- `loop`: a bare aiohttp server whose POST writes every chunk to the GETs that wait for it, and nothing more; one
  aiohttp request for each segment at both ends. It has no window, no late readers and no bounds.
- `server`: our server, with the same bare requests at both ends.
- `whole`: our server, our publisher and our subscribers.

Latency is from the first byte written to the last byte read, for each subscriber. `/ loop` is the time for all
segments over the loop's; the target is 1.3 at most.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
from aiohttp import web
from report import Row, emit, machine

from whisper_byoc.trickle import TricklePublisher, TrickleSubscriber

TARGET = 1.3
SUBSCRIBERS = (1, 10, 100)
SIZES = {"1 KiB": 1 << 10, "32 KiB": 32 << 10, "256 KiB": 256 << 10, "4 MiB": 4 << 20}
BYTES_PER_CELL = 128 << 20
LONGEST_SECONDS = 900.0
WARM_UP = 3

Send = Callable[[int, bytes], Awaitable[object]]
Receive = Callable[[int], Awaitable[int]]


# --- the bare loop


class Loop:
    """POST /N copies its chunks to as many GET /N as `?readers=` says."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[web.StreamResponse]] = {}
        self.changed = asyncio.Condition()
        self.done: dict[str, asyncio.Event] = {}

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Wait to be written to."""
        response = web.StreamResponse()
        await response.prepare(request)
        seq = request.match_info["seq"]
        done = self.done.setdefault(seq, asyncio.Event())
        async with self.changed:
            self.waiting.setdefault(seq, []).append(response)
            self.changed.notify_all()
        await done.wait()
        return response

    async def post(self, request: web.Request) -> web.Response:
        """Copy."""
        seq, count = request.match_info["seq"], int(request.query["readers"])
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.waiting.get(seq, ())) == count)
        readers = self.waiting.pop(seq)
        while data := await request.content.readany():
            for reader in readers:
                await reader.write(data)
        self.done.pop(seq).set()
        return web.Response()


async def serve_loop() -> None:
    """Run the bare server until stdin ends."""
    loop, app = Loop(), web.Application()
    app.router.add_get("/ch/{seq}", loop.get)
    app.router.add_post("/ch/{seq}", loop.post)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}/ ", file=sys.stderr, flush=True)
    await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def program(*words: str) -> AsyncIterator[str]:
    """Run a server as a process of its own, and give its URL."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=pipe, stderr=pipe)
    assert process.stderr
    line = (await process.stderr.readline()).decode()
    drain = asyncio.create_task(process.stderr.read())
    try:
        yield line.split("listening on ")[1].split(" ")[0]
    finally:
        process.terminate()
        await process.wait()
        await drain


# --- both ends


@asynccontextmanager
async def bare(url: str, subscribers: int) -> AsyncIterator[tuple[Send, list[Receive]]]:
    """One aiohttp request for each segment."""
    async with AsyncExitStack() as stack:

        async def session() -> aiohttp.ClientSession:
            timeout = aiohttp.ClientTimeout(total=60)
            return await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))

        def receiver(http: aiohttp.ClientSession) -> Receive:
            async def receive(seq: int) -> int:
                async with http.get(f"{url}/{seq}") as answer:
                    size = 0
                    while data := await answer.content.readany():
                        size += len(data)
                    return size

            return receive

        sending = await session()

        async def send(seq: int, data: bytes) -> None:
            async with sending.post(f"{url}/{seq}?readers={subscribers}", data=io.BytesIO(data)) as answer:
                answer.raise_for_status()

        yield send, [receiver(await session()) for _ in range(subscribers)]


@asynccontextmanager
async def ours(url: str, subscribers: int) -> AsyncIterator[tuple[Send, list[Receive]]]:
    """Our publisher and our subscribers."""
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(TricklePublisher(url, create=True))

        async def send(seq: int, data: bytes) -> None:
            if await publisher.publish(data) != seq:
                raise RuntimeError(f"segment {seq} got another index")

        def receiver(subscriber: TrickleSubscriber) -> Receive:
            async def receive(seq: int) -> int:
                segment = await anext(subscriber)
                if segment.seq != seq:
                    raise RuntimeError(f"segment {segment.seq} came instead of {seq}")
                return sum([len(data) async for data in segment])

            return receive

        ends = [await stack.enter_async_context(TrickleSubscriber(url, 0)) for _ in range(subscribers)]
        yield send, [receiver(each) for each in ends]


async def relay(send: Send, receivers: list[Receive], data: bytes, start: int, count: int) -> tuple[float, list[float]]:
    """Send segments one after the other; give the seconds for all, and those of every single delivery."""
    latencies: list[float] = []

    async def one(receive: Receive, seq: int) -> None:
        if await receive(seq) != len(data):
            raise RuntimeError(f"segment {seq} was not complete")
        latencies.append(time.perf_counter() - sent_at)

    began_at = time.perf_counter()
    for seq in range(start, start + count):
        waiting = [asyncio.create_task(one(receive, seq)) for receive in receivers]
        await asyncio.sleep(0)
        sent_at = time.perf_counter()
        await send(seq, data)
        await asyncio.gather(*waiting)
    return time.perf_counter() - began_at, latencies


async def cell(urls: dict[str, str], name: str, size: int, subscribers: int, rounds: int, count: int) -> list[Row]:
    """Measure all set-ups for one size and number of subscribers."""
    data = bytes(size)
    seconds = dict.fromkeys(urls, 0.0)
    latencies: dict[str, list[float]] = {setup: [] for setup in urls}
    async with AsyncExitStack() as stack:
        ends, following = {}, dict.fromkeys(urls, 0)
        for setup, base in urls.items():
            url = f"{base}{setup}-{size}-{subscribers}" if setup != "loop" else f"{base}ch"
            async with aiohttp.ClientSession() as http:
                if setup == "server":
                    (await http.post(url)).raise_for_status()
            ends[setup] = await stack.enter_async_context((ours if setup == "whole" else bare)(url, subscribers))
            await relay(*ends[setup], data, 0, WARM_UP)
            following[setup] = WARM_UP
        for number in range(rounds):
            for setup in list(urls)[:: -1 if number % 2 else 1]:
                took, each = await relay(*ends[setup], data, following[setup], count)
                following[setup] += count
                seconds[setup] += took
                latencies[setup] += each
    total = rounds * count * size * subscribers
    return [
        {
            "segment": name,
            "subscribers": subscribers,
            "set-up": setup,
            "p50 ms": statistics.median(latencies[setup]) * 1000,
            "p99 ms": statistics.quantiles(latencies[setup], n=100, method="inclusive")[-1] * 1000,
            "MB/s": total / seconds[setup] / 1e6,
            "/ loop": None if setup == "loop" else seconds[setup] / seconds["loop"],
            f"<= {TARGET}": None if setup == "loop" else seconds[setup] <= TARGET * seconds["loop"],
            "segments": rounds * count,
        }
        for setup in urls
    ]


async def run(quick: bool) -> list[Row]:
    """Measure every cell."""
    rows: list[Row] = []
    rounds = 2 if quick else 6
    server = ("-m", "whisper_byoc.trickle", "--port", "0")
    async with program(__file__, "--loop-server") as loop_url, program(*server) as ours_url:
        urls = {"loop": loop_url, "server": ours_url, "whole": ours_url}
        for name, size in SIZES.items():
            for subscribers in SUBSCRIBERS:
                count = max(
                    2, min(100, BYTES_PER_CELL // (size * subscribers) // rounds, 3000 // subscribers // rounds)
                )
                rows += await cell(urls, name, size, subscribers, rounds, min(count, 5) if quick else count)
    return rows


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description="What a trickle relay costs over a bare copy.")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a check that it runs, not a figure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--loop-server", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop_server:
        asyncio.run(serve_loop())
        return
    about = machine()
    rows = asyncio.run(asyncio.wait_for(run(options.quick), LONGEST_SECONDS))
    emit("trickle_relay", {"one publisher, segments one after the other": rows}, as_json=options.json, about=about)


if __name__ == "__main__":
    main()

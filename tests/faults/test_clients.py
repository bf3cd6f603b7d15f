"""Clients of a container that are slow, break off, or never come back."""

import asyncio
import contextlib
import io
import sys

import pytest
from yarl import URL

from benchmarks.soak_clients import Wire
from tests.faults.conftest import next_job_works, nothing_left

PATH = "/live/{}/source?pipeline=passthrough"
MIB = 1 << 20
KEPT_MB = 150
"""What malloc may keep of thousands of small things at once."""
SLOWLY = 0.05
"""Stands for a second: what counts is that a byte comes at a time, and that there are others meanwhile."""


async def put(http, node, job, data):
    async with http.put(node.url + PATH.format(job), data=io.BytesIO(data), headers={"Connection": "close"}) as answer:
        assert answer.status == 200, await answer.text()


async def byte_by_byte(act, times=20):
    for _ in range(times):
        await act()
        await asyncio.sleep(SLOWLY)


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
async def test_writers_of_a_byte_at_a_time(container, length):
    async with nothing_left(container), asyncio.TaskGroup() as group:
        for number in range(30):
            wire = await Wire.open(container.url)
            await wire.head("PUT", PATH.format(f"slow-{number}"), length)
            data = b"x" if "1000" in length else b"1\r\nx\r\n"
            group.create_task(byte_by_byte(lambda wire=wire, data=data: wire.send(data))).add_done_callback(
                lambda _, wire=wire: wire.close()
            )
        await next_job_works(container)


async def test_readers_of_a_byte_at_a_time(container, http):
    async with nothing_left(container), asyncio.TaskGroup() as group:
        for number in range(8):
            await put(http, container, f"large-{number}", bytes(6 * MIB))
            wire = await Wire.open(container.url)
            await wire.head("GET", f"/live/large-{number}/output", "Accept: application/x-ndjson")
            group.create_task(byte_by_byte(lambda wire=wire: wire.reader.readexactly(1))).add_done_callback(
                lambda _, wire=wire: wire.reset()
            )
        await next_job_works(container)


FEED = b"Transfer-Encoding: chunked\r\n\r\n" + 3 * (b"64\r\n" + bytes(100) + b"\r\n") + b"0\r\n\r\n"
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nsound\r\n--b--\r\n'
INTO = b"PUT /live/JOB/source?pipeline=passthrough HTTP/1.1\r\nHost: x\r\n"
REQUESTS = {
    "segment": INTO + b"Content-Length: 100\r\n\r\n" + bytes(100),
    "feed": INTO + FEED,
    "live sound": b"PUT /live/JOB/source?pipeline=whisper-demo HTTP/1.1\r\nHost: x\r\n" + FEED,
    "output": b"GET /live/JOB/output HTTP/1.1\r\nHost: x\r\nAccept: application/x-ndjson\r\n\r\n",
    "form": b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(FORM), FORM),
    "WebSocket": b"GET /transcribe HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    + (b"\x82\xfe\x00\xc8" + bytes(4) + bytes(200)),
}  # fmt: skip


@pytest.mark.parametrize("kind", REQUESTS)
async def test_resets_in_every_phase(container, kind):
    request = REQUESTS[kind]
    cuts = sorted({0, 1, *range(20, len(request), 40), request.index(b"\r\n\r\n") + 4, len(request) - 1, len(request)})
    async with nothing_left(container):
        for number, cut in enumerate(cuts):
            wire = await Wire.open(container.url)
            await wire.send(request[:cut].replace(b"JOB", b"%s-%d" % (kind.split()[0].encode(), number)))
            if cut == len(request) and kind != "output":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):  # the answer may have begun
                        await wire.reader.readexactly(1)
            wire.reset()


async def test_abandoned_jobs(container, http, scaled):
    async def abandon(name):
        for number in range(scaled(1000)):
            await put(http, container, f"{name}-{number}", bytes(MIB // 10))
        await next_job_works(container)

    await twice(container, abandon)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without being told")
async def test_idle_connections(container, scaled):
    """Of one address, however many, they leave places to others."""
    where = URL(container.url)

    async def connect(_):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(scaled(10_000)):
                _, writer = await asyncio.open_connection(where.host, where.port, local_addr=("127.0.0.2", 0))
                stack.push_async_callback(closed, writer)
            await next_job_works(container)

    await twice(container, connect)


async def twice(container, fault):
    """Do it again: malloc keeps what so many small things took the first time, and a leak is of both times."""
    async with nothing_left(container, memory_mb=KEPT_MB):
        await fault("first")
    async with nothing_left(container):
        await fault("second")


async def closed(writer):
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()

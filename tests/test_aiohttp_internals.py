"""What is done to aiohttp behind its public interface still has its effect."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from tests.waiting import until
from whisper_byoc.aiohttp_internals import LateHeadResponse, send_continue, take_unread
from whisper_byoc.http import listening


@pytest.fixture
async def serve():
    """Serve one handler and return what a raw request gets, packet by packet."""
    handlers = []

    async def handle(request):
        return await handlers[0](request)

    app = web.Application()
    app.router.add_route("*", "/", handle)
    async with listening(app, "127.0.0.1", 0, keep_alive_seconds=5, shutdown_seconds=1) as port:

        async def connect(handler, request):
            handlers[:] = [handler]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            return reader, writer

        yield connect


async def test_the_head_waits_for_the_first_bytes(serve):
    writes = []

    async def handler(request):
        response = LateHeadResponse()
        await response.prepare(request)
        sending = request.transport.write, request.transport.writelines
        request.transport.write = lambda data: (writes.append(bytes(data)), sending[0](data))
        request.transport.writelines = lambda parts: (writes.append(b"".join(parts)), sending[1](parts))
        await response.write(b"first")
        return response

    reader, writer = await serve(handler, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"first")
    assert writes[0].startswith(b"HTTP/1.1 200")  # sent before the first write, it would not be among these
    assert b"first" in b"".join(writes[:2])
    writer.close()


async def test_interim_answers_come_before_the_answer_itself(serve):
    async def handler(request):
        await send_continue(request)
        await send_continue(request)
        return web.Response(text="done")

    reader, writer = await serve(handler, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    everything = await reader.read()
    assert everything.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert everything.endswith(b"done")
    writer.close()


async def test_what_a_broken_body_had_received_can_be_taken(serve):
    rest = []

    async def handler(request):
        await until(lambda: request.content.exception() is not None)
        with pytest.raises((aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, ConnectionError)):
            await request.content.readany()
        rest.append(take_unread(request.content))
        return web.Response()

    _, writer = await serve(handler, b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n")
    writer.close()
    await until(lambda: rest)
    assert rest == [b"abcd"]

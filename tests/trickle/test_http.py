"""What is said of requests that failed, as they fail over real sockets."""

import asyncio
import socket

import aiohttp
import pytest

from whisper_byoc.trickle.http import describe


async def failure(url):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        with pytest.raises(aiohttp.ClientError) as caught:
            await session.get(url)
    return caught.value


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_refused_connection_is_told_as_the_system_does(name):
    with socket.socket() as bound:  # bound and not listening: nobody else can take the port meanwhile
        bound.bind(("127.0.0.1", 0))
        said = describe(await failure(f"http://{name}:{bound.getsockname()[1]}/"))
    assert "refused" in said
    assert "ssl" not in said


async def test_a_peer_that_does_not_speak_tls_is_told():
    async def accepted(reader, writer):
        await reader.read(100)
        writer.write(b"no TLS here\r\n")
        writer.close()

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    async with server:
        said = describe(await failure(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
    assert "ssl" in said.lower()


def test_errors_without_a_text_have_a_name():
    assert describe(TimeoutError()) == "no answer in time"
    assert describe(ConnectionResetError()) == "ConnectionResetError"

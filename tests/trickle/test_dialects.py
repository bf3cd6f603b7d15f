"""What other clients send, request by request, as go-livepeer's and the Python gateway's do."""

import asyncio

import aiohttp

TS = {"Content-Type": "video/MP2T"}


async def test_the_gateway_clients_publisher(trickle):
    """Creates, asks for /next, resets with its first POST, deletes at its end."""
    api = await trickle()
    assert (await api.post("ch", headers={"Expect-Content": "application/json"}))[0] == 200
    _, body, headers = await api.get("ch/next")
    assert body.decode() == headers["Lp-Trickle-Latest"] == "0"
    reading = asyncio.create_task(api.get("ch/-2"))
    await api.slot_there(0)
    for seq in range(3):
        reset = {"Lp-Trickle-Reset": "1"} if seq == 0 else {}
        assert (await api.post(f"ch/{seq}", b'{"keep":"alive"}', headers=TS | reset))[0] == 200
    assert (await reading)[1] == b'{"keep":"alive"}'
    waiting = asyncio.create_task(api.get("ch/3"))
    await api.slot_there(3)
    assert (await api.delete("ch"))[0] == 200
    assert (await waiting)[2]["Lp-Trickle-Closed"]


async def test_go_publishers_dialect(trickle):
    """POST n + 1 is open while n is written; a segment is closed by DELETE, too; the channel first, then the rest."""
    api = await trickle(autocreate=False)
    api.server.create("mid-control", "application/json")
    current = await api.preconnect("mid-control/0", "Content-Type: video/MP2T")
    for seq in range(8):
        following = await api.preconnect(f"mid-control/{seq + 1}", "Content-Type: video/MP2T")
        await current.write(b"10\r\n" + b'{"keep":"alive"}' + b"\r\n")
        await current.write(b"0\r\n\r\n")
        assert (await current.head())[0] == "HTTP/1.1 200 OK"
        assert (await api.delete(f"mid-control/{seq}"))[0] == 200, "Close of a segment that is closed"
        current = following
    await api.slot_there(8, "mid-control")
    assert (await api.get("mid-control/7"))[2]["Content-Type"] == "application/json"
    await api.delete("mid-control")
    head = await current.head()
    assert head[0] == "HTTP/1.1 200 OK"
    assert "Lp-Trickle-Closed: terminated" in head


async def test_go_subscribers_dialect(trickle):
    """Asks for -1, then one ahead; gives a GET up after a time and asks again."""
    api = await trickle()
    await api.post("ch/0", b"before")
    reading = asyncio.create_task(api.get("ch/-1"))
    await api.slot_there(1)
    for _ in range(3):
        ahead = asyncio.create_task(api.get("ch/1"))
        await asyncio.sleep(0.02)
        ahead.cancel()
    await api.post("ch/1", b"one")
    _, body, headers = await reading
    assert (body, headers["Lp-Trickle-Seq"]) == (b"one", "1")
    ahead = asyncio.create_task(api.get("ch/2"))
    await api.slot_there(2)
    await api.post("ch/2", b"two")
    assert (await ahead)[1] == b"two"


async def test_a_burst_of_readers_on_one_segment(trickle):
    api = await trickle()
    await api.post("ch")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def read():
            async with http.get(api.url() + "/0") as answer:
                return await answer.read()

        readers = [asyncio.create_task(read()) for _ in range(50)]
        await api.slot_there(0)
        writing = await api.preconnect("ch/0")
        for number, piece in enumerate((b"one", b"two", b"six"), 1):
            await writing.write(b"3\r\n" + piece + b"\r\n")
            await api.stored(0, 3 * number)
        await writing.write(b"0\r\n\r\n")
        assert set(await asyncio.gather(*readers)) == {b"onetwosix"}

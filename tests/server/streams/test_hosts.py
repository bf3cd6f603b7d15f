"""Where the channels of a stream may be, and what of a peer's answer is told."""

import contextlib

import pytest
from aiohttp import web

from tests.server.stubs import Sound
from tests.waiting import until
from whisper_byoc.errors import RequestRefused
from whisper_byoc.http import listening
from whisper_byoc.server.registration import RegistrationOptions
from whisper_byoc.server.streams.hosts import StreamHosts

INSIDE = ["http://169.254.169.254/latest", "http://127.0.0.1:6379/x", "http://[::1]/x", "https://elsewhere.example/a/b"]


async def start(api, name="s", headers=None, **urls):
    body = {"gateway_request_id": name, **urls}
    async with api.http.post(f"{api.url}/stream/start", json=body, headers=headers) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("kind", ["subscribe_url", "publish_url", "control_url", "events_url", "data_url"])
async def test_channels_of_elsewhere_are_not_asked(serving, kind):
    api = await serving(Sound(), config={"stream_hosts": []})
    for url in INSIDE:
        status, answer = await start(api, **{kind: url})
        assert (status, answer["status"]) == (403, "error")
        assert "--stream-host" in answer["message"]
    assert api.table.jobs == ()
    assert (await start(api))[0] == 200, "without channels there is nobody to ask"


async def test_an_orchestrator_that_is_registered_at_is_asked(serving):
    registration = RegistrationOptions(("https://localhost:9",))
    api = await serving(Sound(), config={"stream_hosts": [], "registration": registration})
    for name, url in (("a", "https://LOCALHOST:8935/ai/trickle/a"), ("b", "http://127.0.0.1:9/ai/trickle/b")):
        assert (await start(api, name, subscribe_url=url))[0] == 200
    for url in ("http://10.0.0.7/ai/trickle/a", "http://localhost.example/a"):
        assert (await start(api, "c", subscribe_url=url))[0] == 403


async def test_with_a_token_whoever_starts_a_stream_is_asked(serving):
    shown = {"Authorization": "Bearer secret"}
    api = await serving(Sound(), config={"stream_hosts": [], "token": "secret"})
    url = "http://127.0.0.1:9/ai/trickle/a"
    assert (await start(api, subscribe_url=url))[0] == 401
    assert (await start(api, headers=shown, subscribe_url=url))[0] == 200
    assert (await start(api, "b", headers=shown, subscribe_url="http://169.254.169.254/latest"))[0] == 403
    assert (await start(api, "b", headers=shown, subscribe_url=url, data_url="http://10.0.0.7/a"))[0] == 403


async def test_any_host_by_an_explicit_option():
    await StreamHosts(["*"], starters=False).check(["http://169.254.169.254/x"], None)
    await StreamHosts(["[::1]", "Orch.example"], starters=False).check(
        ["http://[::1]/x", "http://orch.example/x"], None
    )
    for url in ("http://orch.example@10.0.0.7/x", "http://[", "not a URL", "http:///x"):
        with pytest.raises(RequestRefused):
            await StreamHosts(["orch.example"], starters=True).check([url], "10.0.0.8")


async def test_what_a_peer_says_is_not_told_to_the_client(serving, caplog):
    caplog.set_level("INFO")
    events = []

    async def answer(request):
        if request.path.startswith("/events"):
            with contextlib.suppress(ConnectionError):
                events.append(await request.text())
            return web.Response(headers={"Lp-Trickle-Seq": "0"})
        return web.Response(status=403, text="the peer's own secret")

    peer = web.Application()
    peer.router.add_route("*", "/{path:.*}", answer)
    api = await serving(Sound())
    async with listening(peer, "127.0.0.1", 0, keep_alive_seconds=5, shutdown_seconds=1) as port:
        base = f"http://127.0.0.1:{port}"
        urls = {"subscribe_url": f"{base}/in", "events_url": f"{base}/events"}
        assert (await start(api, **urls))[0] == 200
        results = api.table.get("s").results

        def told():
            records = [results.at(seq) for seq in range(results.next_seq)]
            return [record.error for record in records if record and record.error]

        await until(told)
        assert f"the input was lost: GET {base}/in/0 was answered 403" in told()
        assert "secret" not in "".join([*told(), *events])
    assert "the peer's own secret" in caplog.text  # for the operator

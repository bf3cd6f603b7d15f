"""Web pages: which may use the listeners of all four roles."""

import base64
import contextlib
import json

import aiohttp
import pytest
from multidict import CIMultiDict

from tests.server.stubs import Sound, Upper
from whisper_byoc.errors import UsageError
from whisper_byoc.network.gateway import Gateway, GatewayConfig
from whisper_byoc.network.orchestrator import Orchestrator, OrchestratorConfig
from whisper_byoc.origins import host_names, origin
from whisper_byoc.server.run import Server, ServerConfig
from whisper_byoc.trickle import TrickleServer

APP, STRANGER = "http://app.example:3000", "http://stranger.example"
PATHS = {
    "container": ("PUT", "/live/job/source"),
    "gateway": ("POST", "/live/video-to-video"),
    "orchestrator": ("POST", "/capability/register"),
    "trickle": ("POST", "/ai/trickle/channel"),
}
"""Of each role, what changes its state."""
READS = {"container": "/live/job/output?wait=0", "gateway": "/capabilities", "trickle": "/ai/trickle/channel/next"}
READS["orchestrator"] = READS["gateway"]
ROLES = pytest.mark.parametrize("role", PATHS)


@contextlib.asynccontextmanager
async def listening(role, host="127.0.0.1", **options):
    """Run a node with `APP` allowed, and yield its port."""
    allowed = {"allowed_origins": [origin(APP)]}
    if role == "container":
        config = ServerConfig(host, 0, **allowed, **options)
        async with Server({"upper": Upper(), "sound": Sound()}, config) as server:
            await server.loaded()
            yield server.port
    elif role == "trickle":
        async with TrickleServer(autocreate=True).listening(host, 0, allowed["allowed_origins"]) as url:
            yield int(url.split(":")[-1].split("/")[0])
    else:
        of_gateway, of_orchestrator = (Gateway, GatewayConfig), (Orchestrator, OrchestratorConfig)
        kind, config = of_gateway if role == "gateway" else of_orchestrator
        async with kind.running(config(host, 0, **allowed)) as node:
            yield node.port


@pytest.fixture
async def ask():
    """Return a function that returns the status of an answer, its text and its headers."""
    async with aiohttp.ClientSession() as http:

        async def request(port, method, path, data=None, **headers):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            url = f"http://127.0.0.1:{port}{path}"
            async with http.request(method, url, data=data, headers=headers, allow_redirects=False) as answer:
                return answer.status, await answer.text(), answer.headers

        yield request


@ROLES
async def test_a_page_of_elsewhere_changes_nothing(ask, role):
    method, path = PATHS[role]
    async with listening(role) as port:
        own = f"127.0.0.1:{port}"
        for page in (STRANGER, "null", "http://localhost:3000", "http://127.0.0.1:1", f"http://{own}.evil.example", ""):
            status, text, _ = await ask(port, method, path, b"x", Origin=page, Content_Type="text/plain")
            assert (status, repr(page) in text) == (403, True)
        assert (await ask(port, method, path, b"x", Sec_Fetch_Site="cross-site"))[0] == 403
        for page in (f"http://{own}", APP, APP.upper()):
            assert (await ask(port, method, path, b"x", Origin=page))[0] != 403
        assert (await ask(port, method, path, b"x", Host=f"localhost:{port}", Origin=f"http://localhost:{port}"))[
            0
        ] != 403


@ROLES
async def test_a_second_origin_is_not_overlooked(role):
    method, path = PATHS[role]
    async with listening(role) as port, aiohttp.ClientSession() as http:
        url, own = f"http://127.0.0.1:{port}", ("Origin", f"http://127.0.0.1:{port}")
        for pages in ([own, ("Origin", STRANGER)], [("Origin", APP), ("Origin", STRANGER)], [own, own]):
            async with http.request(method, url + path, data=b"x", headers=CIMultiDict(pages)) as answer:
                assert answer.status == 403


@ROLES
async def test_a_page_of_elsewhere_reads_nothing_though_its_name_leads_here(ask, role):
    async with listening(role) as port:
        for host in (
            "rebound.example",
            f"rebound.example:{port}",
            "127.0.0.1.example",
            "[::1].example",
            "localhost.evil",
        ):
            assert (await ask(port, "GET", READS[role], Host=host))[0] == 403
            assert (await ask(port, "GET", READS[role], Host=host, Origin=f"http://{host}"))[0] == 403
        names = (
            "localhost",
            "worker",
            "127.0.0.1:80",
            "[::1]:8000",
            "host.docker.internal",
            "a.localhost.",
            "app.example",
        )
        for host in names:
            assert (await ask(port, "GET", READS[role], Host=host))[0] != 403, host


@ROLES
async def test_a_name_that_leads_to_another_address_of_ours_is_no_origin(ask, role):
    async with listening(role, "0.0.0.0") as port, aiohttp.ClientSession() as http:
        url = f"http://{address_of_ours()}:{port}"
        method, path = PATHS[role]
        rebound = {"Host": "rebound.example", "Origin": "http://rebound.example"}
        async with http.request(method, url + path, headers=rebound) as answer:
            assert answer.status == 403
        async with http.request(method, url + path, headers={"Host": "worker.example"}) as answer:
            assert answer.status != 403  # a peer that knows it by that name


def address_of_ours():
    """One that is not loopback; no packet is sent to find it."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return probe.getsockname()[0]


@ROLES
async def test_a_page_that_may_is_told_so_before_it_asks(ask, role):
    method, path = PATHS[role]
    wanted = {"Access_Control_Request_Method": method, "Access_Control_Request_Headers": "authorization"}
    async with listening(role) as port:
        status, _, headers = await ask(port, "OPTIONS", path, Origin=APP, **wanted)
        assert status == 204
        assert headers["Access-Control-Allow-Origin"] == APP
        assert headers["Access-Control-Allow-Methods"] == method
        assert headers["Access-Control-Allow-Headers"] == "authorization"
        _, _, headers = await ask(port, "GET", READS[role], Origin=APP)
        assert (headers["Access-Control-Allow-Origin"], headers["Vary"]) == (APP, "Origin")
        status, _, headers = await ask(port, "OPTIONS", path, Origin=STRANGER, **wanted)
        assert (status, "Access-Control-Allow-Origin" in headers) == (403, False)


@ROLES
async def test_monitors_are_not_asked_where_they_come_from(ask, role):
    if role == "trickle":
        pytest.skip("it has no route for monitors")
    async with listening(role) as port:
        assert (await ask(port, "GET", "/health", Host="lb.example", Origin=STRANGER))[0] == 200
        assert (await ask(port, "POST", "/health", Origin=STRANGER))[0] == 403


async def test_a_socket_of_a_page_is_refused_before_it_opens():
    async with listening("container") as port, aiohttp.ClientSession() as http:
        url = f"ws://127.0.0.1:{port}/transcribe"
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(url, origin=STRANGER)
        assert caught.value.status == 403
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(url, headers={"Host": "rebound.example"})
        assert caught.value.status == 403
        async with http.ws_connect(url, origin=APP) as socket:
            await socket.send_json({"type": "eos"})


async def test_with_a_token_only_loopback_is_checked(ask):
    async with listening("container", "0.0.0.0", token="secret") as port, aiohttp.ClientSession() as http:
        assert (await ask(port, "PUT", "/live/job/source", b"x", Origin=STRANGER))[0] == 403
        preflight = {"Access_Control_Request_Method": "PUT", "Origin": APP}
        assert (await ask(port, "OPTIONS", "/live/job/source", **preflight))[0] == 204  # has no token yet
        url = f"http://{address_of_ours()}:{port}/live/job/source?pipeline=upper"
        async with http.put(url, data=b"x", headers={"Origin": STRANGER}) as answer:
            assert answer.status == 401
        async with http.put(url, data=b"x", headers={"Origin": STRANGER, "Authorization": "Bearer secret"}) as answer:
            assert answer.status == 200


JSON_ROUTES = [
    ("orchestrator", "/capability/register"),
    ("orchestrator", "/ai/stream/start"),
    ("gateway", "/process/stream/start"),
]


@pytest.mark.parametrize(("role", "path"), JSON_ROUTES)
async def test_json_is_not_taken_from_a_form(ask, role, path):
    fields = {"capability": "test", "timeout_seconds": 1, "request": "{}", "parameters": "{}", "id": "a"}
    job = base64.b64encode(json.dumps(fields).encode()).decode()
    body = json.dumps({"name": "test", "url": "http://127.0.0.1:9"}).encode()
    async with listening(role) as port:
        for kind in ("text/plain", "text/plain; application/json", "multipart/form-data; boundary=x"):
            assert (await ask(port, "POST", path, body, Content_Type=kind, Livepeer=job))[0] == 415
        for kind in ("application/json", "application/octet-stream", "application/x-www-form-urlencoded"):
            assert (await ask(port, "POST", path, body, Content_Type=kind, Livepeer=job))[0] != 415


def test_origins_are_checked():
    assert origin(" HTTPS://App.example/ ") == "https://app.example"
    assert (origin("*"), origin("null")) == ("*", "null")
    for text in ("", "app.example", "http://", "http://a/b", "http://me@a", "http://[", "a b"):
        with pytest.raises(UsageError, match="is not the origin of a web page"):
            origin(text)


def test_names_of_hosts():
    assert host_names("", "http://Worker.example:8000/x", "gw.example:7") == {"worker.example", "gw.example"}

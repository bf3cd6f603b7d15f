"""Registration at orchestrators that answer as go-livepeer does, over real sockets; see docs/joining-livepeer.md."""

import asyncio
import base64
import json
import logging
import ssl
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import until
from whisper_byoc.errors import UsageError
from whisper_byoc.http import listening, server_tls
from whisper_byoc.livepeer import Capability
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.registration import OpenJobs, Registrar, RegistrationOptions, available_in
from whisper_byoc.server.run import Server, ServerConfig, serve

SECRET = "orch-secret-Zq81"
TOKEN = "worker-token-Xw42"


class Orchestrator:
    """The four routes of an orchestrator that concern us (go-livepeer, byoc/job_orchestrator.go)."""

    def __init__(self) -> None:
        self.secret = SECRET
        self.known: dict[str, dict] = {}
        self.registered: list[dict] = []
        self.unregistered: list[str] = []
        self.left: list[str | None] = []
        self.probes = 0
        self.untold = False
        self.status = 200
        self.load = 0
        self.holding: asyncio.Event | None = None
        self.scheme = "http"
        self._stack = AsyncExitStack()

    async def listen(self, port: int, context: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.post("/capability/register", self.register),
                web.post("/capability/unregister", self.unregister),
                web.get("/process/token", self.token),
            ]
        )
        options = {"keep_alive_seconds": 60, "shutdown_seconds": 0.1, "tls": context}
        self.port = await self._stack.enter_async_context(listening(app, "127.0.0.1", port, **options))
        self.scheme = "https" if context else "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def close(self) -> None:
        await self._stack.aclose()

    def restart(self) -> None:
        """All of it is in memory."""
        self.known.clear()

    async def hold(self) -> None:
        if self.holding is not None:
            await self.holding.wait()

    def refusal(self, request) -> web.Response | None:
        if self.status != 200:
            return web.Response(status=self.status)
        if request.headers.get("Authorization") != self.secret:
            # an echo of the header is what a careless proxy might add
            return web.Response(status=400, text=f"invalid authorization\n{request.headers.get('Authorization')}")
        return None

    async def register(self, request) -> web.Response:
        body = await request.json()
        refused = self.refusal(request)
        if refused is None:
            self.known[body["name"]] = body
        self.registered.append(body)
        await self.hold()
        return refused or web.Response(text="ok", content_type="application/json")

    async def unregister(self, request) -> web.Response:
        name = await request.text()
        refused = self.refusal(request)
        if refused is None:
            self.known.pop(name, None)
            self.unregistered.append(name)
            self.left.append(request.headers.get("X-Capability-Url"))
        await self.hold()
        return refused or web.Response(text="ok", content_type="application/json")

    async def token(self, request) -> web.Response:
        assert "Authorization" not in request.headers
        sender = json.loads(base64.b64decode(request.headers["Livepeer-Eth-Address"]))
        assert sender == {"addr": "0x" + "0" * 40, "sig": ""}
        self.probes += 1
        await self.hold()
        if self.untold:
            return web.Response(status=400, text="Invalid eth address header ")
        answer = {"sender_address": sender, "balance": 0, "price": {"pixelsPerUnit": 1}, "service_addr": self.url}
        capability = self.known.get(request.headers["Livepeer-Capability"])
        free = capability["capacity"] - capability["load"] - self.load if capability else 0
        return web.json_response(answer | ({"available_capacity": free} if free > 0 else {}))

    async def probed(self, times: int) -> None:
        """Wait for that many more probes."""
        target = self.probes + times
        await until(lambda: self.probes >= target)


@pytest.fixture
async def orchestrator():
    fake = Orchestrator()
    await fake.listen(0)
    yield fake
    if fake.holding is not None:
        fake.holding.set()
    await fake.close()


QUICK = {
    "interval_seconds": 0.02, "confirm_seconds": 0.01, "first_pause": 0.01, "longest_pause": 0.02,
    "leave_seconds": 5.0,
}  # fmt: skip
CAPABILITY = Capability("whisper-tiny", "speech", "http://worker:8000/", 4)


@pytest.fixture
async def join():
    """Return a function that keeps a registration until the test is over."""
    async with AsyncExitStack() as stack:

        def start(*orchestrators, jobs=lambda: OpenJobs(0), **options) -> Registrar:
            urls = tuple(each if isinstance(each, str) else each.url for each in orchestrators)
            registrar = Registrar(
                RegistrationOptions(urls, **{"secret": SECRET, "capability": CAPABILITY, **QUICK, **options}), jobs
            )
            registrar.start()
            stack.push_async_callback(registrar.stop)
            return registrar

        yield start


async def test_registers_once_and_leaves_it_at_that_while_known(orchestrator, join):
    registrar = join(orchestrator)
    await orchestrator.probed(5)
    assert orchestrator.registered == [
        {
            "name": "whisper-tiny", "description": "speech", "url": "http://worker:8000", "capacity": 4,
            "price_per_unit": 0, "price_scaling": 1, "currency": "", "load": 0,
        }
    ]  # fmt: skip
    await registrar.stop()
    assert orchestrator.known == {}
    assert orchestrator.unregistered == ["whisper-tiny"]
    assert orchestrator.left == ["http://worker:8000"]  # one of perhaps several under that name
    await registrar.stop()
    assert orchestrator.unregistered == ["whisper-tiny"]


async def test_price_and_token_go_along(orchestrator, join):
    paid = replace(CAPABILITY, price_per_unit=5, price_scaling=1000, currency="eth", token=TOKEN)
    join(orchestrator, capability=paid)
    await until(lambda: orchestrator.registered)
    (body,) = orchestrator.registered
    assert (body["price_per_unit"], body["price_scaling"], body["currency"]) == (5, 1000, "eth")
    assert body["token"] == TOKEN


async def test_tries_until_the_orchestrator_is_there(join, unused_tcp_port, caplog):
    caplog.set_level(logging.INFO)
    registrar = join(f"http://127.0.0.1:{unused_tcp_port}")
    await until(lambda: "cannot be reached" in caplog.text)
    fake = Orchestrator()
    await fake.listen(unused_tcp_port)
    await until(lambda: fake.known)
    await registrar.stop()
    await fake.close()
    assert caplog.text.count("cannot be reached") == 1  # not once per try


async def test_registers_again_when_forgotten(orchestrator, join, caplog):
    join(orchestrator)
    for times in (1, 2, 3):
        await until(lambda times=times: len(orchestrator.registered) == times)
        await orchestrator.probed(2)
        assert len(orchestrator.registered) == times
        orchestrator.restart()
    assert "sees no free place for capability whisper-tiny, or does not know it" in caplog.text


async def test_registers_again_after_a_restart_with_refused_connections(orchestrator, join, caplog):
    join(orchestrator)
    await orchestrator.probed(1)
    port = orchestrator.port
    await orchestrator.close()
    await until(lambda: "cannot be asked" in caplog.text)
    orchestrator.restart()
    await orchestrator.listen(port)
    await until(lambda: orchestrator.known)


async def test_registers_again_while_jobs_are_open_and_tells_of_them(orchestrator, join):
    jobs = OpenJobs(4)
    join(orchestrator, jobs=lambda: jobs)
    await until(lambda: orchestrator.known)
    orchestrator.restart()
    await orchestrator.probed(4)
    assert len(orchestrator.registered) == 1, "all four places are taken, so none can be free"
    jobs = OpenJobs(3)
    await until(lambda: orchestrator.known)
    await orchestrator.probed(4)
    assert [each["load"] for each in orchestrator.registered] == [4, 3]


async def test_a_measured_capacity_is_told_when_it_has_changed(orchestrator, join):
    jobs = OpenJobs(0, fits=20)
    join(orchestrator, jobs=lambda: jobs, capability=replace(CAPABILITY, capacity=0))
    await orchestrator.probed(2)
    jobs = OpenJobs(2, fits=24)
    await orchestrator.probed(2)
    jobs = OpenJobs(2, fits=26)
    await until(lambda: len(orchestrator.registered) == 2)
    await orchestrator.probed(2)
    assert [each["capacity"] for each in orchestrator.registered] == [20, 26]


async def test_a_capacity_that_was_given_is_kept(orchestrator, join):
    join(orchestrator, jobs=lambda: OpenJobs(0, fits=20))
    await orchestrator.probed(3)
    assert [each["capacity"] for each in orchestrator.registered] == [4]


async def test_one_answer_without_capacity_is_not_enough(orchestrator, join):
    """A job may have its slot already, and not have arrived here yet."""
    join(orchestrator, confirm_seconds=0.05)
    await orchestrator.probed(1)
    orchestrator.load = 4
    await orchestrator.probed(1)
    orchestrator.load = 0
    await orchestrator.probed(3)
    assert len(orchestrator.registered) == 1


async def test_an_orchestrator_that_will_not_say_is_told_again_and_again(orchestrator, join, caplog):
    orchestrator.untold = True
    join(orchestrator, jobs=lambda: OpenJobs(1))
    await until(lambda: len(orchestrator.registered) == 3)
    assert orchestrator.registered[-1]["load"] == 1
    assert caplog.text.count("does not say whether it knows") == 1


async def test_a_wrong_secret_is_said_clearly_without_showing_it_and_may_be_mended(orchestrator, join, caplog):
    caplog.set_level(logging.DEBUG)
    orchestrator.secret = "another"
    join(orchestrator, capability=replace(CAPABILITY, token=TOKEN))
    await until(lambda: len(orchestrator.registered) == 3)
    orchestrator.secret = SECRET
    await until(lambda: orchestrator.known)
    assert caplog.text.count("ORCH_SECRET must be what the orchestrator was given as -orchSecret") == 1
    assert "400 'invalid authorization" in caplog.text
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text


async def test_a_failing_server_is_asked_again_soon_and_one_that_refuses_is_not(orchestrator, join):
    orchestrator.secret = "another"
    failing = Orchestrator()
    failing.status = 503
    await failing.listen(0)
    registrar = join(orchestrator, failing, interval_seconds=3600.0)
    await until(lambda: orchestrator.registered and len(failing.registered) == 10)
    assert len(orchestrator.registered) == 1
    failing.status = 200
    await until(lambda: failing.known)
    await registrar.stop()
    await failing.close()


async def test_an_orchestrator_that_hangs(orchestrator, join, caplog):
    orchestrator.holding = asyncio.Event()
    registrar = join(orchestrator, answer_seconds=0.1, leave_seconds=0.1)
    await until(lambda: len(orchestrator.registered) == 2)
    assert "no answer in time" in caplog.text
    async with asyncio.timeout(10):
        await registrar.stop()
    assert "could not be told that whisper-tiny is gone" in caplog.text


async def test_several_orchestrators_are_independent(orchestrator, join, unused_tcp_port):
    join(f"http://127.0.0.1:{unused_tcp_port}", orchestrator, orchestrator.url + "/")
    await orchestrator.probed(2)
    assert len(orchestrator.registered) == 1


async def test_redirects_are_not_followed_with_the_secret(orchestrator, join, caplog):
    async def elsewhere(request):
        return web.Response(status=307, headers={"Location": f"{orchestrator.url}/capability/register"})

    app = web.Application()
    app.router.add_post("/capability/{which}", elsewhere)
    async with listening(app, "127.0.0.1", 0, keep_alive_seconds=60, shutdown_seconds=1) as port:
        registrar = join(f"http://127.0.0.1:{port}")
        await until(lambda: "refused capability whisper-tiny: 307" in caplog.text)
        await registrar.stop()
    assert orchestrator.registered == []


async def test_a_self_signed_certificate_is_taken_unless_told_otherwise(join, certificate, caplog):
    fake = Orchestrator()
    await fake.listen(0, server_tls(*certificate))
    checking = join(fake, verify_tls=True)
    await until(lambda: "certificate verify failed" in caplog.text.lower())
    await checking.stop()
    assert fake.registered == []
    registrar = join(f"127.0.0.1:{fake.port}")  # without a scheme: https
    await until(lambda: fake.known)
    await registrar.stop()
    assert fake.unregistered == ["whisper-tiny"]
    await fake.close()


class Gate:
    """A processor that is ready when told."""

    def __init__(self) -> None:
        self.loading, self.ready = asyncio.Event(), asyncio.Event()

    async def initialize(self) -> None:
        self.loading.set()
        await self.ready.wait()

    async def process(self, frame: bytes) -> bytes:
        return frame


async def test_a_server_registers_what_it_is_and_counts_its_jobs(orchestrator):
    gate = Gate()
    gate.ready.set()
    registration = RegistrationOptions((orchestrator.url,), SECRET, **QUICK)
    config = ServerConfig("127.0.0.1", 0, Limits(jobs=7), registration, TOKEN)
    async with Server({"upper": gate, "other": Gate()}, config) as server, aiohttp.ClientSession() as http:
        server.join()
        await until(lambda: orchestrator.known)
        url = f"http://127.0.0.1:{server.port}"
        assert orchestrator.known["upper"] == {
            "name": "upper", "description": "upper by whisper-byoc", "url": url, "capacity": 7,
            "price_per_unit": 0, "price_scaling": 1, "currency": "", "token": TOKEN, "load": 0,
        }  # fmt: skip
        shown = {"Authorization": f"Bearer {TOKEN}"}
        async with http.put(f"{url}/live/job/source?pipeline=upper", data=b"x", headers=shown) as answer:
            assert answer.status == 200
        orchestrator.restart()
        await until(lambda: orchestrator.known)
        assert orchestrator.known["upper"]["load"] == 1
    assert orchestrator.known == {}


SERVE = """
import subprocess, sys
from whisper_byoc.cli.main import main
code = main(["serve", "--pipeline", "passthrough", "--host", "127.0.0.1", "--port", "0", "--log-level", "debug"])
sys.stdout.write(subprocess.run(["env"], capture_output=True, text=True).stdout)
sys.exit(code)
"""


@pytest.mark.parametrize(("prefix", "as_file"), [("", False), ("LIVEPEER_", True)])
async def test_a_process_set_up_by_its_environment_leaves_on_sigterm(orchestrator, spawn, tmp_path, prefix, as_file):
    secret = SECRET
    if as_file:
        (tmp_path / "secret").write_text(SECRET + "\n")
        secret = str(tmp_path / "secret")
    environment = {
        f"{prefix}ORCH_URL": orchestrator.url,
        f"{prefix}ORCH_SECRET": secret,
        f"{prefix}CAPABILITY_NAME": "speech-to-text",
        f"{prefix}CAPACITY" if prefix else "CAPABILITY_CAPACITY": "3",
        f"{prefix}AUTH_TOKEN": TOKEN,
    }
    process = await spawn(sys.executable, "-c", SERVE, env=environment)
    await until(lambda: orchestrator.known)
    body = orchestrator.known["speech-to-text"]
    assert (body["capacity"], body["token"]) == (3, TOKEN)
    async with aiohttp.ClientSession() as http, http.get(f"{body['url']}/live/job/output?wait=0") as answer:
        assert answer.status == 401
    process.terminate()
    async with asyncio.timeout(50):
        out, err = (each.decode() for each in await process.communicate())
    assert process.returncode == 0, err
    assert orchestrator.unregistered == ["speech-to-text"]
    assert err.index("capability speech-to-text unregistered") < err.index("shutting down")
    assert "PATH=" in out
    for secret in (SECRET, TOKEN, "ORCH_SECRET=", "AUTH_TOKEN="):
        assert secret not in out + err


async def test_the_server_registers_only_when_loaded_and_goes_when_told(orchestrator):
    gate, stop = Gate(), asyncio.Event()
    registration = RegistrationOptions((orchestrator.url,), SECRET, **QUICK)
    serving = asyncio.ensure_future(
        serve({"gate": gate}, ServerConfig("127.0.0.1", 0, registration=registration), stop)
    )
    await gate.loading.wait()
    assert orchestrator.registered == []
    gate.ready.set()
    await until(lambda: orchestrator.known)
    stop.set()
    async with asyncio.timeout(20):
        await serving
    assert orchestrator.known == {}


def test_the_sample_for_live_runner_has_what_go_livepeer_demands():
    sample = Path(__file__).resolve().parents[2] / "examples" / "runners.json"
    runners = json.loads(sample.read_text())["runners"]
    assert len({each["label"] for each in runners}) == len(runners)
    assert {each["mode"] for each in runners} == {"persistent", "single-shot"}
    assert sum(each["capacity"] for each in runners) <= Limits().jobs
    for each in runners:
        assert each["health_url"] == each["runner_url"] + "/readyz"
        assert each["app"].count("/") == 1
        assert each["price_info"]["price"] > 0
        assert (each["price_info"]["currency"], each["price_info"]["unit"]) == ("usd", "hour")


def test_nothing_secret_in_the_repr():
    registration = RegistrationOptions(("https://orch:8935",), SECRET, Capability("name", token=TOKEN))
    config = ServerConfig(registration=registration, token=TOKEN)
    for secret in (SECRET, TOKEN):
        assert secret not in repr(config)


@pytest.mark.parametrize(
    ("status", "body", "available"),
    [
        (200, b'{"available_capacity": 3}', 3),
        (200, b'{"price": {"pixelsPerUnit": 1}}', 0),
        (200, b'{"available_capacity": 0}', 0),
        (200, b'{"available_capacity": "1"}', None),
        (200, b"[]", None),
        (200, b"<html>", None),
        (200, b"[" * 60000, None),
        (400, b'{"available_capacity": 1}', None),
        (503, b"", None),
    ],
)
def test_what_an_answer_means(status, body, available):
    assert available_in(status, body) == available


@given(st.sampled_from([200, 400]), st.binary(max_size=200))
def test_any_bytes_are_an_answer(status, body):
    assert available_in(status, body) in (0, None)


@pytest.mark.parametrize("url", ["ftp://orch", "https://orch/?x=1", "https://u:pw@orch"])
def test_addresses_that_cannot_be(url):
    with pytest.raises(UsageError) as caught:
        RegistrationOptions((url,))
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("secret", ["two\nlines", " padded-Zq81", "\x00"])
def test_secrets_that_cannot_be_sent_are_not_shown_either(secret):
    for make in (lambda: RegistrationOptions((), secret), lambda: Capability(token=secret)):
        with pytest.raises(UsageError) as caught:
            make()
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"name": "two words"}, {"name": "x" * 129}, {"url": "ftp://w"}, {"capacity": -1}, {"price_per_unit": 2**63}],
)
def test_capabilities_that_cannot_be(options):
    with pytest.raises(UsageError):
        Capability(**options)

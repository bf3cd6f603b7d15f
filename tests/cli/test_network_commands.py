"""`whisper-byoc gateway` and `orchestrator`: the tutorial's command lines, go-livepeer's flags, and errors."""

import asyncio
import json
import os
import signal
import socket
import urllib.error
import urllib.request

import pytest

from tests.server.stubs import Upper
from whisper_byoc.cli import gateway, orchestrator
from whisper_byoc.cli.main import main
from whisper_byoc.errors import UsageError

GATEWAY = "-gateway -orchAddr 127.0.0.1:8936 -httpAddr 127.0.0.1:8935 -httpIngest"
ORCHESTRATOR = "-orchestrator -network offchain -serviceAddr 127.0.0.1:0 -byoc -byocContainerURL {} -byocModelID a"

SWITCHES = """
aiServiceRegistry aiVerboseLogs aiWorker autoAdjustPrice broadcaster byoc currentManifest gateway hevcDecoding
httpIngest ignoreMaxPriceIfNeeded ignoreSenderReserve initializeRound localVerify
metricsClientIP metricsPerStream monitor orchestrator redeemer remoteDiscovery remoteSigner reward
startupAvailabilityCheck testTranscoder transcoder useLiveRunners
"""
VALUES = """
aiMinRunnerVersion aiModels aiModelsDir aiProcessingRetryTimeout aiRunnerContainersPerGPU aiRunnerImage
aiRunnerImageOverrides authWebhookUrl blockPollingInterval cliAddr config datadir dataDir depositMultiplier
discoveryTimeout ethAcctAddr ethController ethKeystorePath ethOrchAddr ethPassword ethUrl extraNodes FVfailGsbucket
FVfailGskey gasLimit gatewayHost httpAddr initializeRoundMaxDelay kafkaBootstrapServers kafkaGatewayTopic
kafkaPassword kafkaUsername liveAIAuthApiKey liveAIAuthWebhookUrl liveAICapRefreshModels liveAIHeartbeatHeaders
liveAIHeartbeatInterval liveAIHeartbeatURL liveAISaveNSegments liveAITrickleHostForRunner liveOutSegmentTimeout
livePaymentInterval liveRunnerConfig maxAttempts maxFaceValue maxGasPrice maxPricePerCapability maxPricePerUnit
maxSessions maxTicketEV maxTotalEV maxTransactionReplacements mediaMTXApiPassword metadataAmqpExchange
metadataPublishTimeout metadataQueueUri minGasPrice minPerfScore netint network nodes nvidia objectStore orchAddr
orchBlocklist orchMinLivepeerVersion orchPerfStatsUrl orchSecret orchWebhookUrl pixelsPerUnit priceFeedAddr
pricePerBroadcaster pricePerGateway pricePerUnit recordStore redeemerAddr region remoteSignerUrl rtmpAddr
selectPriceExpFactor selectPriceWeight selectRandFreq selectStakeWeight serviceAddr ticketEV transactionTimeout
transcodingOptions v verifierPath verifierUrl vmodule
"""
"""All flags of go-livepeer 0.9 (cmd/livepeer/starter/flags.go), and `-byoc` of the tutorial."""
MEANT = {
    "gateway": {"gateway", "orchAddr", "httpAddr", "httpIngest", "gatewayHost"},
    "orchestrator": {"orchestrator", "byoc", "serviceAddr", "httpAddr", "orchSecret", "liveAITrickleHostForRunner"},
}


@pytest.fixture
def configure(capsys, monkeypatch):
    """Return a function that runs a command line, and returns its exit code, errors and what it would have served."""
    served = []

    async def serve(config):
        served.append(config)

    for module, node in ((gateway, gateway.Gateway), (orchestrator, orchestrator.Orchestrator)):
        monkeypatch.setattr(node, "running", lambda config: config)
        monkeypatch.setattr(module, "serve_node", serve)
        monkeypatch.setattr(module, "start_log", lambda _: None)
    for name in [name for name in os.environ if name.startswith("LP_")]:
        monkeypatch.delenv(name)

    def run(words):
        served.clear()
        code = main(words.split())
        out, err = capsys.readouterr()
        assert out == ""
        return code, err, served[0] if served else None

    return run


def test_the_tutorials_gateway(configure):
    code, err, config = configure(f"gateway {GATEWAY}")
    assert (code, err) == (0, "")
    assert config.orchestrators == ["http://127.0.0.1:8936"]
    assert (config.host, config.port, config.public_host) == ("127.0.0.1", 8935, "")
    assert configure("gateway")[2].orchestrators == ["http://127.0.0.1:8936"], "everything has a default"


def test_all_flags_of_the_gateway(configure, monkeypatch):
    _, _, config = configure(
        "gateway --gateway=true -orchAddr https://a:1,b, -httpAddr 0.0.0.0:0 -gatewayHost gw.example:7 "
        "--job-timeout 3 --drain-timeout 4"
    )
    assert config.orchestrators == ["https://a:1", "http://b:8936"]
    assert (config.host, config.port) == ("0.0.0.0", 0)
    assert config.public_host == "gw.example:7"
    assert (config.limits.job_seconds, config.limits.drain_seconds) == (3, 4)
    monkeypatch.setenv("LP_ORCHADDR", "c:5")
    _, _, config = configure("gateway")
    assert config.orchestrators == ["http://c:5"]


def test_containers_are_every_url_with_every_name(configure, monkeypatch):
    _, _, config = configure(
        "orchestrator -byocContainerURL a:1 -byocContainerURL https://b -byocModelID x -byocModelID y -byocCapacity 3 "
        "-byocToken secret"
    )
    assert [(each.name, each.url) for each in config.containers] == [
        ("x", "http://a:1"), ("y", "http://a:1"), ("x", "https://b:8000"), ("y", "https://b:8000"),
    ]  # fmt: skip
    assert {(each.capacity, each.token, each.registered) for each in config.containers} == {(3, "secret", False)}
    monkeypatch.setenv("LP_SERVICEADDR", "1.2.3.4:5")
    monkeypatch.setenv("LP_BYOCCONTAINERURL", "a:1,b:2")
    monkeypatch.setenv("LP_BYOCMODELID", "x")
    _, _, config = configure("orchestrator")
    assert (config.service_host, config.service_port) == ("1.2.3.4", 5)
    assert [each.url for each in config.containers] == ["http://a:1", "http://b:2"]
    assert configure("orchestrator -serviceAddr x:1")[2].service_host == "x"


@pytest.mark.parametrize("host", ["", "a", "a:1", "[::1]:2"])
def test_a_trickle_host_is_a_host_and_a_port(host):
    assert orchestrator.trickle_host(host) == host
    with pytest.raises(UsageError):
        orchestrator.trickle_host(f"http://{host}/")


@pytest.mark.parametrize("command", MEANT)
def test_flags_of_go_livepeer_without_a_meaning_are_named_in_one_line(configure, caplog, command):
    caplog.set_level("INFO", "whisper_byoc.network")
    switches = [name for name in SWITCHES.split() if name not in MEANT[command]]
    values = [name for name in VALUES.split() if name not in MEANT[command]]
    words = [word for name in switches for word in (f"-{name}", f"-{name}=false")]
    words += [word for name in values for word in (f"-{name}", "-1")]
    assert configure(f"{command} {' '.join(words)} --drain-timeout 4")[2].limits.drain_seconds == 4
    (line,) = [each.message for each in caplog.records]
    assert line.startswith("flags without a meaning off-chain, ignored: -")
    assert sorted(line.split(": ")[1].split()) == sorted(f"-{name}" for name in (*switches, *values))
    caplog.clear()
    configure(f"{command} -{command}")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("gateway -bogus", "--bogus (see whisper-byoc gateway --help)"),
        ("gateway --prot 8000", "--prot 8000"),
        ("gateway -orchAdr 127.0.0.1:8936", "there is no flag -orchAdr; did you mean -orchAddr?"),
        ("gateway -monitor false stray", "stray"),
        ("gateway -orchAddr ,", "-orchAddr names no orchestrator"),
        ("gateway -orchAddr a:99999", "'a:99999'"),
        ("gateway -orchAddr :5", "':5'"),
        ("gateway -httpAddr x:y", "'x:y'"),
        ("gateway -httpAddr https://a:1", "-httpAddr https://a:1: this serves plain HTTP"),
        ("gateway -gatewayHost :7", "-gatewayHost ':7'"),
        ("gateway --job-timeout -1", "-1"),
        ("orchestrator -bogus", "--bogus"),
        ("orchestrator -serviceAddr https://a", "-serviceAddr https://a: this serves plain HTTP"),
        ("orchestrator -serviceAddr a:b:c", "'a:b:c' is not"),
        ("orchestrator -httpAddr a:b:c", "'a:b:c' is not"),
        ("orchestrator -byocContainerURL http://a", "go together"),
        ("orchestrator -byocModelID a", "go together"),
        ("orchestrator -byocContainerURL ftp://x -byocModelID a", "'ftp://x' is not"),
        ("orchestrator -byocContainerURL :8000 -byocModelID a", "':8000'"),
        ("orchestrator -byocCapacity 0", "'0' is not a whole number of at least 1"),
        ("orchestrator --job-timeout never", "'never' is not a number of seconds"),
        ("orchestrator -liveAITrickleHostForRunner http://x:1", "http://x:1"),
        ("orchestrator -liveAITrickleHostForRunner x:1/path", "x:1/path"),
        ("orchestrator -liveAITrickleHostForRunner x:y", "x:y"),
    ],
)
def test_errors_are_one_sentence(configure, line, part):
    code, err, config = configure(line)
    assert (code, config, err.count("\n")) == (2, None, 1)
    assert err.startswith("whisper-byoc: ")
    assert part in err


def test_the_secret_leaves_the_environment(configure, monkeypatch, tmp_path):
    monkeypatch.setenv("ORCH_SECRET", "s3cret")
    _, _, config = configure("orchestrator")
    assert config.secret == "s3cret"
    assert "s3cret" not in repr(config)
    assert "ORCH_SECRET" not in os.environ
    (tmp_path / "empty").write_text("")
    code, err, _ = configure(f"orchestrator -orchSecret {tmp_path / 'empty'}")
    assert code == 2
    assert "must hold 1 to 4096 characters" in err


async def ask(url, body=None, **headers):
    """Make a request; return its status and its text."""

    def send():
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""

    return await asyncio.to_thread(send)


async def test_a_gateway_runs_until_a_signal(command):
    running = await command("gateway", *GATEWAY.replace("8935", "0").split())
    port = (await running.logged(r"gateway listening on port (\d+)"))[1]
    assert await ask(f"http://127.0.0.1:{port}/health") == (200, '{"status": "OK"}')
    assert await running.end(signal.SIGTERM) == 0
    assert "Traceback" not in running.whole_log


async def test_an_orchestrator_runs_until_ctrl_c(command, serving, tmp_path):
    container = await serving({"a": Upper()})
    (tmp_path / "secret").write_text("s3cret\n")
    running = await command(
        "orchestrator", *ORCHESTRATOR.format(container.url).split(),
        *("-orchSecret", str(tmp_path / "secret"), "--log-level", "debug"),
    )  # fmt: skip
    port = (await running.logged(r"orchestrator listening on port (\d+)"))[1]
    await running.logged(r"BYOC capability registered: a")
    _, known = await ask(f"http://127.0.0.1:{port}/capabilities")
    (shown,) = json.loads(known)["capabilities"]
    assert (shown["name"], shown["available"], shown["containers"][0]["url"]) == ("a", 64, container.url)
    body = json.dumps({"name": "b", "url": "http://127.0.0.1:9", "capacity": 1}).encode()
    for secret, status in (("wrong", 400), ("s3cret", 200)):
        register = f"http://127.0.0.1:{port}/capability/register"
        assert (await ask(register, body, Authorization=secret))[0] == status
    assert await running.end(signal.SIGINT) == 0
    assert "ignored: -network\n" in running.whole_log
    assert "s3cret" not in running.whole_log
    assert "Traceback" not in running.whole_log


@pytest.mark.parametrize("words", [("gateway", "-httpAddr"), ("orchestrator", "-serviceAddr")])
async def test_a_port_in_use_is_one_sentence(command, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = await command(*words, f"127.0.0.1:{port}")
        assert await running.end(None) == 1
    last = running.whole_log.splitlines()[-1]
    assert last.startswith("whisper-byoc: ")
    assert str(port) in last
    assert "Traceback" not in running.whole_log

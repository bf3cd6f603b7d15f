"""`whisper-byoc orchestrator`: go-livepeer's flags, in a process as its users run it."""

import asyncio
import json
import os
import re
import signal
import sys
import urllib.request

import pytest

from whisper_byoc.cli import orchestrator as command
from whisper_byoc.cli.main import main, two_dashes
from whisper_byoc.cli.options import Parser
from whisper_byoc.errors import UsageError


def parsed(*words):
    parser = Parser(prog="whisper-byoc orchestrator")
    command.configure(parser)
    return parser.read([two_dashes(word) for word in words])


class Running:
    def __init__(self, process):
        self.process = process
        self.log = ""

    async def logged(self, pattern):
        while line := (await asyncio.wait_for(self.process.stderr.readline(), 30)).decode():
            self.log += line
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no {pattern!r} in {self.log!r}")

    async def end(self, number=signal.SIGTERM):
        if number:
            self.process.send_signal(number)
        _, rest = await asyncio.wait_for(self.process.communicate(), 30)
        self.log += rest.decode()
        assert "Traceback" not in self.log
        return self.process.returncode


@pytest.fixture
def run(spawn):
    """Give a function that runs the command with these words."""

    async def start(*words):
        return Running(await spawn(sys.executable, "-m", "whisper_byoc.cli.main", "orchestrator", *words))

    return start


class Upper:
    async def process(self, frame):
        return frame.upper()


async def get(url):
    return json.loads(await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read()))


async def test_the_tutorials_command_line(run, serving):
    container = await serving({"whisper-tiny": Upper()})
    running = await run(
        "-orchestrator", "-network", "offchain", "-serviceAddr", "127.0.0.1:0", "-byoc", "-byocContainerURL",
        container.url, "-byocModelID", "whisper-tiny",
    )  # fmt: skip
    port = (await running.logged(r"orchestrator listening on port (\d+)"))[1]
    await running.logged(r"BYOC capability registered: whisper-tiny$")
    (shown,) = (await get(f"http://127.0.0.1:{port}/capabilities"))["capabilities"]
    assert (shown["name"], shown["available"], shown["containers"][0]["url"]) == ("whisper-tiny", 32, container.url)
    assert await running.end() == 0
    assert "ignored: -network\n" in running.log


async def test_ctrl_c_is_a_clean_exit_too(run):
    running = await run("-serviceAddr", "127.0.0.1:0")
    await running.logged("listening")
    assert await running.end(signal.SIGINT) == 0


async def test_a_port_in_use_is_one_sentence(run, serving):
    container = await serving({"a": Upper()})
    running = await run("-serviceAddr", container.url)
    assert await running.end(None) == 1
    assert f"whisper-byoc: cannot listen on 127.0.0.1:{container.port}" in running.log


async def test_the_secret_is_in_a_file_and_not_in_the_log(run, tmp_path):
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    running = await run("-serviceAddr", "127.0.0.1:0", "-orchSecret", str(path), "--log-level", "debug")
    port = (await running.logged(r"listening on port (\d+)"))[1]

    def register(secret):
        body = json.dumps({"name": "a", "url": "http://127.0.0.1:9", "capacity": 1}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/capability/register", body)
        request.add_header("Authorization", secret)
        try:
            return urllib.request.urlopen(request, timeout=10).status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert await asyncio.to_thread(register, "wrong") == 400
    assert await asyncio.to_thread(register, "s3cret") == 200
    assert await running.end() == 0
    assert "s3cret" not in running.log


MEANT = ("orchestrator", "byoc", "serviceAddr", "httpAddr", "orchSecret", "liveAITrickleHostForRunner")
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


def test_every_flag_of_go_livepeer_is_accepted_and_those_without_a_meaning_are_named(caplog):
    switches = [name for name in SWITCHES.split() if name not in MEANT]
    values = [name for name in VALUES.split() if name not in MEANT]
    words = [word for name in switches for word in (f"-{name}", f"-{name}=false")]
    words += [word for name in values for word in (f"-{name}", "-1")]
    args = parsed(*words, "-byocModelID", "x")
    assert args.byocModelID == ["x"]
    caplog.set_level("INFO")
    command.log_ignored(args)
    (line,) = [each.message for each in caplog.records]
    assert sorted(line.split(": ")[1].split()) == sorted(f"-{name}" for name in (*switches, *values))


def test_nothing_is_said_when_nothing_is_ignored(caplog):
    caplog.set_level("INFO")
    command.log_ignored(parsed("-orchestrator", "-byoc"))
    assert caplog.records == []


@pytest.mark.parametrize("value", ["true", "false", "1", "0", "T", "F"])
def test_booleans_as_go_writes_them(value):
    args = parsed(f"-byoc={value}", f"-orchestrator={value}", "-v", "6", f"-monitor={value}")
    assert args.byoc is args.orchestrator is (value in ("true", "1", "T"))


@pytest.fixture
def refused(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")

    def refused(*words):
        assert main(["orchestrator", *words]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert err.startswith("whisper-byoc: ")
        return err

    return refused


def test_wrong_usage_is_one_sentence(refused, tmp_path):
    assert "--bogus" in refused("-bogus")
    assert "'maybe' is neither true nor false" in refused("-byoc=maybe")
    for address in ("-serviceAddr", "-httpAddr"):
        assert "plain HTTP" in refused(address, "https://127.0.0.1:0")
        assert "is not an address" in refused(address, "a:b:c")
    url = "http://127.0.0.1:8000"
    assert "go together" in refused("-byocContainerURL", url)
    assert "go together" in refused("-byocModelID", "whisper-tiny")
    assert "is not an address" in refused("-byocContainerURL", "ftp://x", "-byocModelID", "a")
    assert "names no host" in refused("-byocContainerURL", ":8000", "-byocModelID", "a")
    assert "'0' is not a whole number" in refused("-byocCapacity", "0")
    assert "'never' is not a number of seconds" in refused("--job-timeout", "never")
    for host in ("http://x:1", "x:1/path", "x:y"):
        assert host in refused("-liveAITrickleHostForRunner", host)
    empty = tmp_path / "empty"
    empty.write_text("")
    assert "must hold 1 to" in refused("-orchSecret", str(empty))


def test_containers_are_every_url_with_every_name():
    words = "-byocContainerURL a:1 -byocContainerURL https://b -byocModelID x -byocModelID y -byocCapacity 3"
    args = parsed(*words.split())
    made = command.containers(args.byocContainerURL, args.byocModelID, args.byocCapacity, "token")
    assert [(each.name, each.url) for each in made] == [
        ("x", "http://a:1"), ("y", "http://a:1"), ("x", "https://b:8000"), ("y", "https://b:8000"),
    ]  # fmt: skip
    assert {(each.capacity, each.token, each.registered) for each in made} == {(3, "token", False)}
    assert [[other.name + other.url[-1] for other in each.together] for each in made] == [
        ["x1", "y1"], ["x1", "y1"], ["x0", "y0"], ["x0", "y0"],
    ]  # fmt: skip


def test_the_environment_sets_options(monkeypatch):
    monkeypatch.setenv("LP_SERVICEADDR", "1.2.3.4:5")
    monkeypatch.setenv("LP_BYOCCONTAINERURL", "a:1,b:2")
    monkeypatch.setenv("LP_BYOCMODELID", "x")
    args = parsed()
    assert args.serviceAddr == "1.2.3.4:5"
    assert args.byocContainerURL == ["a:1", "b:2"]
    assert parsed("-serviceAddr", "x:1").serviceAddr == "x:1"


def test_a_trickle_host_is_a_host_and_a_port():
    assert [command.trickle_host(text) for text in ("", "a", "a:1", "[::1]:2")] == ["", "a", "a:1", "[::1]:2"]
    with pytest.raises(UsageError):
        command.trickle_host("a:1/")


def test_a_flag_of_the_secret_takes_it_out_of_the_environment(monkeypatch):
    monkeypatch.setenv("ORCH_SECRET", "s3cret")
    monkeypatch.setattr(command, "serve", lambda config: configs.append(config))
    monkeypatch.setattr(command.asyncio, "run", lambda _: None)
    configs = []
    assert main(["orchestrator", "-serviceAddr", "127.0.0.1:0"]) == 0
    (config,) = configs
    assert config.secret == "s3cret"
    assert "s3cret" not in repr(config)
    assert "ORCH_SECRET" not in os.environ

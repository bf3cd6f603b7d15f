"""compose.yaml: a file that holds together, and three processes that run from it as it says."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from audio import pcm
from audio.wav import read_wav
from whisper_byoc import GatewayClient

yaml = pytest.importorskip("yaml", reason="PyYAML, which reads compose.yaml, is not installed (pip install .[dev])")

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
CHOSEN = {"ORCH_SECRET": "a secret of this test", "MODEL_ID": "whisper-demo", "AUTH_TOKEN": "a token of this test"}
PORTS = {"container": 8000, "orchestrator": 8936, "gateway": 8935}


def filled(text, values):
    """Put values in place of variables, as compose does."""

    def value(found):
        name, operator, rest = found.groups()
        if values.get(name):
            return values[name]
        assert operator != "?", f"{name}: {rest}"
        return rest or ""

    return VARIABLE.sub(value, text)


@pytest.fixture(scope="module")
def text():
    return (ROOT / "compose.yaml").read_text()


@pytest.fixture(scope="module")
def services(text):
    return yaml.safe_load(filled(text, CHOSEN))["services"]


def example():
    """Name -> value and the lines above it, of .env.example."""
    found, above = {}, []
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found[match[1]] = (match[2], list(above))
        else:
            above = [*above, line] if line else []
    return found


def test_every_variable_is_explained_and_every_explanation_has_its_variable(text):
    used = {found[1]: found for found in VARIABLE.finditer(text)}
    explained = example()
    assert set(used) == set(explained)
    for name, (value, above) in explained.items():
        assert above, f"{name} is not explained"
        if used[name][2] == "-":
            assert value == used[name][3], f"{name} has another default in compose.yaml"


def test_a_missing_secret_is_an_error_that_says_what_to_do(text):
    with pytest.raises(AssertionError, match=r"ORCH_SECRET: copy \.env\.example"):
        filled(text, {})


def test_three_services_of_one_image_each_with_its_health_and_time_to_end(services):
    assert set(services) == set(PORTS)
    assert {each["image"] for each in services.values()} == {"whisper-byoc"}
    assert (ROOT / services["container"]["build"]["dockerfile"]).is_file()
    assert services["container"]["stop_grace_period"] == "45s"
    assert services["container"]["environment"]["WHISPER_BYOC_PORT"] == "8000", "the image's health check asks there"
    for name in ("orchestrator", "gateway"):
        assert services[name]["healthcheck"]["test"][:3] == ["CMD", "python", "-c"]
        assert f"127.0.0.1:{PORTS[name]}/" in services[name]["healthcheck"]["test"][3]
        assert int(services[name]["stop_grace_period"].rstrip("s")) > 20
    for each in services.values():
        assert all(after == {"condition": "service_healthy"} for after in each.get("depends_on", {}).values())
    published = [port for each in services.values() for port in each.get("ports", [])]
    assert published == ["127.0.0.1:8935:8935"], "nothing else is reached from outside"


def test_compose_itself_takes_the_file(tmp_path):
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker with compose here")
    command = [docker, "compose", "-f", str(ROOT / "compose.yaml"), "--env-file", str(ROOT / ".env.example"), "config"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert set(json.loads(done.stdout)["services"]) == set(PORTS)


def in_order(services):
    """Names, each behind those it depends on."""
    left, done = dict(services), []
    while left:
        ready = [name for name, each in left.items() if set(each.get("depends_on", ())) <= set(done)]
        assert ready, f"they wait for each other: {list(left)}"
        done += ready
        left = {name: each for name, each in left.items() if name not in ready}
    return done


def healthy(code):
    """Run the code of a health check."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def started(services, node):
    """The services as processes: names of hosts become loopback, ports become free ones."""
    nodes = {}

    def local(words):
        for name, port in PORTS.items():
            mine = str(nodes[name].port) if name in nodes else "PORT"
            words = re.sub(rf"(?:\b{name}|0\.0\.0\.0|127\.0\.0\.1):{port}\b", f"127.0.0.1:{mine}", words)
        return words

    for name in in_order(services):
        settings = {key: local(str(value or "")) for key, value in services[name].get("environment", {}).items()}
        if name == "container":
            assert settings["WHISPER_BYOC_PORT"] == "8000"
            settings |= {"WHISPER_BYOC_PORT": "0", "WHISPER_BYOC_HOST": "127.0.0.1"}
        nodes[name] = node(*map(local, services[name]["command"]), environment=settings).start()
        if check := services[name].get("healthcheck"):
            nodes[name].until(partial(healthy, local(check["test"][3])), 30)
        else:
            nodes[name].ready()  # as the image's own check asks
    return nodes


async def test_sound_goes_through_the_services_as_the_file_starts_them(started, fixtures_dir, texts, http):
    data = pcm.encode(read_wav((fixtures_dir / "demo-pipeline.wav").read_bytes()))
    async with GatewayClient(started["gateway"].url, "whisper-demo") as client:
        assert (await client.process_frame(data)).decode().split() == texts["demo-pipeline.wav"]["text"].split()
    async with http.get(f"{started['orchestrator'].url}/capabilities") as answer:
        (offer,) = (await answer.json())["capabilities"]
    assert [(each["registered"], each["url"]) for each in offer["containers"]] == [(True, started["container"].url)]
    async with http.put(f"{started['container'].url}/live/a/source", data=b"") as answer:
        assert answer.status == 401, "the container asks for the token that the orchestrator shows"
    for name in ("gateway", "container", "orchestrator"):
        assert started[name].end() == 0

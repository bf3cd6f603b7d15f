"""deploy/helm/whisper-byoc: what it makes of values is what Kubernetes takes, and what the worker understands."""

import asyncio
import functools
import json
import os
import re
import socket
import subprocess
import sys
import tomllib

import pytest

from tests.deploy.conftest import CHART, yaml
from tests.ports import free_port
from whisper_byoc.server.core.limits import Limits

ROOT = CHART.parent.parent.parent
ALL = {
    "image": {"repository": "registry.example/speech/whisper-byoc", "pullSecrets": ["registry"]},
    "model": {"name": "base", "volume": {"persistentVolumeClaim": {"claimName": "models"}}},
    "options": {"language": "auto", "allow-origin": ["https://a.example", "https://b.example"], "max-segment": 67108864,
                "orch-verify-tls": True, "reg-interval": 2.5},
    "registration": {"orchestrators": ["https://one.example:8935", "https://two.example:8935"],
                     "existingSecret": "livepeer", "capability": "transcription"},
    "auth": {"existingSecret": "worker", "secretKey": "token"},
    "networkPolicy": {"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "egress": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "autoscaling": {"enabled": True},
    "dashboard": {"enabled": True},
    "podAnnotations": {"example.org/note": "1"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "speech", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "cpu", "operator": "In", "values": ["fast"]}]}]}}},
}  # fmt: skip
KEDA = {"autoscaling": {"enabled": True, "keda": {"enabled": True, "serverAddress": "http://prometheus:9090"}}}
LITTLE = {"networkPolicy": {"enabled": False}, "topologySpread": [], "podDisruptionBudget": {"maxUnavailable": "25%"}}
CASES = {
    "nothing": {},
    "all": ALL,
    "keda": KEDA,
    "little": LITTLE,
    "one secret": {"auth": {"existingSecret": "worker"}, "model": {"volume": {"emptyDir": {}}}},
    "one orchestrator": {"registration": {"orchestrators": ["orchestrator:8936"]}},
}
OLDEST, NEWEST = "1.30", "1.37"
BESIDE_THE_SERVER = {"POD_IP"}
"""Variables of the pod that are for its other variables."""
SETS_ITSELF = {
    "pipeline", "port", "model-dir", "drain-live", "drain-timeout", "orch-url", "orch-secret", "capability-name",
    "capability-url", "auth-token", "tls-cert", "tls-key",
}  # fmt: skip
"""Options that `options` does not take: the chart has values of their own for them, or none."""


def pod(objects):
    return objects["Deployment"]["spec"]["template"]["spec"]


def container(objects):
    (only,) = pod(objects)["containers"]
    return only


def environment(objects):
    return {each["name"]: each.get("value", "") for each in container(objects)["env"]}


@functools.cache
def help_of_serve():
    command = [sys.executable, "-m", "whisper_byoc.cli.main", "serve", "--help"]
    wide = os.environ | {"COLUMNS": "1000"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=wide).stdout


@functools.cache
def checked(manifest, version):
    """Check one object, as JSON, against what a release of Kubernetes takes, unknown fields being errors."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="`make chart` brings kubernetes-validate")
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def check_scaled_object(given):
    """Check those fields of KEDA's keda.sh/v1alpha1 that are used; its autoscaler's behavior is Kubernetes' own."""
    assert given["apiVersion"] == "keda.sh/v1alpha1"
    spec = given["spec"]
    assert spec.keys() == {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "advanced", "triggers"}
    for trigger in spec["triggers"]:
        assert trigger.keys() == {"type", "metricType", "metadata"}
        assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": given["metadata"],
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": spec["scaleTargetRef"]["name"]},
            "maxReplicas": spec["maxReplicaCount"],
            **spec["advanced"]["horizontalPodAutoscalerConfig"],
        },
    }


def check_service_monitor(given):
    """Check those fields of monitoring.coreos.com/v1 that are used."""
    assert given["apiVersion"] == "monitoring.coreos.com/v1"
    assert given["spec"].keys() == {"selector", "endpoints"}
    assert [each.keys() for each in given["spec"]["endpoints"]] == [{"port", "path", "interval"}]


def test_lint_has_nothing_to_say(helm):
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_takes_what_is_rendered(rendered, case, version):
    objects = rendered(**CASES[case])
    if "ScaledObject" in objects:
        objects["HorizontalPodAutoscaler"] = check_scaled_object(objects.pop("ScaledObject"))
    if "ServiceMonitor" in objects:
        check_service_monitor(objects.pop("ServiceMonitor"))
    for each in objects.values():
        checked(json.dumps(each, sort_keys=True), version)


def test_there_are_those_objects_that_are_asked_for(rendered):
    always = {"Deployment", "Service", "PodDisruptionBudget"}
    assert set(rendered()) == always | {"NetworkPolicy"}
    assert set(rendered(**LITTLE)) == always
    others = {"NetworkPolicy", "ServiceMonitor", "HorizontalPodAutoscaler", "ConfigMap"}
    assert set(rendered(**ALL)) == always | others
    assert set(rendered(**KEDA)) == always | {"NetworkPolicy", "ScaledObject"}


def test_every_selector_finds_the_pods(rendered):
    objects = rendered(**ALL)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    service = objects["Service"]
    for selector in (
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        pod(objects)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == labels
    monitor = objects["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert service["spec"]["ports"][0]["targetPort"] == container(objects)["ports"][0]["name"]
    names = {each["metadata"]["name"] for each in objects.values()}
    assert names == {objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]} == {"live-whisper-byoc"}
    assert "replicas" not in objects["Deployment"]["spec"], "they are the autoscaler's"


@pytest.mark.parametrize("case", CASES)
def test_a_pod_has_no_more_rights_than_it_needs(rendered, case):
    spec = pod(rendered(**CASES[case]))
    (only,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    image = (ROOT / "Dockerfile.whisper").read_text()
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in image
    assert {"name": "tmp", "mountPath": "/tmp"} in only["volumeMounts"]
    assert {each["name"] for each in only["volumeMounts"]} == {each["name"] for each in spec["volumes"]}
    assert "livepeer" not in str(only["env"]), "a secret is a file, not a variable"
    assert only["resources"]["limits"]["cpu"], "threads come from this quota"


def test_the_version_is_that_of_the_package_and_the_image_as_it_is_released(rendered):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version
    assert "-t REGISTRY/whisper-byoc:$VERSION-$model" in (ROOT / "docs/releasing.md").read_text()
    assert container(rendered(**ALL))["image"] == f"registry.example/speech/whisper-byoc:{version}-base"
    assert container(rendered(image={"tag": "latest"}))["image"] == "whisper-byoc:latest"


def test_every_variable_is_that_of_an_option(rendered):
    lists = re.findall(r"env ([A-Z_]+(?:, [A-Z_]+)*)\]", help_of_serve())
    understood = {name for names in lists for name in names.split(", ")}
    assert len(understood) > 50
    for case in CASES.values():
        assert set(environment(rendered(**case))) - BESIDE_THE_SERVER <= understood


def test_options_are_those_of_the_worker_which_the_chart_does_not_set_itself():
    schema = json.loads((CHART / "values.schema.json").read_text())
    taken = schema["properties"]["options"]["propertyNames"]["enum"]
    there = set(re.findall(r"^  --([a-z-]+)", help_of_serve(), re.MULTILINE))
    assert sorted(taken) == sorted(there - SETS_ITSELF)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 2}, "replica"),
        ({"options": {"langauge": "de"}}, "langauge"),
        ({"options": {"drain-timeout": 5}}, "drain-timeout"),
        ({"registration": {"orchestrators": "https://one.example"}}, "orchestrators"),
        ({"registration": {"orchestrators": ["https://one.example,https://two.example"]}}, "orchestrators"),
        ({"registration": {"secret": "plain"}}, "secret"),
        ({"resources": {"limits": {"cpu": None}}}, "cpu"),
        ({"autoscaling": {"targets": {"liveUtilization": 70}}}, "liveUtilization"),
        ({"autoscaling": {"enabled": True, "keda": {"enabled": True}}}, "serverAddress"),
    ],
    ids=str,
)
def test_a_mistake_is_refused(helm, values, said):
    done = helm("template", "live", str(CHART), **values)
    assert done.returncode == 1
    assert said in done.stderr


def test_the_readme_names_every_value_and_its_default():
    def leaves(value, path=""):
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from leaves(inner, f"{path}.{name}".strip("."))
        else:
            yield path, value

    told = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", (CHART / "README.md").read_text(), re.MULTILINE))
    there = {
        path: f"`{json.dumps(value)}`" for path, value in leaves(yaml.safe_load((CHART / "values.yaml").read_text()))
    }
    assert told == there


def test_there_is_room_for_as_many_recordings_as_the_worker_takes():
    size = yaml.safe_load((CHART / "values.yaml").read_text())["tmpSize"]
    assert int(size.removesuffix("Gi")) << 30 > Limits().spool_bytes


def test_the_dashboard_is_the_one_of_this_repository(rendered):
    data = rendered(**ALL)["ConfigMap"]["data"]["whisper-byoc.json"]
    assert json.loads(data) == json.loads((ROOT / "deploy/grafana/whisper-byoc.json").read_text())


def test_the_autoscaler_asks_for_what_the_adapter_has(rendered):
    rules = yaml.safe_load((ROOT / "deploy/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    asked = rendered(**ALL)["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert {each["pods"]["metric"]["name"] for each in asked} == {rule["name"]["as"] for rule in rules}
    for rule in rules:
        assert rule["resources"]["overrides"] == {name: {"resource": name} for name in ("namespace", "pod")}


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def running(node, rendered, port, tmp_path_factory):
    """A container as the chart starts it, beside an orchestrator; secrets are files in another folder."""
    folder = tmp_path_factory.mktemp("secrets")
    for name in ("orch-secret", "auth-token"):
        (folder / name).write_text(name * 2)
    orchestrator = node(
        "orchestrator", "-serviceAddr", "127.0.0.1:PORT", environment={"ORCH_SECRET": str(folder / "orch-secret")}
    ).start()
    registration = ALL["registration"] | {"orchestrators": [orchestrator.url, "http://127.0.0.1:1"]}
    objects = rendered(**ALL | {"model": {"name": "demo"}, "registration": registration})
    here = {"POD_IP": "127.0.0.1", "WHISPER_BYOC_HOST": "127.0.0.1", "WHISPER_BYOC_PORT": str(port)}
    variables = environment(objects) | here
    for name, value in variables.items():  # as the kubelet does, but for another port and another folder
        value = value.replace("$(POD_IP)", variables["POD_IP"]).replace(":8000", f":{port}")
        variables[name] = value.replace("/run/secrets/whisper-byoc", str(folder))
    return objects, orchestrator, node("serve", environment=variables).start().ready()


async def test_a_container_as_the_chart_starts_it_registers_at_an_orchestrator_and_shows_its_token(running, http):
    _, orchestrator, server = running
    orchestrator.until(lambda: "registered: transcription" in orchestrator.text, 20)
    async with http.get(f"{orchestrator.url}/capabilities") as answer:
        (offer,) = (await answer.json())["capabilities"]
    assert [each["url"] for each in offer["containers"]] == [server.url]
    async with http.put(f"{server.url}/live/a/source", data=b"") as answer:
        assert answer.status == 401
    assert server.text.count("127.0.0.1:1: cannot be reached") == 1, "the other one is tried, too"


async def test_probes_and_metrics_are_there_without_the_token(running, http, rendered):
    objects, _, server = running
    probes = [container(objects)[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    for probe in probes:
        assert probe["port"] == "http"
        async with http.get(server.url + probe["path"]) as answer:
            assert answer.status == 200
    async with http.get(server.url + objects["ServiceMonitor"]["spec"]["endpoints"][0]["path"]) as answer:
        there = set(re.findall(r"^(\w+)(?:{.*})? \S+$", await answer.text(), re.MULTILINE))
    adapter = yaml.safe_load((ROOT / "deploy/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    triggers = rendered(**KEDA)["ScaledObject"]["spec"]["triggers"]
    queries = [rule[name] for rule in adapter for name in ("seriesQuery", "metricsQuery")]
    queries += [trigger["metadata"]["query"] for trigger in triggers]
    for query in queries:
        named = set(re.findall(r"byoc_\w+", query))
        assert named, query
        assert named <= there


STUCK = """
import asyncio

class Stuck:
    async def process(self, frame):
        await asyncio.sleep(600)
"""


async def test_a_container_that_cannot_end_ends_within_what_the_chart_gives_it(node, rendered, tmp_path, http):
    """Its job does not end, a reader stays, and its orchestrator answers nothing."""
    drain = 1
    spec = pod(rendered(drain={"seconds": drain}))
    ends_in = spec["terminationGracePeriodSeconds"] - spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        words = ("--host", "127.0.0.1", "--port", "PORT", "--drain-timeout", str(drain), "--orch-url", url)
        server = node("run", *words, str(script))
        await asyncio.to_thread(lambda: server.start().ready())
        async with http.put(f"{server.url}/live/a/source", data=b"frame") as answer:
            assert answer.status == 200
        async with http.get(f"{server.url}/live/a/output?follow=1", headers={"Accept": "application/x-ndjson"}):
            server.process.terminate()
            assert await asyncio.to_thread(server.process.wait, ends_in) == 0, server.text

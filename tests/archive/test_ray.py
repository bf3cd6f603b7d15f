"""Archives on a Ray cluster: real nodes on this machine, of which one dies in the middle.

`make test-archives` runs this; Ray is not installed where `make test` runs.
"""

import asyncio
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.waiting import until

pytest.importorskip("ray", reason="Ray is not installed; `make test-archives` has it")

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # for the nodes; the command sets it for itself

pytestmark = pytest.mark.timeout(120)
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "memory": 1 << 30}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, which only keeps count of the nodes that tests add and remove; no process outlives it."""
    from ray.cluster_utils import Cluster

    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    pids = [each.process.pid for node in cluster.list_all_nodes() for each in all_processes(node)]
    cluster.shutdown()
    left = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not left


def all_processes(node):
    return [each for some in node.all_processes.values() for each in some]


@pytest.fixture
def recordings(fixtures_dir, tmp_path, monkeypatch):
    """Twelve recordings that are different files, below the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rec").mkdir()
    for number in range(6):
        for name in ("demo-numbers", "demo-long-40s"):
            shutil.copy(fixtures_dir / f"{name}.wav", tmp_path / "rec" / f"{name}-{number}.wav")
    return tmp_path / "rec"


def words(address):
    return ("transcribe", "--ray", address, "rec", "--model", "demo", "--output", "out", "--worker-memory", "512M")


async def test_a_node_that_dies_loses_nothing(command, cluster, recordings, tmp_path, texts):
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    running = await command(*words(cluster.address))
    out = tmp_path / "out"
    await until(lambda: len(list(out.rglob("*.txt"))) >= 2, 60)
    cluster.remove_node(nodes[0], allow_graceful=False)
    assert await running.end(None) == 0, running.whole_log
    assert running.out.decode().splitlines()[-1].startswith("out: 12 transcribed (")  # Ray tells of the node before
    for path in recordings.iterdir():
        expected = texts[f"{path.name[: path.name.rindex('-')]}.wav"]["text"]
        assert (out / "rec" / f"{path.name}.txt").read_text().split() == expected.split()
    cluster.remove_node(nodes[1])
    await asyncio.to_thread(cluster.wait_for_nodes, 60)  # until both are missed: the next driver must not join them


async def test_without_room_for_a_worker_it_says_so(command, cluster, recordings):
    running = await command(*words(cluster.address))
    assert await running.end(None) == 2
    assert "no node of the cluster has 1 CPUs and 512 MiB" in running.whole_log


async def test_without_a_cluster_it_says_so(command, recordings):
    running = await command(*words("127.0.0.1:1"))
    assert await running.end(None) == 2
    assert running.whole_log.startswith("whisper-byoc: no Ray cluster is reached at 127.0.0.1:1")
    assert "Traceback" not in running.whole_log


async def test_a_cluster_of_its_own_ends_with_it(command, recordings, tmp_path):
    for path in sorted(recordings.iterdir())[1:]:
        path.unlink()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # paths of sockets must be short
        running = await command(*words("local"), RAY_TMPDIR=folder)
        await until(lambda: processes_with(folder), 60)
        assert await running.end(None) == 0, running.whole_log
        assert not processes_with(folder)
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 1


def processes_with(word):
    found = subprocess.run(["pgrep", "-f", word], capture_output=True, text=True, check=False)
    return found.stdout.split()

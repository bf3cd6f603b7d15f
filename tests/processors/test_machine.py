"""How many CPUs and how much memory: made-up /proc and /sys trees, and this machine's own."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.processors.machine import available_cpus, available_memory

HOST_CPUS = 64


@pytest.fixture
def big_host(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(HOST_CPUS)), raising=False)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.usefixtures("big_host")
@pytest.mark.parametrize(
    ("cpu_max", "cpus"),
    [
        ("max 100000\n", HOST_CPUS),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),  # rounded down
        ("50000 100000\n", 1),  # never below one
        ("100000 50000\n", 2),  # another period
        ("6500000 100000\n", HOST_CPUS),  # more than the machine has
        ("", HOST_CPUS),
        ("max\n", HOST_CPUS),
        ("200000\n", HOST_CPUS),
        ("200000 0\n", HOST_CPUS),
        ("-200000 100000\n", HOST_CPUS),
        ("two 100000\n", HOST_CPUS),
        ("2e5 100000\n", HOST_CPUS),
        ("200000 100000 100000\n", HOST_CPUS),
    ],
)
def test_quota_of_a_version_2_container(tmp_path, cpu_max, cpus):
    tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": cpu_max})
    assert available_cpus(tmp_path) == cpus


@pytest.mark.usefixtures("big_host")
@pytest.mark.parametrize(
    ("own", "parent", "top", "cpus"),
    [("800000", "400000", "600000", 4), ("300000", "400000", "max", 3), ("max", "max", "700000", 7)],
)
def test_the_smallest_quota_of_all_ancestors_counts(tmp_path, own, parent, top, cpus):
    files = {
        "proc/self/cgroup": "0::/kubepods.slice/pod1\n",
        "sys/fs/cgroup/kubepods.slice/pod1/cpu.max": f"{own} 100000\n",
        "sys/fs/cgroup/kubepods.slice/cpu.max": f"{parent} 100000\n",
        "sys/fs/cgroup/cpu.max": f"{top} 100000\n",
        "sys/fs/cgroup/kubepods.slice/pod2/cpu.max": "100000 100000\n",  # a neighbour's
    }
    assert available_cpus(tree(tmp_path, files)) == cpus


def version_1(group: str, quota: str) -> dict[str, str]:
    folder = f"sys/fs/cgroup/{group}"
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.usefixtures("big_host")
@pytest.mark.parametrize(("quota", "cpus"), [("300000", 3), ("350000", 3), ("-1", HOST_CPUS), ("10000", 1)])
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_quota_of_a_version_1_container(tmp_path, mount, quota, cpus):
    groups = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"
    files = {"proc/self/cgroup": groups} | version_1(f"{mount}/docker/abc", quota)
    assert available_cpus(tree(tmp_path, files)) == cpus


@pytest.mark.usefixtures("big_host")
def test_version_1_group_mounted_as_if_it_were_the_top(tmp_path):
    files = {"proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n"} | version_1("cpu,cpuacct", "300000")
    assert available_cpus(tree(tmp_path, files)) == 3


@pytest.mark.usefixtures("big_host")
def test_hybrid_layout_reads_both_versions(tmp_path):
    files = {
        "proc/self/cgroup": "1:cpu:/job\n0::/job\n",
        "sys/fs/cgroup/unified/job/cpu.max": "400000 100000\n",
        **version_1("cpu/job", "500000"),
    }
    assert available_cpus(tree(tmp_path, files)) == 4


@pytest.mark.usefixtures("big_host")
def test_cpuset_and_cpuacct_are_not_mistaken_for_cpu(tmp_path):
    files = {"proc/self/cgroup": "3:cpuset,cpuacct:/job\n"} | version_1("cpuset,cpuacct/job", "100000")
    assert available_cpus(tree(tmp_path, files)) == HOST_CPUS


@pytest.mark.usefixtures("big_host")
def test_path_that_leads_out_of_the_namespace_never_leaves_the_mount(tmp_path):
    files = {
        "proc/self/cgroup": "0::/../../outside\n",
        "sys/fs/cgroup/cpu.max": "500000 100000\n",
        "sys/outside/cpu.max": "100000 100000\n",
    }
    assert available_cpus(tree(tmp_path, files)) == 5


@pytest.mark.usefixtures("big_host")
def test_without_proc_and_sys_affinity_decides(tmp_path):
    assert available_cpus(tmp_path) == HOST_CPUS


@pytest.mark.usefixtures("big_host")
def test_unreadable_quota_sets_no_limit(tmp_path):
    tree(tmp_path, {"proc/self/cgroup": "0::/\n"})
    (tmp_path / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
    assert available_cpus(tmp_path) == HOST_CPUS


@pytest.mark.parametrize(("host", "cpus"), [(12, 12), (None, 1)])
def test_without_affinity_the_host_count_decides(tmp_path, monkeypatch, host, cpus):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: host)
    assert available_cpus(tmp_path) == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPU affinity is a Linux matter")
def test_real_affinity_is_followed(tmp_path):
    before = os.sched_getaffinity(0)
    assert available_cpus(tmp_path) == len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cpus(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_this_machine_has_at_least_one_and_no_more_than_the_host():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


MIB = 1 << 20
HOST_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
V1_UNLIMITED = str((1 << 63) - 4096)


@pytest.mark.parametrize(
    ("own", "parent", "memory"),
    [
        (f"{64 * MIB}\n", "max\n", 64 * MIB),
        ("max\n", f"{32 * MIB}\n", 32 * MIB),
        ("max\n", "max\n", HOST_MEMORY),
        (str(1 << 60), "", HOST_MEMORY),  # more than the machine has
        ("two", "", HOST_MEMORY),
    ],
)
def test_memory_of_a_version_2_container(tmp_path, own, parent, memory):
    files = {
        "proc/self/cgroup": "0::/pods/pod1\n",
        "sys/fs/cgroup/pods/pod1/memory.max": own,
        "sys/fs/cgroup/pods/memory.max": parent,
        "sys/fs/cgroup/pods/pod2/memory.max": "1",  # a neighbour's
    }
    assert available_memory(tree(tmp_path, files)) == (
        available_memory(tmp_path / "none") if memory is None else memory
    )


@pytest.mark.parametrize(("limit", "memory"), [(str(64 * MIB), 64 * MIB), (V1_UNLIMITED, HOST_MEMORY)])
@pytest.mark.parametrize("folder", ["memory/docker/abc", "memory"])  # the second is its own group, mounted as the top
def test_memory_of_a_version_1_container(tmp_path, folder, limit, memory):
    groups = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n"
    files = {"proc/self/cgroup": groups, f"sys/fs/cgroup/{folder}/memory.limit_in_bytes": f"{limit}\n"}
    assert available_memory(tree(tmp_path, files)) == (
        available_memory(tmp_path / "none") if memory is None else memory
    )


def test_this_machine_has_memory_for_itself():
    assert 64 * MIB < available_memory() <= HOST_MEMORY


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_any_bytes_give_a_number_within_the_host(cgroup, limit):
    with tempfile.TemporaryDirectory() as folder:
        files = ("sys/fs/cgroup/cpu.max", "sys/fs/cgroup/memory.max")
        root = tree(Path(folder), dict.fromkeys(("proc/self/cgroup", *files), ""))
        (root / "proc/self/cgroup").write_bytes(b"0::/\n" + cgroup)
        for name in files:
            (root / name).write_bytes(limit)
        assert 1 <= available_cpus(root) <= (os.cpu_count() or 1)
        assert 0 <= available_memory(root) <= HOST_MEMORY

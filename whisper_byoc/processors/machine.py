"""How many CPUs and how much memory this process really has: inside a container, the host's say little."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def available_cpus(root: Path = Path("/")) -> int:
    """Return how many threads can compute at once, >= 1: the smaller of the CPU affinity and the cgroup's quota.

    Quotas are rounded down. With a quota of 1.5 CPUs two busy threads use up each period's share (of 100 ms by
    default) early, and the kernel then stops the whole process for the rest of it: every live stream stalls, and
    matrix kernels wait for their slowest thread. That never happens with one thread.

    `root` is where `proc/` and `sys/` are looked for. Whatever is missing or unreadable (another operating system, a
    sandbox) sets no limit.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only; it also reflects the cgroup's cpuset
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cpus, *_quotas(root)]))


def available_memory(root: Path = Path("/")) -> int:
    """Return how many bytes this process may hold: the smaller of the machine's memory and the cgroup's limit.

    `root` is as for `available_cpus`. The files are memory.max (the kernel's cgroup-v2.rst) and memory.limit_in_bytes
    (its cgroup-v1/memory.rst), which without a limit is larger than any machine's memory.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(ValueError):  # "max", or missing
                limits.append(max(0, int(_read(folder / name))))
    return min(limits)


def _quotas(root: Path) -> Iterator[int]:
    """Yield the whole CPUs granted by cpu.max and cpu.cfs_* (the kernel's cgroup-v2.rst and sched-bwc.rst)."""
    for folder in _groups(root, "cpu"):
        yield from _whole_cpus(_read(folder / "cpu.max"))
        yield from _whole_cpus(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}")


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and all its ancestors, each of which limits it: cgroups(7)."""
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, entry = line.partition(":")  # hierarchy:controllers:path; version 2 names no controllers
        controllers, _, path = entry.partition(":")
        if not controllers:
            yield from _ancestry([mounts, mounts / "unified"], path)
        elif controller in controllers.split(","):
            yield from _ancestry([mounts / controllers, mounts / controller], path)


def _ancestry(mounts: list[Path], path: str) -> Iterator[Path]:
    """Yield the folders of a cgroup and its ancestors, up to and including the hierarchy's mount point.

    A container often sees only its own group, mounted as if it were the root; the path then does not exist, or leads
    out of it (`/..`), and only the mount point counts.
    """
    inner = PurePosixPath(path.strip("/"))
    groups = [PurePosixPath()] if ".." in inner.parts else [inner, *inner.parents]
    for mount in mounts:
        for group in groups:
            yield mount / group


def _whole_cpus(text: str) -> Iterator[int]:
    """Yield the CPUs of `quota period`, both in microseconds; none for `max`, -1 (no limit) or nonsense."""
    try:
        quota, period = (int(field) for field in text.split())
    except ValueError:
        return
    if quota > 0 and period > 0:
        yield quota // period


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):  # missing, forbidden, not text, or an invalid path
        return ""

"""Memory of mapped files: pages that have been read need not stay."""

import ctypes
import mmap
from pathlib import Path


def release(folder: Path) -> int:
    """Free the memory taken by this process's mappings of the files in a folder, and return the bytes mapped.

    Only read-only mappings are freed; they are read again if needed. Only Linux lists what is mapped; elsewhere this
    does nothing.
    """
    released = 0
    for begin, end in _mappings(folder.resolve()):
        size = end - begin
        if ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_DONTNEED) == 0:
            released += size
    return released


def _mappings(folder: Path) -> list[tuple[int, int]]:
    """Return the addresses of read-only mappings: data written to any other would be lost."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        span, rights, *_, path = [*line.split(maxsplit=5), ""][:6]  # proc_pid_maps(5)
        if rights.startswith("r--") and Path(path).parent == folder:
            begin, _, end = span.partition("-")
            found.append((int(begin, 16), int(end, 16)))
    return found

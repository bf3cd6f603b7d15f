"""Memory of mapped files."""

import mmap
import re
from pathlib import Path

from whisper_byoc.speech import pages

SIZE = 8 << 20


def resident_kb(path):
    """Return how much of a file is in this process's memory."""
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    mine = [each for each in maps if str(path) in each.split("\n")[0]]
    return sum(int(re.search(r"^Rss: +(\d+)", each, re.MULTILINE)[1]) for each in mine)


def test_what_was_read_is_given_back_and_read_again(tmp_path):
    path, other = tmp_path / "a b.bin", tmp_path / "deeper" / "other.bin"
    other.parent.mkdir()
    for each in (path, other):
        each.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as file, other.open("rb") as beside:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        kept = mmap.mmap(beside.fileno(), 0, access=mmap.ACCESS_READ)
        written = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        written[:3] = b"new"
        before = bytes(mapped), bytes(kept)
        assert resident_kb(path) >= SIZE // 1024
        assert pages.release(tmp_path) == SIZE
        assert resident_kb(path) < SIZE // 2048
        assert resident_kb(other) == SIZE // 1024
        assert (bytes(mapped), bytes(kept)) == before
        assert written[:3] == b"new"
        for each in (mapped, kept, written):
            each.close()


def test_what_is_not_mapped_is_nothing(tmp_path):
    assert pages.release(tmp_path) == 0

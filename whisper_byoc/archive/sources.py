"""The recordings of an archive: found in folders, patterns, lists and object stores, and told from older versions."""

import glob
import hashlib
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from audio.raw import ENDINGS
from whisper_byoc.errors import UsageError

SCHEMES = ("s3", "gs", "http", "https")
MEDIA = frozenset(ENDINGS) | {
    ".3gp", ".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".avi", ".caf", ".flac", ".m4a", ".m4b", ".m4v", ".mka",
    ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".oga", ".ogg", ".ogv", ".opus", ".ts", ".w64", ".wav",
    ".weba", ".webm", ".wma", ".wmv", ".wv",
}  # fmt: skip
"""Endings of what is taken from a folder; a file that is named is taken whatever its ending."""
LONGEST_COMPONENT = 230
"""Bytes of a component of a result's name; file systems allow 255, with the ending of the format."""
LARGEST_COPY = 32 << 30
"""Bytes of a remote recording."""
LOOKED_UP_AT_ONCE = 16
VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "mtime", "updated")
"""What fsspec's file systems call that by which one version of a file is told from the next, the best first."""

HTTP_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, connect=60.0, sock_read=60.0)}}
)
"""A large recording may take its time, as long as something comes; aiohttp's default is 5 minutes for all of it."""


@dataclass(frozen=True)
class Source:
    """A recording."""

    place: str
    """Path or address."""
    name: str
    """Of its results, below the folder of all results, without the ending of a format."""
    size: int
    """Bytes; 0 where a server does not say."""
    version: str
    """Changes with the content."""


@dataclass(frozen=True)
class Failure:
    """Why there is no text of a place."""

    place: str
    reason: str


@dataclass
class Listing:
    """What was found."""

    sources: list[Source] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """What was named and cannot be read."""
    passed_over: int = 0
    """Files in folders that are no sound by their names."""


def find(words: Iterable[str], lists: Iterable[Path]) -> Listing:
    """Find the recordings that are named by words (see `_places`) and by lists with a path or address in each line.

    Raises `UsageError` where a word names nothing, or two sources would have their results in one place.
    """
    listing = Listing()
    found: dict[str, dict[str, Any] | None] = {}
    for word in words:
        for place, info in _places(word, listing):
            found.setdefault(place, info)
    for line in itertools.chain.from_iterable(map(_lines, lists)):
        found.setdefault(line, None)
    with ThreadPoolExecutor(LOOKED_UP_AT_ONCE) as threads:
        looked_up = threads.map(lambda item: _look_up(*item), found.items())
    names: dict[str, str] = {}
    for each in looked_up:
        if isinstance(each, Failure):
            listing.failures.append(each)
        elif (other := names.setdefault(each.name, each.place)) == each.place:
            listing.sources.append(each)
        elif not _same_file(other, each.place):
            raise UsageError(
                f"{shown(other)} and {shown(each.place)} would both be written to {each.name}.*; do one at a time"
            )
    return listing


def is_remote(place: str) -> bool:
    return "://" in place


def is_folder(place: str) -> bool:
    return os.path.isdir(place)  # noqa: PTH112 - pathlib raises on a name that is too long


def shown(place: str) -> str:
    """Return a place for people and tables: valid text, without the secrets that an address may have."""
    if is_remote(place):
        parts = urlsplit(place)
        place = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "…" if parts.query else "", ""))
    return os.fsencode(place).decode(errors="backslashreplace")


def result_name(place: str) -> str:
    """Return where the results of a place are, below their folder: the place itself, as far as it may be one.

    `rec/a.wav` is `rec/a.wav`, `/data/a.wav` is `data/a.wav`, and `s3://bucket/a.wav` is `s3/bucket/a.wav`.
    """
    if is_remote(place):
        parts = urlsplit(place)
        query = f"?{hashlib.sha256(parts.query.encode()).hexdigest()[:16]}" if parts.query else ""
        components = [parts.scheme, parts.netloc.rpartition("@")[2], *f"{parts.path}{query}".split("/")[1:]]
    else:
        path = os.path.normpath(place)
        path = str(Path(path).absolute()) if path.split("/")[0] == ".." else path
        components = os.path.normpath(path).strip("/").split("/")
    return "/".join(map(_component, components))


def _component(text: str) -> str:
    """Return one component of a path that is text, no way upwards, and not too long."""
    if text in ("", ".", ".."):
        return text.replace(".", "%2E") or "%"
    data = os.fsencode(text).replace(b"\0", b"%00")
    name = "".join(f"%{ord(each) - 0xDC00:02X}" if "\udc80" <= each <= "\udcff" else each for each in os.fsdecode(data))
    if len(data := name.encode()) <= LONGEST_COMPONENT:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: LONGEST_COMPONENT - 17].decode(errors='ignore')}~{digest}"


@contextmanager
def local_copy(place: str) -> Iterator[Path]:
    """Yield the path of a recording; of a remote one, that of a copy which is there for the context.

    Raises `UsageError` where it cannot be read, or is larger than `LARGEST_COPY`.
    """
    if not is_remote(place):
        yield Path(place)
        return
    files, path = _remote(place)
    with tempfile.NamedTemporaryFile(suffix=Path(urlsplit(place).path).suffix[:20]) as copy:
        with _telling(place), files.open(path, "rb", block_size=1 << 22, cache_type="readahead") as remote:
            if (remote.size or 0) > LARGEST_COPY:
                raise UsageError(f"{shown(place)} has {remote.size} bytes; at most {LARGEST_COPY} are read")
            shutil.copyfileobj(remote, copy, 1 << 22)
            copy.flush()
        yield Path(copy.name)


def _places(word: str, listing: Listing) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield the places that a word names, and what is known of them: a file, a folder's sound, or a pattern's files."""
    if is_remote(word):
        yield from _remote_places(word, listing)
    elif is_folder(word):
        yield from _folder(word, listing)
    elif not os.path.lexists(word) and glob.has_magic(word):
        found = sorted(each for each in glob.iglob(word, recursive=True) if Path(each).is_file())  # noqa: PTH207 - any pattern
        if not found:
            raise UsageError(f"no file is matched by {word}")
        yield from ((each, None) for each in found)
    elif not os.path.lexists(word):
        raise UsageError(f"no such file: {word}")
    else:
        yield word, None


def _folder(folder: str, listing: Listing) -> Iterator[tuple[str, None]]:
    def unreadable(error: OSError) -> None:
        listing.failures.append(Failure(error.filename, f"the folder cannot be read: {error.strerror}"))

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(files):
            if _is_sound(name):
                yield str(Path(parent, name)), None
            else:
                listing.passed_over += 1


def _remote_places(word: str, listing: Listing) -> Iterator[tuple[str, dict[str, Any] | None]]:
    files, path = _remote(word)
    if word.startswith("http"):  # has no folders
        yield word, None
        return
    with _telling(word):
        if glob.has_magic(path) and not files.exists(path):
            found = files.glob(path, detail=True)
        elif files.isfile(path):
            found = {path: files.info(path)}
        else:
            found = files.find(path, detail=True)
    chosen = {each: info for each, info in found.items() if info["type"] == "file"}
    if not chosen:
        raise UsageError(f"nothing is found at {shown(word)}")
    for each, info in sorted(chosen.items()):
        if len(chosen) == 1 or glob.has_magic(path) or _is_sound(each.rpartition("/")[2]):
            yield files.unstrip_protocol(each), info
        else:
            listing.passed_over += 1


def _is_sound(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in MEDIA


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"the list {path} cannot be read: {error.strerror}") from None
    return [os.fsdecode(line) for each in lines if (line := each.strip())]


def _look_up(place: str, info: Mapping[str, Any] | None) -> Source | Failure:
    try:
        if is_remote(place):
            return _remote_source(place, info)
        status = Path(place).stat()
    except UsageError as error:
        return Failure(place, str(error))
    except (OSError, ValueError) as error:
        return Failure(place, f"{getattr(error, 'strerror', None) or error}")
    if not stat.S_ISREG(status.st_mode):
        return Failure(place, "not a regular file")
    return Source(place, result_name(place), status.st_size, f"{status.st_size} {status.st_mtime_ns}")


def _remote_source(place: str, info: Mapping[str, Any] | None) -> Source:
    if info is None:
        files, path = _remote(place)
        with _telling(place):
            info = files.info(path)
    size = info.get("size") or 0
    version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
    return Source(place, result_name(place), size, f"{size} {version}")


def _remote(place: str) -> tuple[Any, str]:
    """Return the file system of fsspec's, and the path there."""
    scheme = place.partition("://")[0]
    if scheme not in SCHEMES:
        raise UsageError(f"{shown(place)}: addresses begin with {', '.join(f'{each}://' for each in SCHEMES)}")
    try:
        from fsspec.core import url_to_fs

        found: tuple[Any, str] = url_to_fs(place, **HTTP_OPTIONS if scheme.startswith("http") else {})
    except ImportError:
        extra = "gs" if scheme == "gs" else "s3"
        raise UsageError(f"{scheme}:// needs more packages: pip install 'whisper-byoc[{extra}]'") from None
    return found


@contextmanager
def _telling(place: str) -> Iterator[None]:
    """Turn whatever a file system raises, of which there are many, into `UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"there is nothing at {shown(place)}") from None
    except Exception as error:
        raise UsageError(f"{shown(place)} cannot be read: {type(error).__name__}: {error}") from None


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False

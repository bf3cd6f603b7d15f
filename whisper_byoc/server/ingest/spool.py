"""Bytes of recordings, held until they have been read: in memory while they are few, then on disk."""

import asyncio
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from typing import IO, cast

from whisper_byoc.errors import RequestRefused
from whisper_byoc.server.core.admission import RETRY_AFTER_SECONDS

IN_MEMORY = 1 << 20
"""Bytes of one spool that are held in memory: 32 s of PCM16."""
CLIENT_SHARE = 2
"""One client address, possibly an orchestrator's, may hold one in this many parts of the room."""


class Room:
    """Bounds the spooled bytes, in total and per client. Thread-safe."""

    def __init__(self, size: int) -> None:
        self.taken = 0
        self._size = size
        self._of_client: Counter[str] = Counter()
        self._lock = threading.Lock()

    def check(self, client: str, size: int) -> None:
        """Refuse (429) `size` more bytes from the address `client` if there is no room; "" is an unknown address."""
        message, reason = "", "spool"
        if self.taken + size > self._size:
            message = f"this server holds {self._size >> 20} MiB of recordings, the most it may; send this one later"
        elif client and self._of_client[client] + size > self._size // CLIENT_SHARE:
            share = self._size // CLIENT_SHARE >> 20
            message = f"this server holds {share} MiB of recordings from your address, the most it may"
            reason = "spool_of_address"
        if message:
            raise RequestRefused(429, message, RETRY_AFTER_SECONDS, reason=reason)

    def take(self, client: str, size: int) -> None:
        """Take room for `size` bytes, or give it back if negative. Raises as `check` does."""
        with self._lock:
            if size > 0:
                self.check(client, size)
            self.taken += size
            self._of_client[client] += size
            if not self._of_client[client]:
                del self._of_client[client]


class Spool:
    """Bytes that are appended and read, by one thread or by several. Close it to free its room."""

    def __init__(self, room: Room, client: str) -> None:
        self.client = client
        self.size = 0
        self._room = room
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed by `close`
        self._lock = threading.Lock()

    @property
    def file(self) -> IO[bytes]:
        """The file, for one thread at a time, when all has been written."""
        return cast("IO[bytes]", self._file)

    def check(self, size: int) -> None:
        """Refuse (429) `size` more bytes, as `Room.check` does."""
        self._room.check(self.client, size)

    async def append(self, data: bytes) -> None:
        """Append bytes as `write` does, in a thread if they may go to disk."""
        if self.size + len(data) <= IN_MEMORY:
            self.write(data)
        else:
            await asyncio.to_thread(self.write, data)

    def write(self, data: bytes) -> None:
        """Append bytes; drop them when it is closed.

        Raises `RequestRefused`: 429 as `Room.check` does, 503 when the disk is full.
        """
        with self._lock:
            if self._file.closed:
                return
            self._room.take(self.client, len(data))
            self.size += len(data)
            try:
                self._file.seek(0, 2)
                self._file.write(data)
            except OSError as error:
                message = f"the recording cannot be stored on disk now: {error.strerror}; try again later"
                raise RequestRefused(503, message, RETRY_AFTER_SECONDS, reason="disk") from error

    def read(self, position: int, size: int = -1) -> bytes:
        """Return at most `size` bytes from `position` on; none once it is closed."""
        with self._lock:
            if self._file.closed:
                return b""
            self._file.seek(position)
            return self._file.read(size)

    async def free(self) -> None:
        """Close it; deleting a large file takes a moment, so a thread does that, even when this is cancelled."""
        if self.size <= IN_MEMORY:
            self.close()
        else:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self.close))

    def close(self) -> None:
        """Free what it holds. Harmless when repeated."""
        with self._lock:
            if not self._file.closed:
                with suppress(OSError):  # a full disk is reported once more
                    self._file.close()
                self._room.take(self.client, -self.size)

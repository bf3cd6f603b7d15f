"""The addresses in the flags of the gateway and the orchestrator."""

import re

from whisper_byoc.errors import UsageError

ADDRESS = re.compile(r"(?:(https?)://)?(\[[0-9A-Fa-f:.]+\]|[^:/\s@?#]*)(?::([0-9]{1,5}))?((?:/[^\s?#]*)?)")
LOCAL = re.compile(r"localhost|[0-9.]+|\[.*\]")


class Address:
    """A `host:port` to listen on, as go-livepeer takes it: with or without a scheme, the host may be empty."""

    def __init__(self, text: str, default_port: int) -> None:
        """Raise `UsageError` for what is no address."""
        found = ADDRESS.fullmatch(text.strip())
        try:
            usable = found and text.strip() and found[2].encode("idna") is not None and int(found[3] or 0) <= 65535
        except UnicodeError:  # no host can have that name
            usable = False
        if not found or not usable:
            raise UsageError(f"{text!r} is not an address such as 127.0.0.1:{default_port}")
        self.scheme = found[1] or ""
        self.host = found[2]
        self.port = int(found[3]) if found[3] else default_port
        self.path = found[4].rstrip("/")

    @property
    def listen_host(self) -> str:
        """Where to listen: a number is bound to, a name that others use means all interfaces."""
        return self.host.strip("[]") if self.host and LOCAL.fullmatch(self.host) else "0.0.0.0"


def served_address(text: str, flag: str, default_port: int) -> Address:
    """Read an address that this node serves; it has no certificate for https."""
    if text.startswith("https://"):
        raise UsageError(f"{flag} {text}: this serves plain HTTP; write http://, or put a proxy with TLS in front")
    return Address(text, default_port)

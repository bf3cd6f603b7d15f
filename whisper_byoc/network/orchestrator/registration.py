"""`/capability/register`, `/capability/unregister`, `/process/token`: how containers and gateways find each other."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from whisper_byoc.errors import RequestRefused
from whisper_byoc.network.answers import as_text
from whisper_byoc.network.orchestrator.health import Follower
from whisper_byoc.network.orchestrator.pool import Container, Pool
from whisper_byoc.network.reading import json_object, json_value, read_small
from whisper_byoc.network.serving import may_be_looked_up

__all__ = ["Registration"]

MOST_CONTAINERS = 1000
URL_HEADER = "X-Capability-Url"
"""Which container unregisters, where it tells; go-livepeer's body is the bare name of the capability."""


class Registration:
    """The routes. `secret` is what containers must show; `service_url` is where gateways bring jobs."""

    def __init__(self, pool: Pool, follower: Follower, secret: str) -> None:
        self.service_url = ""
        self._pool = pool
        self._follower = follower
        self._secret = secret.encode()

    def routes(self) -> list[web.RouteDef]:
        """Give the routes."""
        return [
            web.post("/capability/register", as_text(self.register)),
            web.post("/capability/unregister", as_text(self.unregister)),
            web.get("/process/token", as_text(self.token), allow_head=False),
        ]

    async def register(self, request: web.Request) -> web.Response:
        """Take a container in, or change what is known of it."""
        self._check_secret(request)
        container = parse_capability(await read_small(request))
        if len(tuple(self._pool)) >= MOST_CONTAINERS and self._pool.find(container.name, container.url) is None:
            raise RequestRefused(503, f"{MOST_CONTAINERS} containers are known, which is all this orchestrator takes")
        known = self._pool.add(container)
        known.registered = known.registered or known is container
        known.answers()  # it has just said so itself
        self._follower.follow(known.url)
        return web.Response(text="ok", content_type="application/json")

    async def unregister(self, request: web.Request) -> web.Response:
        """Give a container no more jobs; those that it has go on. A name that is not known is fine."""
        self._check_secret(request)
        name = (await read_small(request)).decode("utf-8", "replace").strip()
        url = request.headers.get(URL_HEADER, "").rstrip("/")
        for each in self._pool.of(name):
            if url in ("", each.url):
                each.refuses("it has unregistered")
                if each.registered:
                    self._pool.remove(each)
        return web.Response(text="ok", content_type="application/json")

    async def token(self, request: web.Request) -> web.Response:
        """Tell a gateway how many jobs of a capability could be taken; off-chain all of them are free of charge."""
        sender = parse_sender(request.headers.get("Livepeer-Eth-Address", ""))
        name = request.headers.get("Livepeer-Capability", "")
        if not name:
            raise RequestRefused(400, "the Livepeer-Capability header is missing")
        free = self._pool.free(name)
        answer = {
            "sender_address": sender,
            "ticket_params": {},  # go-livepeer's gateway fails without the two
            "balance": 0,
            "price": {"pixelsPerUnit": 1},
            "service_addr": self.service_url,
        }
        return web.json_response(answer | ({"available_capacity": free} if free else {}))

    def _check_secret(self, request: web.Request) -> None:
        shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(shown, self._secret):
            raise RequestRefused(400, "invalid authorization")


def parse_capability(body: bytes) -> Container:
    """Read what a container says of itself.

    Raises `RequestRefused` (400).
    """
    fields = json_object(body)
    name, url = text_of(fields, "name"), text_of(fields, "url").rstrip("/")
    if not name:
        raise RequestRefused(400, "name must not be empty")
    if not is_base_url(url):
        raise RequestRefused(400, f"url must be a base URL such as http://host:8000, not {url!r:.80}")
    numbers = ("price_per_unit", "price_scaling")
    price = {each: whole_of(fields, each) for each in numbers}
    return Container(name, url, whole_of(fields, "capacity"), text_of(fields, "token"), True, price)


def is_base_url(url: str) -> bool:
    """Whether routes can be appended to it; a name and a password in it would get in the way of the token."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good = good and may_be_looked_up(parts.hostname or "")
    except ValueError:
        return False
    return good and not any(each in url for each in "@?#\\ ")


def text_of(fields: dict[str, Any], name: str) -> str:
    """Read a string that may be missing."""
    value = "" if fields.get(name) is None else fields[name]
    if not isinstance(value, str) or len(value) > 2048 or not value.isprintable():
        raise RequestRefused(400, f"{name} must be a string of one line of printable characters, not {value!r:.80}")
    return value


def whole_of(fields: dict[str, Any], name: str) -> int:
    """Read a whole number that may be missing."""
    value = 0 if fields.get(name) is None else fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise RequestRefused(400, f"{name} must be a whole number of at least 0, not {value!r:.80}")
    return value


def parse_sender(text: str) -> dict[str, Any]:
    """Read who asks for a token; off-chain anybody may.

    Raises `RequestRefused` (400).
    """
    try:
        sender = json_value(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        sender = None
    if not isinstance(sender, dict):
        raise RequestRefused(400, "the Livepeer-Eth-Address header must be the base64 of a JSON object")
    return {"addr": str(sender.get("addr", "")), "sig": str(sender.get("sig", ""))}

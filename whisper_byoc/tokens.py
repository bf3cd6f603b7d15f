"""The bearer token of a listener: whoever shows it may use what listens there."""

import base64
import contextlib
import hmac
import itertools
from collections.abc import Collection

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from whisper_byoc.errors import RequestRefused

SCHEMES = ("bearer", "token")
"""Schemes of `Authorization`; the second is Deepgram's."""
OPENAI_KEY_PROTOCOL = "openai-insecure-api-key."
TOKEN_PROTOCOL = "base64url.bearer"  # noqa: S105 - a subprotocol's name
"""Subprotocols that carry a token, as in Kubernetes and OpenAI: browsers send no custom headers with a WebSocket.
Deepgram's is the word `token`, with the token as the next subprotocol."""


def ask_for_token(app: web.Application, token: str, open_paths: Collection[str] = ()) -> None:
    """Refuse (401) every request without this token, except reads of `open_paths`; an empty token refuses none.

    Call it after the middlewares that answer errors and check pages have been added.
    """
    if not token:
        return
    expected = token.encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_open = request.method in (hdrs.METH_GET, hdrs.METH_HEAD) and request.path in open_paths
        # compare_digest takes the same time wherever the two differ
        if not is_open and not hmac.compare_digest(_shown(request), expected):
            raise RequestRefused(401, "this server wants its token: send `Authorization: Bearer TOKEN`")
        return await handler(request)

    async def challenge(_: web.Request, response: web.StreamResponse) -> None:
        """Name the scheme in every 401, as RFC 9110 section 15.5.2 asks."""
        if response.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"

    app.middlewares.append(check)
    app.on_response_prepare.append(challenge)


def _shown(request: web.Request) -> bytes:
    scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() in SCHEMES:
        return _as_sent(given.strip())
    protocols = [each.strip() for each in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")]
    for protocol, after in itertools.pairwise([*protocols, ""]):
        prefix, _, given = protocol.rpartition(".")
        if prefix == TOKEN_PROTOCOL:
            with contextlib.suppress(ValueError):
                return base64.urlsafe_b64decode(given + "=" * (-len(given) % 4))
        if protocol.startswith(OPENAI_KEY_PROTOCOL):
            return _as_sent(protocol.removeprefix(OPENAI_KEY_PROTOCOL))
        if protocol == "token":
            return _as_sent(after)
    return b""


def _as_sent(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

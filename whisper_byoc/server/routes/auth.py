"""The bearer token that whoever wants work done must show, when the operator has set one."""

from __future__ import annotations

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from whisper_byoc.errors import RequestRefused

__all__ = ["OPEN_PATHS", "protect"]

OPEN_PATHS = frozenset(
    ("/health", "/healthz", "/readyz", "/version", "/app-version", "/hardware/info", "/hardware/stats", "/metrics")
)
"""What monitors ask; they have no token, and a 401 to an orchestrator would end the registration."""


def protect(app: web.Application, token: str) -> None:
    """Let only requests with `Authorization: Bearer <token>` through, but for `OPEN_PATHS`; others get a 401."""
    app.middlewares.append(bearer(token))
    app.on_response_prepare.append(challenge)


def bearer(token: str) -> Middleware:
    """Make the middleware that compares tokens, in a time that does not depend on where they differ."""
    expected = token.encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN_PATHS:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            shown = given.strip().encode("utf-8", "surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(shown, expected):
                raise RequestRefused(401, "this container wants its token: send `Authorization: Bearer TOKEN`")
        return await handler(request)

    return check


async def challenge(_: web.Request, response: web.StreamResponse) -> None:
    """Name the scheme in every 401, as RFC 9110 section 15.5.2 asks."""
    if response.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"

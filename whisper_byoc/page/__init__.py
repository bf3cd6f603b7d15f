"""The page for people at `/`: files without a build step, and what their server tells them of itself."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

FILES = Path(__file__).parent / "files"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PATHS = frozenset({"/", "/page/server.json", *(f"/page/{file.name}" for file in FILES.iterdir())})
"""What a browser reads of the page: it has no secrets, so a token is not asked for."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    hdrs.CACHE_CONTROL: "no-cache",
}


def page_routes(describe: Callable[[web.Request], Mapping[str, Any]]) -> list[web.RouteDef]:
    """Return the routes of the page. `describe` returns what `server.json` says: `role`, `pipelines`, `token`."""

    async def server(request: web.Request) -> web.Response:
        return web.json_response(describe(request), headers=HEADERS)

    files = [web.get(f"/page/{file.name}", _file(file)) for file in FILES.iterdir()]
    return [web.get("/", _file(FILES / "index.html")), web.get("/page/server.json", server), *files]


def _file(path: Path) -> Handler:
    body, content_type = path.read_bytes(), TYPES[path.suffix]

    async def send(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

    return send

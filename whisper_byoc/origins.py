"""Which web pages may use a listener, by a request's Host and Origin; and CORS for the pages that may.

Any page in a browser can send requests to the machine that the browser runs on. The browser gives the page's origin in
`Origin` or `Sec-Fetch-Site`; a page whose name was made to resolve to this machine (DNS rebinding) is recognised by
`Host`.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from whisper_byoc.errors import RequestRefused, UsageError

ANY = "*"
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@\[\]]+))(?::[0-9]*)?")
OTHER_SITES = ("cross-site", "same-site")
PRIVATE_NAMES = ("localhost", "internal")
"""Suffixes of names that no public name server resolves (RFC 6761; ICANN's `.internal`, which Docker uses)."""
PAGE_TYPES = frozenset({"text/plain", "multipart/form-data"})
"""What a page may send anywhere without its browser asking first (Fetch, "CORS-safelisted request-header"). The third,
`application/x-www-form-urlencoded`, is what curl and Python's urllib call any body."""
FETCH_SITE = "Sec-Fetch-Site"
WANTED_METHOD = "Access-Control-Request-Method"
PREFLIGHT_SECONDS = "600"


def origin(text: str) -> str:
    """Check an origin, such as `https://app.example`; `*` is any origin, `null` is that of local files.

    Raises `UsageError`.
    """
    found = text.strip().rstrip("/").lower()
    try:
        parts = urlsplit(found)
        usable = bool(parts.scheme and parts.hostname) and found == f"{parts.scheme}://{parts.netloc}"
    except ValueError:
        usable = False
    if not (usable and "@" not in found) and found not in (ANY, "null"):
        raise UsageError(f"{text[:200]!r} is not the origin of a web page, such as http://localhost:3000")
    return found


@dataclass(frozen=True)
class OriginPolicy:
    """Which pages a listener allows, and the names it is reached by."""

    allowed: frozenset[str] = frozenset()
    """Origins, as returned by `origin`, of the pages that may use it in addition to its own."""
    names: frozenset[str] = frozenset()
    """Names by which clients reach it, in lower case without a port, besides addresses and names without a dot."""
    has_token: bool = False
    """Whether clients show a token, which pages do not have; then only loopback connections are checked."""
    open_paths: frozenset[str] = frozenset()
    """Paths that monitors read; not checked."""

    def check(self, request: web.Request) -> None:
        """Raise `RequestRefused` (403) for a request made by a page that is not allowed to."""
        reading = request.method in (hdrs.METH_GET, hdrs.METH_HEAD) and hdrs.UPGRADE not in request.headers
        over_loopback = _over_loopback(request)
        if (reading and request.path in self.open_paths) or (self.has_token and not over_loopback):
            return
        if len(request.headers.getall(hdrs.ORIGIN, ())) > 1:  # wherever the second came from, one is wrong
            raise RequestRefused(403, "a request of two origins may not use this server")
        page, host = request.headers.get(hdrs.ORIGIN), request.headers.get(hdrs.HOST, "").lower()
        if self.allows(page):
            return
        known = self._knows(host)
        if over_loopback and host and not known:
            raise RequestRefused(
                403, f"this server is not known as {host[:100]!r}; --allow-origin http://{host[:100]} names it so"
            )
        if page is not None and not (known and page.lower() in (f"http://{host}", f"https://{host}")):
            raise RequestRefused(403, f"web pages of {page[:100]!r} may not use this server; --allow-origin lets them")
        if page is None and request.headers.get(FETCH_SITE, "").lower() in OTHER_SITES:
            raise RequestRefused(403, "web pages of other sites may not use this server; --allow-origin lets them")

    def allows(self, page: str | None) -> bool:
        """Whether the origin is listed."""
        return ANY in self.allowed or (page is not None and page.lower() in self.allowed)

    def _knows(self, host: str) -> bool:
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = (found[1] or found[2]).rstrip(".")
        last = name.rpartition(".")[2]
        if last == name or last in PRIVATE_NAMES or _address(name):
            return True
        return name in self.names or name in {urlsplit(each).hostname for each in self.allowed}


def check_pages(app: web.Application, policy: OriginPolicy) -> None:
    """Add the check to an application, after the middleware for errors and before the one for tokens."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        policy.check(request)
        wanted = request.headers.get(WANTED_METHOD)
        if request.method == hdrs.METH_OPTIONS and wanted and policy.allows(request.headers.get(hdrs.ORIGIN)):
            return web.Response(
                status=204,
                headers={
                    hdrs.ACCESS_CONTROL_ALLOW_METHODS: wanted,
                    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, ""),
                    hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_SECONDS,
                },
            )
        return await handler(request)

    async def allow(request: web.Request, response: web.StreamResponse) -> None:
        page = request.headers.get(hdrs.ORIGIN)
        if page is not None and policy.allows(page):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = page
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ANY
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)

    app.middlewares.append(check)
    app.on_response_prepare.append(allow)


def check_json_type(request: web.Request) -> None:
    """Refuse (415) JSON declared as a type that pages may send anywhere; as at go-livepeer, no type is needed."""
    if request.content_type in PAGE_TYPES:
        raise RequestRefused(415, f"the content type must be application/json, not {request.content_type}")


def host_names(*addresses: str) -> frozenset[str]:
    """Return the host names in addresses, each of which is a URL, `host:port` or empty."""
    found = (urlsplit(each if "//" in each else f"//{each}").hostname for each in addresses)
    return frozenset(name.lower() for name in found if name)


def _over_loopback(request: web.Request) -> bool:
    name = request.get_extra_info("sockname")
    return isinstance(name, tuple) and is_loopback(name[0])


def is_loopback(host: str) -> bool:
    """Whether a host (name or address) is this machine and cannot be reached from elsewhere."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
